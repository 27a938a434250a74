"""How much peers may say in a second, so that neither one nor many of them keep a relay busy. Source: decisions 0097, 0101.

Registrations cost something, accounts do not: who sends is counted by account and by address.
"""

from __future__ import annotations

from typing import Final

RELAY_FRAMES_PER_S: Final = 100_000
"""Of all peers: two thirds of a core in small frames of data."""
FRAMES_PER_S_SURE: Final = 256
"""Of a device, whatever others do: 16 MB in full frames."""
STEP_FRAMES: Final = 64
"""A device is looked at each time that it has sent so many, and when it comes."""
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
            for counted in (self._devices, self._accounts, self._networks):
                counted.clear()
        sent = self._devices
        before = sent.get(device_id, 0)
        sent[device_id] = of_device = before + frames
        steps = of_device // STEP_FRAMES - before // STEP_FRAMES
        if not steps and frames:
            return 0.0
        self._left -= steps * STEP_FRAMES
        if of_device <= FRAMES_PER_S_SURE:
            return 0.0
        for counted, name in ((self._accounts, account_id), (self._networks, network)):
            counted[name] = counted.get(name, 0) + steps * STEP_FRAMES
        together = max(self._accounts[account_id], self._networks[network])
        return second + 1 - now_s if together * OF_WHAT_IS_LEFT > self._left else 0.0
