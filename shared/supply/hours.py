"""The hours in which an owner shares: daily from one time to another in a time zone, over midnight when it ends earlier.

Times are those of a clock on the owner's wall, so that summer time moves them. Source: IANA time zone database.
"""

import re
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from shared.supply.model import Hours

_SPAN: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
ZONE_MAX_CHARS: Final = 64
DAYS: Final = (-1, 0, 1, 2)
"""Around today: whatever a clock is set to by summer time, the next change lies there."""


def parse_hours(span: str, zone: str) -> Hours:
    """`HH:MM-HH:MM` in an IANA time zone. Raises ValueError naming what is wrong."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ValueError("hours: must be HH:MM-HH:MM")
    if len(zone) > ZONE_MAX_CHARS or not _ZONE.fullmatch(zone):
        raise ValueError("timeZone: must be a name like Europe/Berlin")
    try:
        ZoneInfo(zone)
    except (OSError, KeyError):  # of a folder's name, and of no name
        raise ValueError("timeZone: nobody knows this time zone") from None
    first, second, third, fourth = (int(part) for part in found.groups())
    begins, ends = first * 60 + second, third * 60 + fourth
    if begins == ends:
        raise ValueError("hours: must end at another time than they begin")
    return Hours(begins, ends, zone)


def read_hours(row: Mapping[str, Any]) -> Hours:
    """A row's hours."""
    return Hours(int(row["begins"]), int(row["ends"]), str(row["zone"]))


def span_of(hours: Hours) -> str:
    """The inverse of `parse_hours`, without the zone."""
    return "-".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in (hours.begins, hours.ends))


def is_open(hours: Hours | None, now_ms: int) -> bool:
    """Whether now is within the hours; an owner without any always shares."""
    if hours is None:
        return True
    now = _wall(hours, now_ms)
    minute = now.hour * 60 + now.minute
    if hours.begins < hours.ends:
        return hours.begins <= minute < hours.ends
    return minute >= hours.begins or minute < hours.ends


def next_change_ms(hours: Hours, now_ms: int) -> int:
    """When the hours next begin or end, unix ms. Where a clock skips that minute, once a year, it is up to an hour late."""
    today = _wall(hours, now_ms).date()
    zone = ZoneInfo(hours.zone)
    changes = (
        datetime.combine(today + timedelta(day), time(minute // 60, minute % 60, fold=fold), zone)
        for day in DAYS
        for minute in (hours.begins, hours.ends)
        for fold in (0, 1)
    )
    return min(at for change in changes if (at := int(change.timestamp() * 1000)) > now_ms)


def _wall(hours: Hours, now_ms: int) -> datetime:
    return datetime.fromtimestamp(now_ms / 1000, ZoneInfo(hours.zone))
