"""The one place that reads the wall clock and the random source for the rooms, which take both as arguments."""

import secrets
import time

from shared.kernel.ids import UnixMs


def now_ms() -> UnixMs:
    """Unix time in milliseconds."""
    return UnixMs(time.time_ns() // 1_000_000)


def random_bytes(size: int) -> bytes:
    """Fresh random bytes."""
    return secrets.token_bytes(size)


def new_id(size_bytes: int = 12) -> str:
    """A fresh random id in lower-case hex, twice `size_bytes` long."""
    return secrets.token_hex(size_bytes)
