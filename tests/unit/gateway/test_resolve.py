"""Which address of a target is dialled through which exit."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_node.buyer import Buyer
from gateway_node.pipeline import Pipeline
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Resolver, Target
from shared.kernel.codes import Pool, Refusal
from shared.pool.model import Acquired, Route, Selected
from shared.pool.username import parse_username
from shared.wire.egress import EgressPolicy
from tests.unit.gateway.test_front import ENDPOINT, PAK

LINE, SIX = "91.198.174.192", "2a02:8108:1:2::5"


async def nowhere(host: str) -> list[str]:
    return []


def away(target: Target, *exits: str, lab: str = "") -> Target | RefusedRequest:
    policy = EgressPolicy(lab_allow=frozenset({(lab, target.port)}) if lab else frozenset())
    return Resolver(policy, {}, nowhere).away_from(exits, target)


@pytest.mark.parametrize(
    ("address", "exit_ip"), [(LINE, LINE), (LINE, f"::ffff:{LINE}"), ("2a02:8108:1:2::80", SIX)]
)
def test_no_exit_is_asked_for_its_own_public_address(address: str, exit_ip: str) -> None:
    refused = away(Target(address, address, 80), exit_ip, "")
    assert isinstance(refused, RefusedRequest)
    assert refused.code is Refusal.SSRF_BLOCKED


def test_a_name_is_reached_at_an_address_that_is_not_the_exit_s() -> None:
    target = Target("both.example", LINE, 80, (SIX, "1.1.1.1"))
    assert away(target, LINE, SIX) == Target("both.example", "1.1.1.1", 80, (SIX, "1.1.1.1"))
    assert away(target, "8.8.8.8", "modem.example") is target
    assert isinstance(away(Target("home.example", LINE, 80, (SIX,)), LINE, SIX), RefusedRequest)


def test_the_lab_is_one_address_for_all() -> None:
    target = Target("127.0.0.1", "127.0.0.1", 80)
    assert away(target, "127.0.0.1", lab="127.0.0.1") is target


async def test_a_name_keeps_all_addresses_that_may_be_dialled() -> None:
    async def found(host: str) -> list[str]:
        return ["10.0.0.1", LINE, "1.1.1.1"]

    assert await Resolver(EgressPolicy(), {}, found).resolve("both.example", 80, "o") == Target(
        "both.example", LINE, 80, ("1.1.1.1",)
    )


async def test_a_chosen_exit_is_dialled_for_another_address_or_not_at_all() -> None:
    dialled: list[str] = []
    chosen = Acquired(ENDPOINT, "", 0, "", LINE, Selected.FRESH)

    class Dialer:
        away = ()

        async def open(self, acquired: Acquired, target: Target, *_: str) -> RefusedRequest:
            dialled.append(target.address)
            return RefusedRequest(Refusal.TARGET_TIMEOUT, "")

    class Holds:
        fared = SimpleNamespace(note=lambda *told: None)

        def __init__(self) -> None:
            self.held = 0

        async def pools_of(self, route: Route, *of: object) -> tuple[Pool, ...]:
            return route.pools[:1]

        async def acquire(self, *wanted: object, has_many: bool, away: object) -> Acquired:
            self.held += 1
            return chosen

        def give_back(self, *given: object) -> None:
            self.held -= 1

        def doubt(self, device_id: str) -> None: ...

    parts, leases = cast(Any, SimpleNamespace(has_many=lambda owner: False)), Holds()
    resolver, dialer = Resolver(EgressPolicy(), {}, nowhere), cast(Any, Dialer())
    pipeline = Pipeline(parts, resolver, cast(Any, leases), dialer, parts, parts, lambda: 0)
    buyer = Buyer(PAK, parse_username("psx_a-peer-us"), "psx_a")

    async def answer(target: Target) -> Refusal:
        refused = await pipeline.attempts.reach(buyer, target, "r")
        assert isinstance(refused, RefusedRequest)
        return refused.code

    assert await answer(Target(LINE, LINE, 80)) is Refusal.SSRF_BLOCKED
    assert dialled == []
    assert await answer(Target("both.example", LINE, 80, ("1.1.1.1",))) is Refusal.TARGET_TIMEOUT
    assert dialled == ["1.1.1.1"]
    assert leases.held == 0
