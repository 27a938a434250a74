"""Connections without a tunnel, counted by where they come from: nobody can fill the gateway with them."""

from __future__ import annotations

from typing import Final

from shared.access.rules import network_of

WAITING_PER_NETWORK_MAX: Final = 1024
"""Twice what one account may have open at once; several customers may share an address."""


class Lobby:
    """Who waits, per IPv4 address or IPv6 /64. Those that had a tunnel, and may ask for another, rest in one of their own:
    they keep no newcomer out.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """False when too many wait there already; otherwise `leave` has to follow."""
        network = network_of(address)
        waiting = self._waiting.get(network, 0)
        if waiting >= WAITING_PER_NETWORK_MAX:
            return False
        self._waiting[network] = waiting + 1
        return True

    def crowd(self) -> int:
        """How many wait."""
        return sum(self._waiting.values())

    def leave(self, address: str) -> None:
        """One of them got its tunnel, or left."""
        network = network_of(address)
        left = self._waiting[network] - 1
        if left:
            self._waiting[network] = left
        else:
            del self._waiting[network]
