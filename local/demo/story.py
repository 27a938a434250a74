"""What every step shares: the network, what earlier steps found out, checks, and facts that are told at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from local.client import Answer, call
from local.network import LocalNetwork

T = TypeVar("T")
POLL_S: Final = 0.1


class CheckFailed(AssertionError):
    """A step's claim did not hold; the message says which."""


def check(holds: object, claim: str) -> None:
    """Raises CheckFailed unless the claim holds."""
    if not holds:
        raise CheckFailed(claim)


@dataclass
class Story:
    """State of one demo."""

    net: LocalNetwork
    say: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    agent: dict[str, Any] = field(default_factory=dict)
    reseller_key: dict[str, Any] = field(default_factory=dict)
    rolled_up_s: float = 0.0

    def fact(self, name: str, value: Any) -> None:
        """Tell a fact of the current step."""
        self.facts[name] = value

    async def api(
        self,
        path: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: Any = None,
        source: str = "",
    ) -> Answer:
        """One call of the API."""
        return await call(self.net.api_url + path, method, headers, body, source)

    async def until(self, claim: str, look: Callable[[], Awaitable[T | None]], timeout_s: float) -> T:
        """Look again until something is seen; raises CheckFailed with the claim when it never is."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.net.supervisor.check()
            seen = await look()
            if seen:
                return seen
            check(time.monotonic() < deadline, f"{claim} (not within {timeout_s:.0f} s)")
            await asyncio.sleep(POLL_S)

    async def target_connections(self) -> list[dict[str, Any]]:
        """Every connection that the target saw, with raw bytes below TLS."""
        answer = await call(f"http://127.0.0.1:{self.net.ports.target_control}/connections")
        found: list[dict[str, Any]] = answer.body
        return found

    async def device_status(self, name: str) -> dict[str, Any]:
        """A device as its owner sees it."""
        headers = {"X-API-Key": self.net.keys.supplier}
        answer = await self.api(f"/v1/peer/agents/{self.devices[name]}/status", headers=headers)
        check(answer.status == 200, f"status of {name}: {answer.status} {answer.body}")
        status: dict[str, Any] = answer.body
        return status
