"""Names to addresses that may be dialled: the policy is asked about the name, and again about what it resolved to."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from gateway_node.refusals import RefusedRequest
from shared.kernel.codes import Refusal
from shared.wire.egress import EgressPolicy, EgressVerdict, check_address, check_name

RESOLVE_TIMEOUT_S: Final = 5.0
FRESH_S: Final = 5.0
NAMES_KEPT: Final = 10_000
LOOKUP_THREADS: Final = 64
LOOKUPS_MAX: Final = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """Where a customer wants to go: as it was written, and the checked literal address of it."""

    host: str
    address: str
    port: int


class Resolver:
    """Resolves and checks targets. `hosts` are the lab's names, empty anywhere else; `closed` tells of names that
    operators closed."""

    def __init__(
        self, policy: EgressPolicy, hosts: dict[str, str], closed: Callable[[str], bool] = lambda host: False
    ) -> None:
        self._policy = policy
        self._closed = closed
        self._hosts = hosts
        self._found: dict[str, tuple[float, list[str]]] = {}
        self._looking: dict[str, asyncio.Future[list[str]]] = {}
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, "names")

    async def _lookup(self, host: str, port: int) -> list[str]:
        """Addresses of a name, remembered for `FRESH_S`: what is dialled is always what was checked.

        Lookups have threads of their own, one per name however many ask: a name server that does not answer holds up
        those who ask for its names, and nobody else.
        """
        loop = asyncio.get_running_loop()
        found = self._found.get(host)
        if found is not None and loop.time() - found[0] <= FRESH_S:
            return found[1]
        looking = self._looking.get(host)
        if looking is None:
            if len(self._looking) >= LOOKUPS_MAX:
                return []
            looking = loop.run_in_executor(self._threads, _addresses, host, port)
            self._looking[host] = looking
            looking.add_done_callback(partial(self._looked_up, host))
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                return await asyncio.shield(looking)
        except TimeoutError:
            return []

    def _looked_up(self, host: str, looking: asyncio.Future[list[str]]) -> None:
        del self._looking[host]
        if looking.cancelled() or looking.exception() is not None:
            return
        if len(self._found) >= NAMES_KEPT:
            self._found.clear()
        self._found[host] = (looking.get_loop().time(), looking.result())

    async def resolve(self, host: str, port: int) -> Target | RefusedRequest:
        """The target with an address that may be dialled, or why there is none."""
        if port in self._policy.blocked_ports:
            return RefusedRequest(Refusal.PORT_BLOCKED, f"port {port} is not open to anyone here")
        if self._closed(host):
            return RefusedRequest(Refusal.DOMAIN_BLOCKED, "that domain is not open to anyone here")
        known = self._hosts.get(host.lower().rstrip("."))
        if known is None and not _is_address(host):
            if check_name(host) is not EgressVerdict.ALLOWED:
                return RefusedRequest(Refusal.SSRF_BLOCKED, "that name belongs to a private network")
            addresses = await self._lookup(host, port)
            if not addresses:
                return RefusedRequest(Refusal.TARGET_DNS, "the target's name does not resolve")
        else:
            if check_name(known or host) is not EgressVerdict.ALLOWED:
                return RefusedRequest(
                    Refusal.SSRF_BLOCKED, "an address that hides another one is not allowed"
                )
            addresses = [known or host]
        for address in addresses:
            if check_address(address, port, self._policy) is EgressVerdict.ALLOWED:
                return Target(host, address, port)
        return RefusedRequest(Refusal.SSRF_BLOCKED, "the target is in a private, local or reserved network")


@lru_cache(maxsize=4096)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _addresses(host: str, port: int) -> list[str]:
    """Addresses of a name, IPv4 first: not every device has IPv6."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in ordered))
