"""Devices held for leases and ports, on a real server: alone or together, until when, never the last of a country."""

import time
from dataclasses import replace
from typing import Any

import pytest

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool import live, numbers
from shared.pool.model import (
    Acquired,
    NoStock,
    NoStockReason,
)
from shared.pool.ports import (
    LAST_KEPT_PERCENT,
    Hold,
    Idle,
    PortWish,
    could_hold,
    hold_port,
    let_go,
    tend_holds,
)
from shared.pool.presence import (
    put_presence,
)
from shared.runtime.redis import SyncRedis, command
from tests.support.pool import GATEWAY, NOW, PAK, modem, peer, pin, presence, run, taken

pytestmark = pytest.mark.slow
FAR = 1 << 52
LEASE = "l1234567890"
ALONE = PortWish(Pool.MBL, Country("us"), "", "", private=True)
TOGETHER = PortWish(Pool.MBL, Country("us"), "", "", private=False)
IDLE = Idle(600_000, 300_000)


def hold(
    redis: SyncRedis,
    lease: str = LEASE,
    wish: PortWish = ALONE,
    until: int = FAR,
    now: int = NOW,
    **more: Any,
) -> str | None:
    """The device that a lease of `psx_a` holds by then."""
    call = hold_port(wish, lease, AccountId("psx_a"), PAK, until, now, **more)
    return redis.run(call)


def test_a_private_lease_keeps_everybody_else_away(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(2)))
    mine = hold(redis)
    (other,) = {"m0", "m1"} - {mine}
    assert hold(redis, "lother67890") == other
    assert hold(redis, "lthird67890") is None
    run(redis, let_go(Pool.MBL, "lother67890"))
    assert {taken(redis, "psx_b-mbl-us") for _ in range(5)} == {other}
    leased = pin(redis, f"psx_a-mbl-us-pin-lease-{LEASE}")
    assert isinstance(leased, Acquired)
    assert leased.endpoint.endpoint_id == mine
    for stranger, pak in (("psx_b", PAK), ("psx_a", PakId("another-key"))):
        stolen = pin(redis, f"{stranger}-mbl-us-pin-lease-{LEASE}", pak=pak)
        assert isinstance(stolen, NoStock)
        assert stolen.reason is NoStockReason.LEASE


def test_looking_for_a_device_says_what_holding_would_and_holds_nothing(redis: SyncRedis) -> None:
    def free(wish: PortWish, share_percent: int = 100) -> bool:
        return redis.run(could_hold(wish, NOW, share_percent))

    assert not free(ALONE)
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(2)))
    elsewhere = replace(ALONE, country=Country("de"))
    for _ in range(3):
        assert (free(ALONE), free(ALONE, 50), free(TOGETHER), free(elsewhere)) == (True, True, True, False)
    held = hold(redis)
    assert (free(ALONE), free(ALONE, 50), free(TOGETHER, 50)) == (True, False, True)
    counted = numbers.run(redis, numbers.derive())
    assert (counted.stock_of(Pool.MBL), counted.held["mbl"]) == ({"us": 1}, {"us": 1})
    assert hold(redis, "lother67890", share_percent=50) is None
    assert hold(redis, share_percent=50) == held, "what is held already is held again"
    assert hold(redis, "lother67890") != held
    assert (free(ALONE), free(TOGETHER)) == (False, False)
    assert not numbers.run(redis, numbers.derive()).is_free(Pool.MBL, None)


def test_holds_that_move_take_no_countrys_last_device(redis: SyncRedis) -> None:
    real, own = ([EndpointId(f"{kind}{n}") for n in range(2)] for kind in ("real", "own"))
    run(redis, *(live.list_endpoint(modem(name)) for name in (*real, *own)))
    held = [hold(redis, f"lease{n}67890", share_percent=50, excluded=real) for n in range(2)]
    assert set(held) == set(own)
    run(redis, *(live.unlist_endpoint(Pool.MBL, name) for name in own))
    moved = [hold(redis, f"lease{n}67890", excluded=own, share_percent=LAST_KEPT_PERCENT) for n in range(2)]
    assert (moved[0] in real, moved[1]) == (True, None)
    assert redis.run(could_hold(TOGETHER, NOW, 50)), "the last one is everybody's"


def test_peers_are_for_sale_while_they_are_on_a_relay(redis: SyncRedis) -> None:
    def free(ip_type: str) -> bool:
        return numbers.run(redis, numbers.derive()).is_free(Pool.PEER, Country("us"), ip_type)

    run(redis, live.list_endpoint(peer("d1")))
    assert not free("mobile")
    run(redis, put_presence(presence("d1")))
    assert (free("mobile"), free(""), free("residential")) == (True, True, False)
    assert hold(redis, wish=PortWish(Pool.PEER, Country("us"), "", "", private=True)) == "d1"
    assert not free("mobile")


def test_a_lease_that_is_released_fails_closed_and_one_that_moved_goes_along(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(2)))
    first = EndpointId(hold(redis) or "")
    second = hold(redis, excluded=(first,))
    assert {first, second} == {"m0", "m1"}
    assert taken(redis, f"psx_a-mbl-us-pin-lease-{LEASE}") == second
    assert taken(redis, "psx_b-mbl-us", excluded=(str(second),)) == first, "what it left is free again"
    assert redis.run(let_go(Pool.MBL, LEASE))
    assert not redis.run(let_go(Pool.MBL, LEASE))
    gone = pin(redis, f"psx_a-mbl-us-pin-lease-{LEASE}")
    assert isinstance(gone, NoStock)
    assert gone.reason is NoStockReason.LEASE


def test_a_device_that_comes_back_on_sale_is_still_held_alone(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m0")))
    assert hold(redis) == "m0"
    run(redis, live.unlist_endpoint(Pool.MBL, EndpointId("m0")), live.list_endpoint(modem("m0")))
    assert isinstance(pin(redis, "psx_b-mbl-us"), NoStock)
    assert taken(redis, f"psx_a-mbl-us-pin-lease-{LEASE}") == "m0"


def test_a_port_that_ends_sooner_does_not_end_the_count_of_one_that_ends_later(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m0")))
    now = int(time.time() * 1000)
    assert hold(redis, "llater67890", TOGETHER, until=now + 3_600_000, now=now) == "m0"
    assert hold(redis, "lsooner7890", TOGETHER, until=now + 60_000, now=now) == "m0"
    left = redis.run(command("PTTL", "{mbl}:ports:m0", parse=int))
    assert left > 600_000


def test_a_lost_hold_is_put_back_on_its_device_on_sale_or_not_unless_another_has_it(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    assert hold(redis, first=EndpointId("m0")) == "m0", "it was the lease's before, and is away now"
    assert hold(redis, "lother67890", first=EndpointId("m0")) == "m1"


def test_a_peer_is_held_only_while_it_is_there_and_of_the_type_that_was_asked_for(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(peer(f"d{n}")) for n in range(2)), put_presence(presence("d1")))
    wish = PortWish(Pool.PEER, Country("us"), "", "", private=True, ip_type=IpType.MOBILE)
    assert hold(redis, wish=replace(wish, ip_type=IpType.DATACENTER)) is None
    assert hold(redis, wish=wish) == "d1"
    assert hold(redis, "lother67890", wish) is None, "the other one is on no relay"


def test_an_idle_lease_ends_and_one_that_is_used_goes_on(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m0")))
    hold(redis, until=NOW + 600_000, idle=IDLE)
    username = f"psx_a-mbl-us-pin-lease-{LEASE}"
    used = pin(redis, username, now=NOW + 500_000)
    assert isinstance(used, Acquired)
    (held,) = redis.run(tend_holds(Pool.MBL, [LEASE], NOW + 1_050_000))
    assert held == Hold(EndpointId("m0"), NOW + 1_650_000, NOW + 1_050_000, 0), "a connection is open"
    run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId("m0"), PAK, 1)]))
    (held,) = redis.run(tend_holds(Pool.MBL, [LEASE], NOW + 1_100_000))
    assert held is not None
    assert held.expires_at_ms == NOW + 1_650_000
    late = pin(redis, username, now=NOW + 1_650_000)
    assert isinstance(late, NoStock)
    assert late.reason is NoStockReason.LEASE


def test_holds_tell_which_are_lost_and_since_when_a_device_is_away(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m0")))
    hold(redis, idle=IDLE)
    away: Any = live.unlist_endpoint(Pool.MBL, EndpointId("m0"))
    run(redis, away)
    for now in (NOW + 1, NOW + 2):
        held, lost = redis.run(tend_holds(Pool.MBL, [LEASE, "lunknown890"], now))
        assert held is not None
        assert (held.away_since_ms, lost) == (NOW + 1, None)
    run(redis, live.list_endpoint(modem("m0")))
    (back,) = redis.run(tend_holds(Pool.MBL, [LEASE], NOW + 3))
    assert back is not None
    assert back.away_since_ms == 0
