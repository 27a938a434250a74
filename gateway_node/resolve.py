"""Names to addresses that may be dialled: the policy is asked about the name, and again about what it resolved to."""

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache, partial
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from gateway_node.refusals import RefusedRequest
from shared.kernel.codes import Refusal
from shared.wire.egress import EgressPolicy, EgressVerdict, check_address, check_name, own_network

RESOLVE_TIMEOUT_S: Final = 5.0
FRESH_S: Final = 5.0
NAMES_KEPT: Final = 10_000
LOOKUPS_PER_OWNER: Final = 8
"""At once. A lookup counts until name servers have answered or been given up, long after the customer has left."""
SCARCE_LOOKUPS: Final = 512
"""Under way together. From here on each owner begins one at a time: name servers bound what one machine may ask of them,"""
LOOKUPS_MAX: Final = 8192
"""and from here on nobody begins any. Each holds some 4 KB."""

UNANSWERED: Final = f"no name server told the target's address within {RESOLVE_TIMEOUT_S:.0f} s"


class Target(NamedTuple):
    """Where a customer wants to go: as written, and its checked literal address. `others` may be dialled too."""

    host: str
    address: str
    port: int
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `host:port`."""
        return f"{self.host}:{self.port}"


class _Owner:
    """Whose lookups count together."""

    __slots__ = ("__weakref__", "alone", "turns")

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(LOOKUPS_PER_OWNER)
        self.alone = asyncio.Semaphore(1)


class Resolver:
    """Resolves and checks targets. `hosts` are the lab's names, empty anywhere else; `closed` tells of names that
    operators closed; `addresses` finds a name's and never raises."""

    def __init__(
        self,
        policy: EgressPolicy,
        hosts: dict[str, str],
        addresses: Callable[[str], Coroutine[None, None, list[str]]],
        closed: Callable[[str], bool] = lambda host: False,
    ) -> None:
        self._policy = policy
        self._closed = closed
        self._hosts = hosts
        self._addresses = addresses
        self._found: dict[str, tuple[float, list[str]]] = {}
        self._looking: dict[str, asyncio.Task[list[str]]] = {}
        self._owners: WeakValueDictionary[str, _Owner] = WeakValueDictionary()

    async def _lookup(self, host: str, owner: str) -> list[str]:
        """Addresses of a name, remembered for `FRESH_S`: what is dialled is always what was checked. Raises TimeoutError.

        There is one lookup per name however many ask, and each owner has so many at once, fewer when there are many in all:
        names whose server does not answer hold up whoever asks for them, and nobody else.
        """
        found = self._fresh(host)
        if found is not None:
            return found
        asked_by = self._owners.get(owner)
        if asked_by is None:
            asked_by = self._owners[owner] = _Owner()
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            while (looking := self._looking.get(host)) is None:
                turn = asked_by.alone if len(self._looking) >= SCARCE_LOOKUPS else asked_by.turns
                await turn.acquire()
                found = self._fresh(host)
                if found is None and host not in self._looking:
                    if len(self._looking) >= LOOKUPS_MAX:
                        turn.release()
                        raise TimeoutError
                    self._look(host, asked_by, turn)
                    continue
                turn.release()  # somebody else asked meanwhile
                if found is not None:
                    return found
            return await asyncio.shield(looking)

    def _fresh(self, host: str) -> list[str] | None:
        found = self._found.get(host)
        now_s = asyncio.get_running_loop().time()
        return found[1] if found is not None and now_s - found[0] <= FRESH_S else None

    def _look(self, host: str, owner: _Owner, turn: asyncio.Semaphore) -> None:
        looking = asyncio.get_running_loop().create_task(self._addresses(host))
        self._looking[host] = looking
        looking.add_done_callback(partial(self._looked_up, host, owner, turn))

    def _looked_up(
        self, host: str, owner: _Owner, turn: asyncio.Semaphore, looking: asyncio.Task[list[str]]
    ) -> None:
        """A lookup ended. An owner is known for as long as any of its lookups is under way."""
        del self._looking[host]
        turn.release()
        if looking.cancelled() or looking.exception() is not None:
            return
        if len(self._found) >= NAMES_KEPT:
            self._found.clear()
        self._found[host] = (looking.get_loop().time(), looking.result())

    def closed(self, host: str) -> RefusedRequest | None:
        """Why nobody may go to a name, if operators closed it."""
        if not self._closed(host):
            return None
        return RefusedRequest(Refusal.DOMAIN_BLOCKED, "that domain is not open to anyone here")

    async def resolve(self, host: str, port: int, owner: str) -> Target | RefusedRequest:
        """The target with an address that may be dialled, or why there is none. `owner`: whose lookups count together."""
        if port in self._policy.blocked_ports:
            return RefusedRequest(Refusal.PORT_BLOCKED, f"port {port} is not open to anyone here")
        closed = self.closed(host)
        if closed is not None:
            return closed
        known = self._hosts.get(host.lower().rstrip("."))
        if known is None and not _is_address(host):
            if check_name(host) is not EgressVerdict.ALLOWED:
                return RefusedRequest(Refusal.SSRF_BLOCKED, "that name belongs to a private network")
            try:
                addresses = await self._lookup(host, owner)
            except TimeoutError:
                return RefusedRequest(Refusal.TARGET_DNS, UNANSWERED)
            if not addresses:
                return RefusedRequest(Refusal.TARGET_DNS, "the target's name does not resolve")
        else:
            if check_name(known or host) is not EgressVerdict.ALLOWED:
                return RefusedRequest(
                    Refusal.SSRF_BLOCKED, "an address that hides another one is not allowed"
                )
            addresses = [known or host]
        allowed = [a for a in addresses if check_address(a, port, self._policy) is EgressVerdict.ALLOWED]
        if allowed:
            return Target(host, allowed[0], port, tuple(allowed[1:]))
        return RefusedRequest(Refusal.SSRF_BLOCKED, "the target is in a private, local or reserved network")

    def away_from(self, exits: Iterable[str], target: Target) -> Target | RefusedRequest:
        """The target at an address that is none of the exit's own: from inside, a home's router lets its own line in."""
        own = [network for address in exits if (network := own_network(address)) is not None]
        for address in (target.address, *target.others):
            if check_address(address, target.port, self._policy, own) is EgressVerdict.ALLOWED:
                return target if address == target.address else target._replace(address=address)
        return RefusedRequest(Refusal.SSRF_BLOCKED, "the target is the chosen exit's own network")


@lru_cache(maxsize=4096)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
