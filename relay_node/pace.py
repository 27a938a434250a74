"""How much peers may say in a second, so that neither one nor many of them keep a relay busy. Source: decisions 0097, 0101.

Registrations cost something, accounts do not: who sends is counted by account and by address.
"""

from __future__ import annotations

from typing import Final

RELAY_FRAMES_PER_S: Final = 100_000
"""Of all peers: two thirds of a core in small frames of data."""
FRAMES_PER_S_SURE: Final = 256
"""Of a device, whatever others do: 16 MB in full frames."""
OF_WHAT_IS_LEFT: Final = 4
"""Beyond that, devices of one account, or of one address, may have a quarter of what a second has left after others and
themselves: alone 20,000."""


class Pace:
    """The frames of this second, by who sent them. Dialling again gives nobody more."""

    __slots__ = ("_accounts", "_devices", "_left", "_networks", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._left = RELAY_FRAMES_PER_S
        self._devices: dict[str, int] = {}
        self._accounts: dict[str, int] = {}
        self._networks: dict[str, int] = {}

    def spend(self, device_id: str, account_id: str, network: str, frames: int, now_s: float) -> float:
        """Count frames that a device sent; for how many seconds nothing more is read of it, because it sent too many."""
        second = int(now_s)
        if second != self._second:
            self._second, self._left = second, RELAY_FRAMES_PER_S
            for sent in (self._devices, self._accounts, self._networks):
                sent.clear()
        self._left -= frames
        sent = self._devices
        of_device = sent[device_id] = sent.get(device_id, 0) + frames
        if of_device <= FRAMES_PER_S_SURE:
            return 0.0
        beyond = min(frames, of_device - FRAMES_PER_S_SURE)
        together = max(
            _add(self._accounts, account_id, beyond),
            _add(self._networks, network, beyond),
        )
        return second + 1 - now_s if together * OF_WHAT_IS_LEFT > self._left else 0.0


def _add(sent: dict[str, int], name: str, frames: int) -> int:
    sent[name] = total = sent.get(name, 0) + frames
    return total
