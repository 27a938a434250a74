"""The live pool on a real server: presence, listing, selection, leases, stock."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId, RelayId, pin_id
from shared.pool import live, numbers
from shared.pool.model import (
    Acquired,
    Endpoint,
    NoStock,
    NoStockReason,
    Presence,
    Selected,
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
    Arrival,
    drop_may_serve,
    drop_presences,
    put_may_serve,
    put_presence,
    put_presences,
    read_presence,
    read_presences,
    renew_presence,
    revoke_account,
    revoke_device,
)
from shared.pool.username import parse_username
from shared.runtime.clock import now_ms
from shared.runtime.redis import RedisCall, SyncRedis, command

pytestmark = pytest.mark.slow
GATEWAY = GatewayId("gw1")
PAK = PakId("p1")
NOW = 1_800_000_000_000


@pytest.fixture
def redis(any_valkey_url: str) -> Iterator[SyncRedis]:
    executor = SyncRedis(any_valkey_url)
    yield executor
    executor.close()


def modem(name: str, country: str = "us", **more: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "carrier": "lab_mobile",
        "asn": 64601,
        "isp": "Lab Mobile US",
        "ip_type": IpType.MOBILE,
        "tier": SpeedTier.FAST,
        "modem_host": "127.0.0.1",
        "modem_port": 8000,
        "modem_credentials_sealed": "sealed",
    }
    return Endpoint(
        endpoint_id=EndpointId(name),
        pool=Pool.MBL,
        country=Country(country),
        **{"account_id": AccountId("psx_farm"), **fields, **more},
    )


def peer(name: str, **more: Any) -> Endpoint:
    base = modem(name, modem_host="", modem_port=0, modem_credentials_sealed="", **more)
    return Endpoint(**{**{f: getattr(base, f) for f in Endpoint.__dataclass_fields__}, "pool": Pool.PEER})


def presence(name: str, relay: str = "r1") -> Presence:
    return Presence(
        DeviceId(name), AccountId("psx_farm"), RelayId(relay), "127.0.0.1", 9000, "127.10.1.1", Country("us"),
        IpType.MOBILE, 64601, "Lab", NOW,
    )  # fmt: skip


def run(redis: SyncRedis, *calls: RedisCall[Any]) -> None:
    for call in calls:
        redis.run(call)


def take(
    redis: SyncRedis,
    username: str,
    pool: Pool = Pool.MBL,
    pak: PakId = PAK,
    now: int = NOW,
    excluded: tuple[str, ...] = (),
    has_many: bool = False,
) -> Acquired | NoStock:
    route, others = parse_username(username), [EndpointId(e) for e in excluded]
    return redis.run(live.acquire(route, pool, pak, GATEWAY, now, others, has_many=has_many))


def taken(redis: SyncRedis, username: str, **more: Any) -> str:
    result = take(redis, username, **more)
    assert isinstance(result, Acquired)
    return result.endpoint.endpoint_id


def test_presence_is_read_back_and_dropped_only_by_its_relay(redis: SyncRedis) -> None:
    run(redis, put_presence(presence("d1")))
    assert redis.run(read_presence(DeviceId("d1"))) == presence("d1")
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r2"))) == [False]
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r1"))) == [True]
    assert redis.run(read_presence(DeviceId("d1"))) is None


def test_devices_that_come_and_go_together_are_told_of_together_each_as_itself(redis: SyncRedis) -> None:
    run(redis, *revoke_device(DeviceId("old"), 3))
    run(redis, put_presence(presence("elsewhere", "r2")))
    first = [Arrival(presence("d1")), Arrival(presence("old"), 2), Arrival(presence("D-3"), 1)]
    assert redis.run(put_presences(RelayId("r1"), first)) == [(0, 0), (3, 0), (0, 0)]
    ids = [DeviceId(name) for name in ("d1", "old", "D-3", "elsewhere")]
    found = redis.run(read_presences(ids))
    d3 = replace(presence("D-3"), generation=1)
    assert found == [presence("d1"), None, d3, presence("elsewhere", "r2")]
    assert redis.run(command("GET", f"{{peer}}:pin:{presence('D-3').account_id}:d3", parse=bytes)) == b"D-3"
    assert redis.run(drop_presences(ids, RelayId("r1"))) == [True, False, True, False]
    assert redis.run(read_presences(ids)) == [None, None, None, presence("elsewhere", "r2")]


def test_presence_ends_by_itself(redis: SyncRedis) -> None:
    run(redis, put_presence(presence("d1")))
    assert 0 < redis.run(command("TTL", "{peer}:live:d1", parse=int)) <= 90


def test_an_acquired_modem_comes_with_where_it_listens(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    result = take(redis, "psx_a-mbl-us")
    assert isinstance(result, Acquired)
    assert result.endpoint == modem("m1")
    assert result.selected is Selected.FRESH


def test_a_peer_is_selectable_only_while_it_is_present(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(peer("d1")))
    assert isinstance(take(redis, "psx_a-peer-us", Pool.PEER), NoStock)
    run(redis, put_presence(presence("d1")))
    result = take(redis, "psx_a-peer-us", Pool.PEER)
    assert isinstance(result, Acquired)
    assert (result.mesh_host, result.mesh_port, result.exit_ip) == ("127.0.0.1", 9000, "127.10.1.1")


@pytest.mark.parametrize(
    "wish",
    [
        "us-iptype-residential",
        "us-asn-1",
        "us-isp-nobody",
        "de",
        "us-carrier-other-failover-samecarrier",
        "us-failover-strict-pin-device-other",
    ],
)
def test_hard_wishes_that_nothing_meets_find_nothing(redis: SyncRedis, wish: str) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    assert isinstance(take(redis, f"psx_a-mbl-{wish}"), NoStock)


@pytest.mark.parametrize(
    "wish",
    [
        "us-iptype-mobile",
        "us-asn-64601",
        "us-isp-mobile",
        "any",
        "us-carrier-other",
        "us-carrier-lab_mobile",
        "us-pin-device-m1",
    ],
)
def test_wishes_that_are_met_or_soft_find_the_endpoint(redis: SyncRedis, wish: str) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    assert taken(redis, f"psx_a-mbl-{wish}") == "m1"


def test_caps_hold_for_connections_and_for_customers(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    for pak in ("a", "b", "c"):
        assert taken(redis, "psx_a-mbl-us", pak=PakId(pak)) == "m1"
    assert isinstance(take(redis, "psx_a-mbl-us", pak=PakId("d")), NoStock)
    redis.run(live.release(Pool.MBL, GATEWAY, [(EndpointId("m1"), PakId("a"), 1)]))
    assert [taken(redis, "psx_a-mbl-us", pak=PakId("d"))] == ["m1"]


def test_an_endpoint_carries_its_connections_and_no_more(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    assert [taken(redis, "psx_a-mbl-us") for _ in range(6)] == ["m1"] * 6
    assert isinstance(take(redis, "psx_a-mbl-us"), NoStock)


def test_who_has_many_connections_leaves_the_last_place_to_a_newcomer(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    assert [taken(redis, "psx_a-mbl-us", has_many=True) for _ in range(5)] == ["m1"] * 5
    assert isinstance(take(redis, "psx_a-mbl-us", has_many=True), NoStock)
    assert taken(redis, "psx_a-mbl-us", pak=PakId("b")) == "m1"
    run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId("m1"), PAK, 1)]))
    assert taken(redis, "psx_a-mbl-us", has_many=True) == "m1", "who shares an endpoint may fill it"


def test_an_endpoint_of_one_customer_is_all_of_its(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(peer("d1", tier=SpeedTier.MEDIUM)), put_presence(presence("d1")))
    found = [take(redis, "psx_a-peer-us-rot-sticky-sid-s", Pool.PEER, has_many=True) for _ in range(4)]
    assert [isinstance(one, Acquired) for one in found] == [True, True, True, False]


def test_a_place_on_a_full_endpoint_that_comes_free_is_sold_again(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    for pak in ("a", "b", "c"):
        assert taken(redis, "psx_a-mbl-us", pak=PakId(pak)) == "m1"
    free = command("SMEMBERS", "{mbl}:free:us", parse=lambda found: {one.decode() for one in found})
    assert redis.run(free) == set(), "it has all of its customers"
    run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId("m1"), PakId("c"), 1)]))
    assert redis.run(free) == {"m1"}


def test_giving_back_more_than_is_held_changes_nothing(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    taken(redis, "psx_a-mbl-us")
    held = (EndpointId("m1"), PAK, 5)
    run(redis, live.release(Pool.MBL, GATEWAY, [held, held]))
    assert redis.run(command("EXISTS", "{mbl}:load:m1", parse=int)) == 0
    assert [taken(redis, "psx_a-mbl-us") for _ in range(6)] == ["m1"] * 6


def test_a_sticky_session_keeps_its_device(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(6)))
    first = taken(redis, "psx_a-mbl-us-sid-x-rot-sticky")
    again = [take(redis, "psx_a-mbl-us-sid-x-rot-sticky", now=NOW + 10**7) for _ in range(4)]
    assert {a.endpoint.endpoint_id for a in again if isinstance(a, Acquired)} == {first}
    assert all(isinstance(a, Acquired) and a.selected is Selected.SESSION for a in again)


def test_sessions_of_two_keys_are_not_one(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    taken(redis, "psx_a-mbl-us-sid-x-rot-sticky", pak=PakId("a"))
    second = take(redis, "psx_a-mbl-us-sid-x-rot-sticky", pak=PakId("b"))
    assert isinstance(second, Acquired)
    assert second.selected is Selected.FRESH


def test_a_session_changes_its_device_when_its_window_is_over(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(2)))
    first = taken(redis, "psx_a-mbl-us-sid-x-rot-auto5")
    assert taken(redis, "psx_a-mbl-us-sid-x-rot-auto5", now=NOW + 299_999) == first
    assert taken(redis, "psx_a-mbl-us-sid-x-rot-auto5", now=NOW + 300_000) != first


def test_a_window_that_is_over_keeps_the_only_device_there_is(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    taken(redis, "psx_a-mbl-us-sid-x-rot-auto5")
    assert taken(redis, "psx_a-mbl-us-sid-x-rot-auto5", now=NOW + 400_000) == "m1"


def test_the_life_of_a_session_row_is_fixed_when_it_is_made(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    taken(redis, "psx_a-mbl-us-sid-x-ttl-100")
    taken(redis, "psx_a-mbl-us-sid-x-ttl-9999")
    assert redis.run(command("TTL", "{mbl}:sess:p1:x", parse=int)) <= 100


def test_a_lost_device_is_replaced_unless_the_session_must_keep_it(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(2)))
    first = taken(redis, "psx_a-mbl-us-sid-x-rot-sticky")
    strict = "psx_a-mbl-us-sid-x-rot-sticky-failover-strict"
    run(redis, live.unlist_endpoint(Pool.MBL, EndpointId(first)))
    assert isinstance(take(redis, strict), NoStock)
    assert taken(redis, "psx_a-mbl-us-sid-x-rot-sticky") != first


@pytest.mark.parametrize(
    ("tail", "stands_in"),
    [("", "us2"), ("-failover-samecarrier", "us2"), ("-failover-any", "ge2"), ("-failover-strict", None)],
)
def test_whoever_stands_in_for_a_lost_device_is_in_its_country_unless_any_will_do(
    redis: SyncRedis, tail: str, stands_in: str | None
) -> None:
    run(redis, live.list_endpoint(modem("us1")))
    username = "psx_a-mbl-any-rot-sticky-sid-s" + tail
    assert taken(redis, username) == "us1"
    run(redis, live.unlist_endpoint(Pool.MBL, EndpointId("us1")))
    run(redis, live.list_endpoint(modem("ge2", country="ge")))
    if stands_in == "us2":
        assert isinstance(take(redis, username), NoStock), "nobody of its country is there"
        if "carrier" in tail:
            run(redis, live.list_endpoint(modem("us3", carrier="another")))
            assert isinstance(take(redis, username), NoStock), "nobody of its carrier is there"
        run(redis, live.list_endpoint(modem("us2")))
    found = take(redis, username)
    assert (found.endpoint.endpoint_id if isinstance(found, Acquired) else None) == stands_in


def test_a_session_whose_device_is_full_borrows_another_and_stays_where_it_is(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    username = "psx_a-mbl-us-rot-sticky-sid-s"
    for _ in range(6):
        assert taken(redis, username) == "m1"
    run(redis, live.list_endpoint(modem("m2")))
    assert taken(redis, username) == "m2"
    run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId("m1"), PAK, 1)]))
    assert taken(redis, username) == "m1"


def test_a_device_that_just_failed_is_not_taken_again_for_its_session(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    username = "psx_a-mbl-us-sid-s"
    assert taken(redis, username) == "m1"
    later = NOW + 11 * 60_000
    assert isinstance(take(redis, username, now=later, excluded=("m1",)), NoStock)
    assert taken(redis, username, now=later) == "m1", "a window that is over keeps the only device there is"


def test_a_window_that_is_over_does_not_leave_a_carrier_that_must_stay(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")))
    username = "psx_a-mbl-us-carrier-lab_mobile-failover-samecarrier-sid-s"
    assert taken(redis, username) == "m1"
    run(redis, live.list_endpoint(modem("m2", carrier="another")))
    assert {taken(redis, username, now=NOW + n * 11 * 60_000) for n in range(1, 5)} == {"m1"}


@pytest.mark.parametrize(
    ("isp", "wish", "matches"),
    [("T-Mobile US", "t_mobile", True), ("AT&T", "at_t", True), ("AT&T", "verizon", False)],
)
def test_a_networks_name_matches_by_its_letters(redis: SyncRedis, isp: str, wish: str, matches: bool) -> None:
    run(redis, live.list_endpoint(modem("m1", isp=isp)))
    assert isinstance(take(redis, f"psx_a-mbl-us-isp-{wish}"), Acquired) is matches


def test_excluded_and_paused_endpoints_are_left_out(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(3)))
    run(redis, live.pause(Pool.MBL, EndpointId("m0"), 10))
    assert {taken(redis, "psx_a-mbl-us", excluded=("m1",)) for _ in range(5)} == {"m2"}
    run(redis, live.unpause(Pool.MBL, EndpointId("m0")))
    assert taken(redis, "psx_a-mbl-us", excluded=("m1", "m2")) == "m0"


def test_among_equals_the_choice_is_random(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(3)))
    seen = set()
    for _ in range(60):
        endpoint = taken(redis, "psx_a-mbl-us")
        seen.add(endpoint)
        run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId(endpoint), PAK, 1)]))
    assert seen == {"m0", "m1", "m2"}


def test_a_dead_gateways_connections_are_given_back(redis: SyncRedis) -> None:
    run(redis, live.list_endpoint(modem("m1")), *live.beat(Pool.MBL, GATEWAY))
    assert [taken(redis, "psx_a-mbl-us") for _ in range(6)] == ["m1"] * 6
    assert redis.run(live.leftover(Pool.MBL, GATEWAY)) == ()
    assert redis.run(live.held(Pool.MBL, GATEWAY)) == ((EndpointId("m1"), PAK, 6),)
    run(redis, command("DEL", "{mbl}:alive:gw1", parse=int))
    assert GATEWAY in redis.run(live.gateways(Pool.MBL))
    held = redis.run(live.leftover(Pool.MBL, GATEWAY))
    run(redis, live.release(Pool.MBL, GATEWAY, held), live.forget_gateway(Pool.MBL, GATEWAY))
    assert redis.run(live.gateways(Pool.MBL)) == frozenset()
    assert taken(redis, "psx_a-mbl-us") == "m1"


def test_stock_counts_what_is_listed(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}", "us" if n else "de")) for n in range(3)))
    assert numbers.run(redis, numbers.derive()).stock_of(Pool.MBL) == {"us": 2, "de": 1}
    assert redis.run(live.listed_ids(Pool.MBL)) == {"m0", "m1", "m2"}
    assert redis.run(live.unlist_endpoint(Pool.MBL, EndpointId("m0")))
    assert not redis.run(live.unlist_endpoint(Pool.MBL, EndpointId("m0")))
    assert numbers.run(redis, numbers.derive()).stock_of(Pool.MBL) == {"us": 2}
    _, networks = numbers.run(redis, numbers.networks_of(Pool.MBL, Country("us"), now_ms()))
    assert [(n.asn, n.ip_type, n.count) for n in networks] == [(64601, IpType.MOBILE, 2)]


def test_listing_again_refreshes_and_moves_between_countries(redis: SyncRedis) -> None:
    assert redis.run(live.list_endpoint(modem("m1", "us")))
    assert not redis.run(live.list_endpoint(modem("m1", "de")))
    assert numbers.run(redis, numbers.derive()).stock_of(Pool.MBL) == {"de": 1}
    assert isinstance(take(redis, "psx_a-mbl-us"), NoStock)


def test_a_city_is_preferred_and_not_required(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}", city="austin" if n == 3 else "reno")) for n in range(6)))
    for _ in range(8):
        assert taken(redis, "psx_a-mbl-us-city-austin") == "m3"
        run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId("m3"), PAK, 1)]))
    assert taken(redis, "psx_a-mbl-us-city-austin", excluded=("m3",)) != "m3"


def test_strict_sticky_sessions_want_a_stable_address(redis: SyncRedis) -> None:
    run(
        redis,
        live.list_endpoint(modem("unknown")),
        live.list_endpoint(modem("shaky", stability=39)),
        live.list_endpoint(modem("stable", stability=40)),
    )
    assert {taken(redis, f"psx_a-mbl-us-rot-sticky-strict-sid-s{n}") for n in range(3)} == {"stable"}
    seen = {taken(redis, "psx_a-mbl-us-strict") for _ in range(15)}  # all places that are left
    assert seen == {"unknown", "shaky", "stable"}, "without sticky the flag means nothing"


def test_an_account_has_so_many_sessions_and_no_more(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(3)))
    for number in range(live.SESSIONS_MAX):
        endpoint = taken(redis, f"psx_a-mbl-us-sid-s{number}-ttl-60")
        run(redis, live.release(Pool.MBL, GATEWAY, [(EndpointId(endpoint), PAK, 1)]))
    refused = take(redis, "psx_a-mbl-us-sid-onemore")
    assert isinstance(refused, NoStock)
    assert refused.reason is NoStockReason.SESSIONS
    assert isinstance(take(redis, "psx_a-mbl-us-sid-s7"), Acquired), "a session that stands goes on"
    assert isinstance(take(redis, "psx_a-mbl-us"), Acquired), "a nameless one does not count"
    assert isinstance(take(redis, "psx_b-mbl-us-sid-other"), Acquired), "another account has its own"
    assert isinstance(take(redis, "psx_a-mbl-us-sid-later", now=NOW + 61_000), Acquired)


def pin(redis: SyncRedis, username: str, pool: Pool = Pool.MBL, **more: Any) -> Acquired | NoStock:
    return take(redis, username, pool=pool, **more)


def test_a_port_pin_selects_the_port_and_is_substituted_when_it_is_gone(redis: SyncRedis) -> None:
    run(redis, *(live.list_endpoint(modem(f"m{n}")) for n in range(3)))
    pinned = pin(redis, "psx_a-mbl-us-pin-port-m1")
    assert isinstance(pinned, Acquired)
    assert (pinned.endpoint.endpoint_id, pinned.selected) == ("m1", Selected.PIN)
    run(redis, live.unlist_endpoint(Pool.MBL, EndpointId("m1")))
    instead = pin(redis, "psx_a-mbl-us-pin-port-m1")
    assert isinstance(instead, Acquired)
    assert instead.selected is Selected.INSTEAD_OF_PIN
    assert isinstance(pin(redis, "psx_a-mbl-us-failover-strict-pin-port-m1"), NoStock)


def test_a_device_pin_works_for_its_owner_alone_and_while_unlisted(redis: SyncRedis) -> None:
    username, d1 = "psx_farm-peer-us-failover-strict-pin-device-d1", DeviceId("d1")
    run(redis, put_presence(presence("d1")))
    assert isinstance(pin(redis, username, Pool.PEER), NoStock), "nobody agreed to its serving"
    run(redis, put_may_serve([d1]))
    own = pin(redis, username, Pool.PEER)
    assert isinstance(own, Acquired)
    assert (own.endpoint.endpoint_id, own.endpoint.account_id) == ("d1", "psx_farm")
    assert own.endpoint.ip_type is IpType.UNKNOWN, "no probe saw where it exits"
    assert isinstance(
        pin(redis, "psx_farm-peer-us-iptype-mobile-failover-strict-pin-device-d1", Pool.PEER), NoStock
    )
    run(redis, drop_may_serve([d1]))
    assert isinstance(pin(redis, username, Pool.PEER), NoStock)
    assert isinstance(pin(redis, "psx_a-peer-us-failover-strict-pin-device-d1", Pool.PEER), NoStock)


def test_a_device_whose_id_a_username_cannot_carry_is_pinned_by_its_letters_and_digits(
    redis: SyncRedis,
) -> None:
    ident = "3F2504E0-4F89-11d3:Pixel.7"
    run(redis, put_presence(presence(ident)), put_presence(presence("d1")))
    run(redis, put_may_serve([DeviceId(ident)]))
    assert pin_id(ident) == "3f2504e04f8911d3pixel7"
    assert redis.run(renew_presence([DeviceId(ident), DeviceId("d1")], RelayId("r1"))) == [True, True]
    username = f"peer-us-failover-strict-pin-device-{pin_id(ident)}"
    own = pin(redis, f"psx_farm-{username}", Pool.PEER)
    assert isinstance(own, Acquired)
    assert own.endpoint.endpoint_id == ident
    assert isinstance(pin(redis, f"psx_a-{username}", Pool.PEER), NoStock)
    redis.run(drop_presences([DeviceId(ident)], RelayId("r1")))
    assert isinstance(pin(redis, f"psx_farm-{username}", Pool.PEER), NoStock)


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


def test_the_relay_that_a_device_came_to_last_has_it(redis: SyncRedis) -> None:
    old, new = presence("d1", "r1"), presence("d1", "r2")
    newer = Presence(
        **{**{f: getattr(new, f) for f in Presence.__dataclass_fields__}, "connected_at_ms": NOW + 1}
    )
    run(redis, put_presence(old), put_presence(newer), put_presence(old))
    found = redis.run(read_presence(DeviceId("d1")))
    assert found is not None
    assert found.relay_id == "r2"


def test_a_stranger_on_another_relay_never_has_a_device_that_its_owner_holds(redis: SyncRedis) -> None:
    def comes(relay: str, at_ms: int, *, owned: bool) -> str:
        here = replace(presence("d1", relay), connected_at_ms=at_ms)
        redis.run(put_presences(here.relay_id, [Arrival(here, owned=owned)]))
        found = redis.run(read_presence(DeviceId("d1")))
        assert found is not None
        return found.relay_id

    assert comes("r1", 5, owned=True) == "r1"
    assert comes("r2", 9, owned=False) == "r1"
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r1"))) == [True]
    assert comes("r2", 9, owned=False) == "r2"
    assert comes("r3", 10, owned=False) == "r3", "among strangers the last one has it"
    assert comes("r1", 7, owned=True) == "r1", "an owner need not come later"


def test_a_revoked_generation_is_told_when_a_device_arrives(redis: SyncRedis) -> None:
    assert redis.run(put_presence(presence("d1"))) == (0, 0)
    run(redis, *revoke_device(DeviceId("d1"), 3))
    assert redis.run(put_presence(presence("d1"))) == (3, 0)
    assert redis.run(put_presence(presence("d1"), 3)) == (3, 0)
    run(redis, *revoke_account(presence("d1").account_id, 2))
    run(redis, drop_presences([DeviceId("d1")], RelayId("r1")))
    assert redis.run(put_presence(presence("d1"), 3, 1)) == (3, 2)
    assert redis.run(read_presence(DeviceId("d1"))) is None
    assert redis.run(put_presence(presence("d1"), 3, 2)) == (3, 2)
    assert redis.run(read_presence(DeviceId("d1"))) is not None


@pytest.mark.parametrize("kind", ["device", "port"])
def test_a_pin_does_not_leave_the_ip_type_that_a_key_is_locked_to(redis: SyncRedis, kind: str) -> None:
    """The gateway writes a locked key's type into every route, whatever its username says."""
    run(
        redis, live.list_endpoint(modem("m1", account_id=AccountId("psx_a"))), live.list_endpoint(modem("m2"))
    )
    pinned = pin(redis, f"psx_a-mbl-us-iptype-mobile-pin-{kind}-m1")
    assert isinstance(pinned, Acquired)
    assert pinned.selected is Selected.PIN
    assert isinstance(pin(redis, f"psx_a-mbl-us-iptype-residential-failover-strict-pin-{kind}-m1"), NoStock)
    assert isinstance(pin(redis, f"psx_a-mbl-us-iptype-residential-pin-{kind}-m1"), NoStock)
