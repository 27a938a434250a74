"""What the windows of a gateway's tunnels may grow by, and whose they are.

No customer may hold more than an eighth of what is left: who holds much stops growing first, and whoever comes finds room.
Source: decision 0100.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakValueDictionary

from shared.wire.stream import WindowBudget

WINDOWS_MAX_BYTES: Final = 1024 * 1024 * 1024
"""Of all together, beyond where windows start."""
OF_WHAT_IS_LEFT: Final = 8


class WindowShare:
    """One customer's part. What it holds counts for all of its tunnels here."""

    __slots__ = ("__weakref__", "_whole", "held_bytes")

    def __init__(self, whole: WindowBudget) -> None:
        self._whole = whole
        self.held_bytes = 0

    def draw(self, size: int) -> bool:
        """Take from the whole; False when this customer would hold too much of it then."""
        if size and (self.held_bytes + size) * OF_WHAT_IS_LEFT > self._whole.left_bytes:
            return False
        self.held_bytes += size
        return self._whole.draw(size)

    def give_back(self, size: int) -> None:
        """A window rests, or its stream is over."""
        self.held_bytes -= size
        self._whole.give_back(size)


class Windows:
    """All of a gateway's."""

    def __init__(self, max_bytes: int = WINDOWS_MAX_BYTES) -> None:
        self._whole = WindowBudget(max_bytes)
        self._shares: WeakValueDictionary[str, WindowShare] = WeakValueDictionary()

    def share(self, owner: str) -> WindowShare:
        """A customer's. It is the same one as long as any of the customer's tunnels has it."""
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = WindowShare(self._whole)
        return share
