"""What was: minutes become hours and hours become days, once, however late and by however many."""

import pytest

from shared.pool.numbers import Numbers
from shared.runtime.dynamo import SyncDynamo
from shared.upkeep.history import (
    Point,
    Span,
    all_points,
    combine,
    newest,
    point_of,
    points,
    put_point,
    record,
)

TABLE = "psx-test-usage"
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOON = 20_000 * DAY + 12 * HOUR


def numbers(stock: int, **fleet: int) -> Numbers:
    return Numbers(
        0,
        stock={"mbl": {"us": stock}},
        quality={"mbl": {"us": {"fast": stock}}},
        fleet=fleet,
        bytes_per_s=stock,
    )


def test_numbers_are_kept_flat_and_by_the_minute() -> None:
    point = point_of(numbers(3, devices=9), NOON + 59_999)
    assert point.at_ms == NOON
    assert point.mean == {
        "traffic.bytesPerSecond": 3,
        "fleet.devices": 9,
        "stock.mbl.us": 3,
        "quality.mbl.us.fast": 3,
    }


def test_a_longer_span_has_mean_least_and_greatest_and_counts_absence_as_nought() -> None:
    parts = [Point(0, {"a": 4}, {"a": 1}, {"a": 9}, 3), Point(1, {"b": 8}, {"b": 8}, {"b": 8}, 1)]
    whole = combine(7, parts)
    assert (whole.at_ms, whole.samples) == (7, 4)
    assert (whole.mean, whole.low, whole.high) == ({"a": 3, "b": 2}, {"a": 0, "b": 0}, {"a": 9, "b": 8})
    with pytest.raises(ValueError, match="nothing"):
        combine(0, [])


def test_minutes_are_written_once_and_make_hours_and_days(dynamo: SyncDynamo) -> None:
    assert record(dynamo, TABLE, numbers(1), NOON) == [Span.MINUTE]
    assert record(dynamo, TABLE, numbers(5), NOON + 1) == []
    assert record(dynamo, TABLE, numbers(3), NOON + 30 * MINUTE) == [Span.MINUTE]
    assert record(dynamo, TABLE, numbers(9), NOON + HOUR + 5 * MINUTE) == [Span.MINUTE, Span.HOUR]
    assert record(dynamo, TABLE, numbers(9), NOON + HOUR + 6 * MINUTE) == [Span.MINUTE]
    (hour,) = dynamo.run(points(TABLE, Span.HOUR, 0, NOON + DAY, 10)).rows
    name = "stock.mbl.us"
    assert (hour.at_ms, hour.samples, hour.mean[name], hour.low[name], hour.high[name]) == (NOON, 2, 2, 1, 3)
    assert record(dynamo, TABLE, numbers(9), NOON + 12 * HOUR) == [Span.MINUTE, Span.DAY]
    day = dynamo.run(newest(TABLE, Span.DAY))
    assert day is not None
    assert (day.at_ms, day.samples) == (NOON - 12 * HOUR, 2)


def test_an_hour_is_made_of_all_its_minutes_however_large_they_are(dynamo: SyncDynamo) -> None:
    """A page of a query holds 1 MB. Nothing else is told of what lies behind it."""
    wide = {f"stock.peer.{n:02d}.{'x' * 2_000}": n for n in range(50)}
    for number in range(24):
        minute = Point(NOON + number * MINUTE, wide, wide, wide, 1)
        assert dynamo.run(put_point(TABLE, Span.MINUTE, minute))
    first = dynamo.run(points(TABLE, Span.MINUTE, NOON, NOON + HOUR, 60))
    assert (len(first.rows) < 24, first.next_key is not None) == (True, True)
    assert [p.at_ms for p in all_points(dynamo, TABLE, Span.MINUTE, NOON, NOON + HOUR, 20)] == [
        NOON + number * MINUTE for number in range(4, 24)
    ]
    record(dynamo, TABLE, numbers(1), NOON + HOUR)
    (hour,) = dynamo.run(points(TABLE, Span.HOUR, 0, NOON + DAY, 10)).rows
    assert hour.samples == 24


def test_points_are_asked_for_by_time(dynamo: SyncDynamo) -> None:
    for number in range(4):
        record(dynamo, TABLE, numbers(number), NOON + number * MINUTE)
    page = dynamo.run(points(TABLE, Span.MINUTE, NOON + MINUTE, NOON + 3 * MINUTE, 10))
    assert [p.at_ms for p in page.rows] == [NOON + MINUTE, NOON + 2 * MINUTE]
