"""The hours of owners: by the clock on their wall, in their time zone, over midnight and through summer time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.supply.hours import is_open, next_change_ms, parse_hours, span_of
from shared.supply.model import Hours

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham", "America/St_Johns"]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "at", "shares"),
    [
        ("UTC", "2026-11-21T21:59:59", False),
        ("UTC", "2026-11-21T22:00:00", True),
        ("UTC", "2026-11-21T05:59:59", True),
        ("UTC", "2026-11-21T06:00:00", False),
        ("Europe/Berlin", "2026-11-21T21:00:00", True),
        ("Europe/Berlin", "2026-07-21T20:00:00", True),
        ("Europe/Berlin", "2026-07-21T19:59:59", False),
        ("America/New_York", "2026-11-21T21:00:00", False),
        ("Asia/Kolkata", "2026-11-21T16:30:00", True),
    ],
)
def test_a_night_is_a_night_where_the_owner_lives(zone: str, at: str, shares: bool) -> None:
    assert is_open(parse_hours("22:00-06:00", zone), ms(at)) is shares


def test_an_owner_without_hours_always_shares() -> None:
    assert is_open(None, 0)


hours = st.builds(
    lambda begins, length, zone: Hours(begins, (begins + length) % 1440, zone),
    st.integers(0, 1439),
    st.integers(1, 1439),
    st.sampled_from(ZONES),
)


@given(hours, st.integers(ms("2026-01-01T00:00:00"), ms("2027-12-31T00:00:00")), st.floats(0, 1))
def test_nothing_changes_before_the_next_change_and_something_does_then(
    found: Hours, now: int, share: float
) -> None:
    change = next_change_ms(found, now)
    assert now < change <= now + 49 * 3_600_000
    zone, day = ZoneInfo(found.zone), timedelta(days=1)
    moments = [datetime.fromtimestamp(at / 1000, zone) for at in (now, change)]
    if len({(m + d).utcoffset() for m in moments for d in (-day, timedelta(), day)}) > 1:
        return  # a clock is set in these days: the next test
    between = now + int((change - 1 - now) * share)
    assert is_open(found, between) is is_open(found, now)
    assert is_open(found, change) is not is_open(found, now)


@pytest.mark.parametrize(
    ("span", "now", "change"),
    [
        (
            "22:00-06:00",
            "2026-03-28T21:30:00",
            "2026-03-29T04:00:00",
        ),  # the clock skips an hour: one hour earlier
        ("22:00-06:00", "2026-10-24T20:30:00", "2026-10-25T05:00:00"),
        ("02:30-04:00", "2026-10-25T00:00:00", "2026-10-25T00:30:00"),  # the first of two half past two
        (
            "02:30-04:00",
            "2026-10-25T00:40:00",
            "2026-10-25T01:30:00",
        ),  # and the second: looked at again, and right
    ],
)
def test_summer_time_moves_the_hours_with_the_clock(span: str, now: str, change: str) -> None:
    assert next_change_ms(parse_hours(span, "Europe/Berlin"), ms(now)) == ms(change)


@pytest.mark.parametrize(
    ("span", "zone", "fault"),
    [
        ("24:00-06:00", "UTC", "HH:MM"),
        ("22:00-6:00", "UTC", "HH:MM"),
        ("22:00-22:00", "UTC", "another time"),
        ("22:00-06:00", "Mars/Olympus", "nobody knows"),
        ("22:00-06:00", "../../etc/passwd", "a name like"),
        ("22:00-06:00", "Europe", "nobody knows"),
        ("22:00-06:00", "A" * 65, "a name like"),
    ],
)
def test_hours_that_make_no_sense_are_refused(span: str, zone: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_hours(span, zone)


def test_hours_are_told_as_they_were_given() -> None:
    assert span_of(parse_hours("07:05-23:00", "Asia/Kolkata")) == "07:05-23:00"
