"""Who asks is worked out once, and again when its key was read again; ids of requests are what customers look for."""

import uuid
from dataclasses import replace

import pytest

from gateway_node.buyer import Buyer, Buyers
from gateway_node.pipeline import new_request_id
from shared.access.model import Quality
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId
from shared.pool.model import Failover
from shared.pool.username import parse_username
from tests.unit.gateway.test_front import PAK

USERNAME = "psx_a-any-us"


def test_a_buyer_is_the_same_until_its_key_is_read_again() -> None:
    buyers, route = Buyers(AccountId("psx_house")), parse_username(USERNAME)
    first = buyers.of(USERNAME, route, PAK)
    assert buyers.of(USERNAME, route, PAK) is first
    locked = buyers.of(USERNAME, route, replace(PAK, quality=Quality.SAFE))
    assert (first.route.pools, locked.route.pools) == ((Pool.MBL, Pool.PEER), (Pool.MBL,))


def test_strangers_of_the_house_account_are_limited_by_key_and_others_by_account() -> None:
    route = parse_username(USERNAME)
    owners = [
        Buyers(AccountId(house)).of(USERNAME, route, PAK).owner for house in (PAK.account_id, "psx_house")
    ]
    assert owners == [PAK.pak_id, PAK.account_id]


def test_no_more_buyers_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_node.buyer.BUYERS_KEPT", 2)
    buyers, route = Buyers(AccountId("")), parse_username(USERNAME)
    first = buyers.of("a", route, PAK)
    assert [buyers.of(name, route, PAK) is first for name in ("a", "b", "a", "c", "a")] == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_what_is_pinned_is_sought_in_every_pool_before_a_stand_in() -> None:
    pinned = Buyer(PAK, parse_username("psx_a-any-us-pin-device-d1"), "a")
    assert [turn.route.failover for turn in pinned.turns()] == [Failover.STRICT, Failover.SAME_COUNTRY]
    alone = Buyer(PAK, parse_username("psx_a-mbl-us-pin-device-d1"), "a")
    assert alone.turns() == (alone,)


def test_a_request_id_is_a_uuid_of_its_own() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all((one.version, one.variant) == (4, uuid.RFC_4122) for one in map(uuid.UUID, ids))
    assert all(str(uuid.UUID(one)) == one for one in ids)
