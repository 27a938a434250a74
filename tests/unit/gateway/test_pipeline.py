"""What a key is locked to, whatever its username says; what a customer is told when there is no exit for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_node import attempts as attempts_module
from gateway_node import links, tries
from gateway_node.attempts import Attempts
from gateway_node.buyer import Buyers, lock_quality
from gateway_node.dial import ExitDialer
from gateway_node.links import RelayLinks
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Target
from gateway_node.stream_exit import LinkRefused, RelayAway
from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool, Refusal, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId
from shared.pool.live import SESSIONS_MAX
from shared.pool.model import Acquired, Endpoint, NoStock, NoStockReason, Selected
from shared.pool.username import parse_username
from shared.runtime.deadlines import Deadlines
from shared.wire import mux
from shared.wire.mux import MuxReason
from tests.unit.gateway.test_front import turns

PAK = Pak(PakId("k"), AccountId("a"), "", "h", "", None, 0, True, None, None, Quality.STANDARD, True, 0, 0)
ENDPOINT = Endpoint(
    EndpointId("e"), Pool.PEER, AccountId("o"), Country("us"), "", 1, "", IpType.MOBILE, SpeedTier.FAST
)
USERNAMES = [
    f"psx_a-{pool}-us{tail}"
    for pool in ("mbl", "peer", "any", "best", "residential", "nonsense")
    for tail in ("", "-iptype-residential", "-pin-device-d1", "-failover-any", "-rot-sticky-sid-s")
]


@pytest.mark.parametrize("username", USERNAMES)
def test_a_safe_key_leaves_modems_for_no_username(username: str) -> None:
    route = parse_username(username)
    locked = lock_quality(route, replace(PAK, quality=Quality.SAFE))
    assert locked == replace(route, pools=(Pool.MBL,))
    assert lock_quality(route, PAK) == route


@pytest.mark.parametrize("username", USERNAMES)
def test_a_key_of_a_peer_tier_leaves_its_class_for_no_username(username: str) -> None:
    locked = lock_quality(parse_username(username), replace(PAK, ip_type=IpType.MOBILE.value))
    assert (locked.pools, locked.ip_type) == ((Pool.PEER,), IpType.MOBILE)


class Told:
    """Leases that have exits for ever, and hear what is said of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.taken = 0

    async def pools_of(self, route: Any, pak_id: Any) -> tuple[Pool, ...]:
        return (Pool.PEER,)

    async def acquire(self, *_: Any, **__: Any) -> Acquired:
        self.taken += 1
        endpoint = replace(ENDPOINT, endpoint_id=EndpointId(f"e{self.taken}"))
        return Acquired(endpoint, "", 0, mux.PROTOCOL, "", Selected.FRESH)

    def give_back(self, *_: Any) -> None:
        self.taken_back = True

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.said.append(name)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (LinkRefused(MuxReason.OVERLOADED), set()),
        (LinkRefused(MuxReason.DRAINING), set()),
        (LinkRefused(MuxReason.TOO_MANY_TUNNELS), set()),
        (RelayAway("TimeoutError"), set()),
        (LinkRefused(MuxReason.UNKNOWN), {"report"}),
    ],
)
async def test_what_a_relay_says_of_itself_is_held_against_no_exit(
    failure: Exception, said: set[str]
) -> None:
    leases, nothing = Told(), cast(Any, None)

    class Links:
        away = ()

        async def open(self, *_: Any) -> None:
            raise failure

    dialer = ExitDialer("", nothing, cast(Any, Links()))
    target = Target("a.example", "192.0.2.9", 443)
    resolver = cast(Any, SimpleNamespace(away_from=lambda exits, target: target))
    places = SimpleNamespace(has_many=lambda owner: False)
    tunnels = cast(Any, SimpleNamespace(places=places, fared=lambda *_: leases.said.append("fared")))
    attempts = Attempts(resolver, cast(Any, leases), dialer, tunnels, Deadlines(), lambda: 0)
    buyer = Buyers(AccountId("house")).of("psx_a-peer-us", parse_username("psx_a-peer-us"), PAK)
    refused = await attempts.reach(buyer, target, "r")
    assert isinstance(refused, RefusedRequest)
    assert refused.code is Refusal.STOCK_DEGRADED
    assert set(leases.said) - {"fared"} == said
    assert ("fared" in leases.said) is bool(said)


async def test_a_relay_that_cannot_be_reached_is_waited_for_once_and_tried_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "AWAY_S", 0.0)
    loop, tried = asyncio.get_running_loop(), list[asyncio.Future[Any]]()

    async def silent(*_: Any) -> Any:
        tried.append(loop.create_future())
        await tried[-1]

    monkeypatch.setattr(type(loop), "create_connection", silent)
    here = RelayLinks("", cast(Any, None), cast(Any, None))

    def asks() -> asyncio.Task[Any]:
        return loop.create_task(here.open(DeviceId("d"), ("relay1", 1), "a.example", 443, "o"))

    first = [asks(), asks()]
    await turns()
    assert (len(tried), [task.done() for task in first]) == (1, [False, False])
    tried[0].set_exception(TimeoutError())
    await turns()
    later = [asks() for _ in range(3)]
    await turns()
    assert len(tried) == 2, "one tries again,"
    for task in (*first, *later):
        assert isinstance(task.exception(), RelayAway), "and nobody waits for it"
    here.close()
    await turns()


async def test_exits_of_a_relay_are_left_out_while_it_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, tried = asyncio.get_running_loop(), list[asyncio.Future[Any]]()

    async def silent(*_: Any) -> Any:
        tried.append(loop.create_future())
        await tried[-1]

    monkeypatch.setattr(type(loop), "create_connection", silent)
    here = RelayLinks("", cast(Any, None), cast(Any, None))

    async def asks() -> None:
        task = loop.create_task(here.open(DeviceId("d"), ("relay1", 1), "a.example", 443, "o"))
        await turns()
        told.append(here.away)
        if len(tried) == 1:
            tried[0].set_exception(TimeoutError())
            await turns()
            told.append(here.away)
        assert isinstance(task.exception(), RelayAway)

    told = list[Sequence[str]]()
    await asks()
    assert told == [(), ("relay1:1",)], "not before it is known"
    here._again_s["relay1", 1] = 0.0
    assert here.away == (), "or nobody would ever ask for it again"
    await asks()
    assert told[-1] == ("relay1:1",), "and nobody else waits while it is tried"
    here.close()
    await turns()


async def test_who_finds_only_exits_of_relays_that_are_not_reached_waits_and_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts_module, "MOVING_RETRY_S", 0.0)
    monkeypatch.setattr(tries, "MOVING_RETRY_S", 0.0)
    asked = list[tuple[str, ...]]()

    class Absent(Told):
        async def acquire(self, *_: Any, away: tuple[str, ...], **__: Any) -> Any:
            asked.append(away)
            return NoStock(0, NoStockReason.ABSENT)

    nothing, places = cast(Any, None), SimpleNamespace(has_many=lambda owner: False)
    dialer = ExitDialer("", nothing, cast(Any, SimpleNamespace(away=("relay1:1",))))
    tunnels = cast(Any, SimpleNamespace(places=places))
    attempts = Attempts(nothing, cast(Any, Absent()), dialer, tunnels, Deadlines(), lambda: 0)
    buyer = Buyers(AccountId("house")).of("psx_a-peer-us", parse_username("psx_a-peer-us"), PAK)
    refused = await attempts.reach(buyer, Target("a.example", "192.0.2.9", 443), "r")
    assert isinstance(refused, RefusedRequest)
    assert refused.code is Refusal.STOCK_DEGRADED
    assert asked == [("relay1:1",)] * (tries.MOVING_RETRIES_MAX + 1)


@pytest.mark.parametrize(
    ("reason", "code", "says"),
    [
        (NoStockReason.SESSIONS, Refusal.SESSION_LIMIT, f"more than {SESSIONS_MAX} sessions"),
        (NoStockReason.LEASE, Refusal.NO_STOCK, "lease"),
        (NoStockReason.UNUSABLE, Refusal.NO_STOCK, "unusable value for asn"),
    ],
)
async def test_a_customer_is_told_why_it_gets_no_exit(
    reason: NoStockReason, code: Refusal, says: str
) -> None:
    nothing = cast(Any, None)
    attempts = Attempts(nothing, nothing, nothing, nothing, nothing, lambda: 0)
    refused = await attempts.no_stock(parse_username("psx_a-peer-us-asn-none"), reason)
    assert refused.code is code
    assert says in refused.message
