"""Leases of reserved devices: how they end, move and rotate, and what their usernames say. No store."""

from dataclasses import replace

import pytest

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool.leases import (
    IDLE_DEFAULT_S,
    IDLE_MAX_S,
    IDLE_MIN_S,
    MODES,
    MOVE_AFTER_MS,
    Fate,
    Lease,
    fate_of,
    idle_of,
    is_due_to_rotate,
    lease_percent_of,
    locked_to,
)
from shared.pool.model import Failover, Rotation
from shared.pool.ports import Hold
from shared.pool.rotation import ERROR_MAX_CHARS, printable
from shared.pool.username import parse_username, read_country

NOW = 1_800_000_000_000
LEASE = Lease(
    lease_id="l123456789ab",
    pak_id=PakId("p1"),
    account_id=AccountId("psx_a"),
    pool=Pool.PEER,
    country=Country("us"),
    ip_type=IpType.RESIDENTIAL,
    carrier="lab",
    failover=Failover.SAME_COUNTRY,
    idle_s=600,
    endpoint_id=EndpointId("d1"),
    created_at_ms=NOW,
    expires_at_ms=NOW + 600_000,
)
HOLD = Hold(EndpointId("d1"), NOW + 600_000, 0, 0)


def test_the_gateway_reads_in_the_username_what_was_asked_for() -> None:
    route = parse_username(LEASE.username())
    assert (route.pin, route.pools, route.country) == (("lease", "l123456789ab"), (Pool.PEER,), "us")
    assert (route.ip_type, route.carrier, route.failover) == (
        IpType.RESIDENTIAL,
        "lab",
        Failover.SAME_COUNTRY,
    )
    assert route.corrections == ()
    bare = parse_username(replace(LEASE, country=None, ip_type=None, carrier="").username())
    assert (bare.country, bare.ip_type, bare.carrier, bare.corrections) == (None, None, None, ())


def away(ms: int) -> Hold:
    return replace(HOLD, away_since_ms=NOW - ms)


@pytest.mark.parametrize(
    ("lease", "hold", "at_ms", "fate"),
    [
        (LEASE, HOLD, NOW, Fate.STAYS),
        (LEASE, HOLD, NOW + 599_999, Fate.STAYS),
        (LEASE, HOLD, NOW + 600_000, Fate.IDLE),
        (LEASE, replace(HOLD, expires_at_ms=NOW + 900_000), NOW + 600_000, Fate.STAYS),
        (replace(LEASE, expires_at_ms=NOW + 900_000), HOLD, NOW + 600_000, Fate.STAYS),
        (LEASE, None, NOW, Fate.LOST),
        (LEASE, None, NOW + 600_000, Fate.IDLE),
        (LEASE, away(MOVE_AFTER_MS - 1), NOW, Fate.STAYS),
        (LEASE, away(MOVE_AFTER_MS), NOW, Fate.AWAY),
        (replace(LEASE, failover=Failover.ANY), away(MOVE_AFTER_MS), NOW, Fate.AWAY),
        (replace(LEASE, failover=Failover.STRICT), away(MOVE_AFTER_MS), NOW, Fate.STAYS),
        (replace(LEASE, failover=Failover.SAME_NODE), away(MOVE_AFTER_MS), NOW, Fate.STAYS),
    ],
)
def test_a_lease_ends_when_nothing_used_it_and_moves_when_its_device_stays_away(
    lease: Lease, hold: Hold | None, at_ms: int, fate: Fate
) -> None:
    assert fate_of(lease, hold, at_ms) is fate


@pytest.mark.parametrize(("failover", "hard"), [(f, f in {"samecarrier", "strict"}) for f in Failover])
def test_a_carrier_is_a_wish_unless_the_failover_holds_it(failover: Failover, hard: bool) -> None:
    lease = replace(LEASE, failover=failover)
    assert lease.wish(best=True).carrier == "lab"
    assert lease.wish().carrier == ("lab" if hard else "")


def test_leases_hold_half_of_what_may_be_held_unless_there_is_no_floor() -> None:
    assert [lease_percent_of(setting) for setting in ({}, {"share_percent": 80}, {"share_percent": 100})] == [
        25,
        40,
        100,
    ]


def test_idle_times_are_kept_within_their_bounds() -> None:
    asked = (None, 0, IDLE_MIN_S, 3600, IDLE_MAX_S, IDLE_MAX_S + 1)
    expected = [IDLE_DEFAULT_S, IDLE_MIN_S, IDLE_MIN_S, 3600, IDLE_MAX_S, IDLE_MAX_S]
    assert [idle_of(s) for s in asked] == expected
    assert IDLE_MAX_S == 12 * 3600


@pytest.mark.parametrize(
    ("asked", "locked", "safe", "pools", "ip_type"),
    [
        (None, "", False, (Pool.MBL, Pool.PEER), None),
        (IpType.MOBILE, "", False, (Pool.MBL, Pool.PEER), IpType.MOBILE),
        (None, "", True, (Pool.MBL,), None),
        (IpType.RESIDENTIAL, "", True, (Pool.MBL,), IpType.RESIDENTIAL),
        (None, "residential", True, (Pool.PEER,), IpType.RESIDENTIAL),
        (IpType.RESIDENTIAL, "residential", False, (Pool.PEER,), IpType.RESIDENTIAL),
        (IpType.MOBILE, "residential", False, (), IpType.RESIDENTIAL),
    ],
)
def test_a_lease_never_leaves_what_its_key_is_locked_to(
    asked: IpType | None, locked: str, safe: bool, pools: tuple[Pool, ...], ip_type: IpType | None
) -> None:
    assert locked_to(asked, locked, modems_only=safe) == (pools, ip_type)


def test_a_lease_rotates_by_itself_in_its_own_time_and_a_modem_never() -> None:
    every5 = replace(LEASE, rotation=MODES["auto5"])
    assert [is_due_to_rotate(every5, NOW + ms) for ms in (299_999, 300_000)] == [False, True]
    assert not is_due_to_rotate(replace(every5, rotated_at_ms=NOW + 300_000), NOW + 599_999)
    assert not is_due_to_rotate(replace(every5, pool=Pool.MBL), NOW + 10**9)
    assert not is_due_to_rotate(LEASE, NOW + 10**9)


def test_modes_have_the_words_of_the_grammar_and_staying_is_one_of_them_under_several_names() -> None:
    assert MODES.keys() >= {mode.value for mode in Rotation}
    assert {MODES[name] for name in ("ondemand", "sticky", "hard", "manual")} == {Rotation.ON_DEMAND}


@pytest.mark.parametrize(("text", "country"), [("us", "us"), ("uk", "gb"), ("usa", "us"), ("any", None)])
def test_countries_are_read_as_in_usernames(text: str, country: str | None) -> None:
    assert read_country(text) == country


@pytest.mark.parametrize("text", ["usx", "u", "1a", "u-s"])
def test_what_is_no_country_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="country"):
        read_country(text)


def test_a_devices_words_are_shown_short_and_printable() -> None:
    assert printable("a\n\x1b[31m\u202eb") == "a??[31m?b"
    assert len(printable("x" * 10_000)) == ERROR_MAX_CHARS
