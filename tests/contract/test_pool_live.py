"""The live pool on a real server: listing, selection, sessions, pins, stock."""

import pytest

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId, RelayId, pin_id
from shared.pool import live, numbers
from shared.pool.model import (
    Acquired,
    NoStock,
    NoStockReason,
    Selected,
)
from shared.pool.presence import (
    drop_may_serve,
    drop_presences,
    put_may_serve,
    put_presence,
    renew_presence,
)
from shared.runtime.clock import now_ms
from shared.runtime.redis import SyncRedis, command
from tests.support.pool import GATEWAY, NOW, PAK, modem, peer, pin, presence, run, take, taken

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("wish", ["us", "us-rot-sticky-sid-s", "us-pin-device-d1-failover-any"])
def test_peers_of_a_relay_that_is_not_reached_are_left_out_as_if_on_no_relay(
    redis: SyncRedis, wish: str
) -> None:
    for name, port in (("d1", 9000), ("d2", 9000), ("d3", 9001)):
        run(redis, live.list_endpoint(peer(name)), put_presence(presence(name, f"r{port}", port)))
    away = ("127.0.0.1:9000", "127.0.0.1:9009")
    found = [taken(redis, f"psx_a-peer-{wish}", pool=Pool.PEER, away=away) for _ in range(2)]
    assert set(found) == {"d3"}
    none = take(redis, f"psx_a-peer-{wish}", Pool.PEER, away=("127.0.0.1:9001", *away))
    assert isinstance(none, NoStock)
    assert none.reason is NoStockReason.ABSENT


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
    run(redis, live.release(Pool.MBL, GATEWAY, held))
    assert redis.run(live.gateways(Pool.MBL)) == {GATEWAY}
    assert redis.run(live.leftover(Pool.MBL, GATEWAY)) == ()
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
