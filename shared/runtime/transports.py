"""What asyncio's transports, and uvloop's, do not offer themselves: options of their sockets, and a reset."""

import asyncio
import contextlib
import socket
import struct
from typing import Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def set_option(transport: asyncio.Transport, level: int, option: int, value: int | bytes) -> None:
    """Set an option of its socket; one that is gone, or a kernel that has no such option, goes on without."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(level, option, value)


def reset(transport: asyncio.Transport | None) -> None:
    """Abort so that the other side sees a reset, not an end."""
    if transport is not None:
        set_option(transport, socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
