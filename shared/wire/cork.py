"""What is written to one connection in one turn of a loop leaves together, in one system call.

Many small frames of many tunnels share a connection; each write of its own costs a system call here and a wake-up there. No
I/O of its own: the owner brings the connection, and says how to be called at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shared.wire.mux import Bytes

GATHER_MAX_BYTES: Final = 16 * 1024
"""So much leaves at once, so that the connection can say that it is full before much more is given to it."""
GATHER_BULK_BYTES: Final = 256 * 1024
"""For a connection that takes far more before it says so."""
COPIED_MAX_BYTES: Final = 1024
"""A smaller payload is copied behind its head sooner than it is passed on as a part of its own."""


class Connection(Protocol):
    """A stream transport of asyncio or uvloop."""

    def is_closing(self) -> bool: ...
    def writelines(self, parts: Sequence[Bytes], /) -> None: ...


class Cork:
    """Gathers parts in order. `flush` before the connection is closed: what leaves later, or before there is a
    `connection`, is lost. `gather_max_bytes` may be changed at any time.
    """

    __slots__ = ("_call_soon", "_parts", "_size_bytes", "connection", "gather_max_bytes")

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], Any], gather_max_bytes: int = GATHER_MAX_BYTES
    ) -> None:
        self.connection: Connection | None = None
        self._call_soon = call_soon
        self.gather_max_bytes = gather_max_bytes
        self._parts: list[Bytes] = []
        self._size_bytes = 0

    def write(self, head: Bytes, payload: Bytes = b"") -> None:
        """Add a frame."""
        parts = self._parts
        if not parts:
            self._call_soon(self.flush)
        size = len(payload)
        if not size:
            parts.append(head)
        elif size <= COPIED_MAX_BYTES:
            parts.append(b"".join((head, payload)))
        else:
            parts += (head, payload)
        self._size_bytes += len(head) + size
        if self._size_bytes >= self.gather_max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        parts, connection = self._parts, self.connection
        if not parts:
            return
        self._parts, self._size_bytes = [], 0
        if connection is None or connection.is_closing():
            return
        try:
            connection.writelines(parts)
        except RuntimeError:  # uvloop raises when the transport closed in this very turn
            return
