"""What the live numbers were: one row a minute for two days, one an hour for sixty, one a day for ever.

A row is written once, whoever writes it first; an hour is made of its minutes and a day of its hours, however late.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.pool.numbers import Numbers
from shared.runtime.dynamo import DynamoRequest, Item, Page, RunsDynamo, put_new, query

MINUTE_MS: Final = 60_000
POINTS_MAX: Final = 1_500
"""Of one answer: a day of minutes."""


class Span(StrEnum):
    """How much time a point stands for."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def length_ms(self) -> int:
        """Its length."""
        return {Span.MINUTE: 60_000, Span.HOUR: 3_600_000, Span.DAY: 86_400_000}[self]

    @property
    def kept_s(self) -> int | None:
        """How long its rows are kept; None is for ever."""
        return {Span.MINUTE: 2 * 86_400, Span.HOUR: 60 * 86_400, Span.DAY: None}[self]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers by name over one span: their mean, least and greatest. `samples` are the minutes that it is made of."""

    at_ms: int
    mean: Mapping[str, int]
    low: Mapping[str, int]
    high: Mapping[str, int]
    samples: int = 1


def point_of(numbers: Numbers, at_ms: int) -> Point:
    """The live numbers of one minute, flat: `stock.<pool>.<country>`, `quality.<pool>.<country>.<tier>`, `fleet.<name>`."""
    flat = {
        "traffic.bytesPerSecond": numbers.bytes_per_s,
        **{f"fleet.{name}": count for name, count in numbers.fleet.items()},
        **dict(_flatten("stock", numbers.stock)),
        **dict(_flatten("online", numbers.online)),
        **dict(_flatten("load", numbers.load)),
        **dict(_flatten("quality", numbers.quality)),
    }
    return Point(at_ms // MINUTE_MS * MINUTE_MS, flat, flat, flat)


def _flatten(name: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for part, below in tree.items():
        if isinstance(below, Mapping):
            yield from _flatten(f"{name}.{part}", below)
        else:
            yield f"{name}.{part}", int(below)


def numbers_of(point: Point) -> Numbers:
    """What a minute's point says of the live numbers: the inverse of `point_of`. The sum of all traffic is not in it."""
    trees: dict[str, Any] = {"stock": {}, "online": {}, "load": {}, "quality": {}}
    numbers = Numbers(point.at_ms, bytes_per_s=point.mean.get("traffic.bytesPerSecond", 0))
    for path, count in point.mean.items():
        kind, _, name = path.partition(".")
        if kind == "fleet":
            numbers.fleet[name] = count
        elif kind in trees:
            *parts, last = name.split(".")
            tree = trees[kind]
            for part in parts:
                tree = tree.setdefault(part, {})
            tree[last] = count
    numbers.stock, numbers.online, numbers.load = trees["stock"], trees["online"], trees["load"]
    numbers.quality = trees["quality"]
    return numbers


def combine(at_ms: int, points: Sequence[Point]) -> Point:
    """One point for a longer span. What a part did not name was nought there. Raises ValueError for no points."""
    samples = sum(point.samples for point in points)
    if not samples:
        raise ValueError("nothing to combine")
    names = sorted({name for point in points for name in point.mean})
    return Point(
        at_ms,
        {name: sum(p.mean.get(name, 0) * p.samples for p in points) // samples for name in names},
        {name: min(p.low.get(name, 0) for p in points) for name in names},
        {name: max(p.high.get(name, 0) for p in points) for name in names},
        samples,
    )


# Rows


def put_point(table: str, span: Span, point: Point) -> DynamoRequest[bool]:
    """Write a point; False when it stands already."""
    row: dict[str, object] = {
        "pk": f"history#{span.value}",
        "sk": f"{point.at_ms:013d}",
        "mean": dict(point.mean),
        "samples": point.samples,
        "ttl": None if span.kept_s is None else point.at_ms // 1000 + span.kept_s,
    }
    if span is not Span.MINUTE:
        row |= {"low": dict(point.low), "high": dict(point.high)}
    return put_new(table, row)


def _read(row: Item) -> Point:
    mean = row["mean"]
    low, high = (row["low"], row["high"]) if "low" in row else (mean, mean)
    return Point(int(row["sk"]), mean, low, high, row["samples"])


def points(
    table: str,
    span: Span,
    from_ms: int,
    to_ms: int,
    limit: int,
    *,
    start: Mapping[str, Any] | None = None,
    forward: bool = True,
) -> DynamoRequest[Page[Point]]:
    """A page of points that begin in [from, to), the oldest first, or the newest."""
    last_ms = max(to_ms - 1, from_ms)  # the store refuses an end before its beginning
    values = {":pk": f"history#{span.value}", ":from": f"{from_ms:013d}", ":to": f"{last_ms:013d}"}
    return query(
        table,
        "pk = :pk AND sk BETWEEN :from AND :to",
        values,
        parse=_read,
        limit=limit,
        start=start,
        forward=forward,
    )


def all_points(
    dynamo: RunsDynamo, table: str, span: Span, from_ms: int, to_ms: int, most: int
) -> list[Point]:
    """The newest points that begin in [from, to), the oldest of them first: a page holds 1 MB, and a point is large."""
    found: list[Point] = []
    start: Mapping[str, Any] | None = None
    while len(found) < most:
        page = dynamo.run(points(table, span, from_ms, to_ms, most - len(found), start=start, forward=False))
        found += page.rows
        start = page.next_key
        if start is None:
            break
    return found[::-1]


def newest(table: str, span: Span) -> DynamoRequest[Point | None]:
    """The last point of a span."""
    asked = query(table, "pk = :pk", {":pk": f"history#{span.value}"}, parse=_read, limit=1, forward=False)
    return DynamoRequest(asked.operation, asked.params, lambda a: (*asked.parse(a).rows, None)[0])


def record(dynamo: RunsDynamo, table: str, numbers: Numbers, now_ms: int) -> list[Span]:
    """Write this minute, and the last hour and day if nobody has. Answers what was written here."""
    written = []
    if dynamo.run(put_point(table, Span.MINUTE, point_of(numbers, now_ms))):
        written.append(Span.MINUTE)
    for span, parts in ((Span.HOUR, Span.MINUTE), (Span.DAY, Span.HOUR)):
        begins_ms = now_ms // span.length_ms * span.length_ms - span.length_ms
        last = dynamo.run(newest(table, span))
        if last is not None and last.at_ms >= begins_ms:
            continue
        found = all_points(dynamo, table, parts, begins_ms, begins_ms + span.length_ms, POINTS_MAX)
        if not found:
            continue
        is_new = dynamo.run(put_point(table, span, combine(begins_ms, found)))
        written += [span] if is_new else []
    return written
