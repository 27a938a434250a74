"""Which address of a target is dialled through which exit."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_node.dial import ExitDialer
from gateway_node.pipeline import Pipeline
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Resolver, Target
from shared.kernel.codes import Refusal
from shared.pool.model import Acquired, Failover, Selected
from shared.wire.egress import EgressPolicy
from tests.unit.gateway.test_front import ENDPOINT, PAK

LINE, SIX = "91.198.174.192", "2a02:8108:1:2::5"


def away(target: Target, *exits: str, lab: str = "") -> Target | RefusedRequest:
    policy = EgressPolicy(lab_allow=frozenset({(lab, target.port)}) if lab else frozenset())
    return Resolver(policy, {}).away_from(exits, target)


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


async def test_a_name_keeps_all_addresses_that_may_be_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["10.0.0.1", LINE, "1.1.1.1"]
    monkeypatch.setattr("gateway_node.resolve._addresses", lambda host, port: found)
    assert await Resolver(EgressPolicy(), {}).resolve("both.example", 80, "o") == Target(
        "both.example", LINE, 80, ("1.1.1.1",)
    )


async def test_a_chosen_exit_is_dialled_for_another_address_or_not_at_all() -> None:
    dialled: list[Target] = []

    class Dialer:
        async def open(self, acquired: Acquired, target: Target, request_id: str) -> str:
            dialled.append(target)
            return "path"

    async def chooses(*_: Any) -> Acquired:
        return Acquired(ENDPOINT, "", 0, "", LINE, Selected.FRESH)

    async def admits(*_: Any) -> str:
        return "tunnel"

    parts: Any = SimpleNamespace()
    leases: Any = SimpleNamespace(doubt=lambda device_id: None, give_back=lambda *_: None)
    pipeline: Any = Pipeline(
        parts, Resolver(EgressPolicy(), {}), leases, cast(ExitDialer, Dialer()), parts, parts, lambda: 0
    )
    pipeline._acquire, pipeline._admit = chooses, admits
    asked, route = SimpleNamespace(request_id="r"), SimpleNamespace(failover=Failover.ANY)
    refused = await pipeline._through_some_exit(asked, route, PAK, Target(LINE, LINE, 80))
    assert isinstance(refused, RefusedRequest)
    assert (refused.code, dialled) == (Refusal.SSRF_BLOCKED, [])
    target = Target("both.example", LINE, 80, ("1.1.1.1",))
    assert await pipeline._through_some_exit(asked, route, PAK, target) == "tunnel"
    assert [target.address for target in dialled] == ["1.1.1.1"]
