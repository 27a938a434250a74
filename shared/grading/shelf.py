"""Puts exits on sale and takes them off: the truth first, then Redis; conditional writes, so that a repeat changes nothing.

Also the brake: a run that would take too much off sale for one cause keeps it there and opens an incident.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from shared.grading import table as grades
from shared.grading.fleet import Fleet, parts_of
from shared.grading.live import count_barred, drop_unbarred
from shared.grading.model import Cause, Thresholds
from shared.grading.offer import Looked
from shared.grading.rules import Listing, brake_allows
from shared.guard.model import Incident
from shared.guard.service import standing_incidents
from shared.guard.table import close_incident, open_incident
from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool import live
from shared.pool.model import Endpoint
from shared.runtime.dynamo import fan_out

LIST_BATCH: Final = 200
BRAKE: Final = "listing_brake"

log = logging.getLogger("psx.listing")
Tells = Callable[[str, Listing], None]
"""(device, verdict) of each change that was made."""


class Shelf:
    """What is on sale, in both stores."""

    def __init__(self, fleet: Fleet, tell: Tells) -> None:
        self._fleet, self._tell = fleet, tell
        self._dynamo, self._redis, self._table = fleet.dynamo, fleet.redis, fleet.table

    def put(self, endpoints: Sequence[Endpoint]) -> int:
        """Put on sale, or on sale as they are now; how many were on sale before."""
        table, refreshed = self._table("grades"), 0
        for part in parts_of(endpoints):
            requests = [grades.set_listed(table, e) for e in part]
            written = fan_out(self._dynamo.run, requests, self._fleet.at_once)
            stands = [e for e, grade in zip(part, written, strict=True) if grade is not None]
            for endpoint, is_new in zip(stands, self.show(stands), strict=True):
                if is_new:
                    self._tell(endpoint.endpoint_id, Listing.LISTED)
                else:
                    refreshed += 1
        return refreshed

    def show(self, endpoints: Sequence[Endpoint]) -> list[bool]:
        """Put endpoints into Redis; whether each is new there, in their order."""
        new: dict[EndpointId, bool] = {}
        for pool in Pool:
            for part in parts_of((e for e in endpoints if e.pool is pool), LIST_BATCH):
                answers = self._redis.run(live.list_endpoints(part))
                new |= dict(zip((e.endpoint_id for e in part), answers, strict=True))
        return [new[e.endpoint_id] for e in endpoints]

    def take_off(self, pool: Pool, drop: Sequence[Looked]) -> None:
        """Take off sale, each with its reason."""
        table = self._table("grades")
        for part in parts_of(drop, LIST_BATCH):
            was = self.hide(pool, [one.device.device_id for one in part])
            graded = [one for one in part if one.grade is not None]
            fan_out(
                self._dynamo.run,
                [grades.set_unlisted(table, one.device.device_id, one.verdict.value) for one in graded],
                self._fleet.at_once,
            )
            for one, was_on_sale in zip(part, was, strict=True):
                if was_on_sale or is_on_sale(one):
                    self._tell(one.device.device_id, one.verdict)

    def hide(self, pool: Pool, ids: Sequence[str]) -> list[bool]:
        """Take out of Redis alone; whether each was there."""
        was: list[bool] = []
        for part in parts_of((EndpointId(i) for i in ids), LIST_BATCH):
            answers: list[bool] = self._redis.run(live.unlist_endpoints(pool, part))
            was += answers
        return was

    def rebuild(self) -> int:
        """What the truth has on sale, from its index into a Redis that lost everything; how many were put back."""
        table, rebuilt = self._table("grades"), 0
        for pool in Pool:
            for number in range(grades.SHELVES):
                start: Mapping[str, Any] | None = None
                while True:
                    page = self._dynamo.run(grades.on_shelf(table, pool, number, 1_000, start))
                    rebuilt += self.show(page.rows).count(True)
                    start = page.next_key
                    if start is None:
                        break
        return rebuilt


def is_on_sale(one: Looked) -> bool:
    """Whether the truth has it on sale."""
    return one.grade is not None and one.grade.listed


class Brakes(Protocol):
    """What a brake tells: the message of each that holds."""

    braked: list[str]


class Brake:
    """One run's brakes: one for each pool and cause, each with its incident for as long as it holds."""

    def __init__(self, fleet: Fleet, thresholds: Thresholds, report: Brakes) -> None:
        self._fleet, self._thresholds, self._report = fleet, thresholds, report
        self._standing = {i.name for i in standing_incidents(fleet.dynamo, fleet.table("guard"))}

    def holds(self, pool: Pool, drop: Sequence[Looked]) -> set[DeviceId]:
        """Those that stay on sale for now, because too many would go for one cause."""
        held: set[DeviceId] = set()
        size = self._fleet.redis.run(live.listed_count(pool))
        for cause in Cause:
            of_cause = [one for one in drop if one.verdict.braked_as is cause and is_on_sale(one)]
            name = f"brake#{pool.value}#{cause.value}"
            if brake_allows(len(of_cause), size, self._thresholds.brake_percent):
                self.close(name)
            else:
                self._tell(pool, cause, len(of_cause), size, name)
                held |= {one.device.device_id for one in of_cause}
        return held

    def holds_bars(self, pool: Pool, count: int) -> bool:
        """Whether so many more must not go off sale on customers' word: those that are off already count with them, so
        that no crowd of customers empties a shelf bit by bit.
        """
        name = f"brake#{pool.value}#customers"
        redis, standing, size = self._fleet.redis, 0, 0
        if count:
            redis.run(drop_unbarred(pool, self._fleet.now_ms))
            standing = redis.run(count_barred(pool))
            size = standing + redis.run(live.listed_count(pool))
        if not count or brake_allows(standing + count, size, self._thresholds.brake_percent):
            self.close(name)
            return False
        self._hold(
            name,
            f"customers let down by {count} exits of {pool.value}, {standing} of {size} are off sale for that: "
            "customers or their targets are suspect",
        )
        return True

    def _tell(self, pool: Pool, cause: Cause, count: int, size: int, name: str) -> None:
        suspect = "the prober" if cause is Cause.EXIT else "a relay or the live store"
        message = (
            f"{count} of {size} exits of {pool.value} would go off sale in one run "
            f"({cause.value}): {suspect} is suspect"
        )
        self._hold(name, message)

    def _hold(self, name: str, message: str) -> None:
        self._report.braked.append(message)
        self.open(Incident(name, BRAKE, message, self._fleet.now_ms))

    def open(self, incident: Incident) -> None:
        """Tell people, once for as long as it stands."""
        if incident.name not in self._standing:
            self._fleet.dynamo.run(open_incident(self._fleet.table("guard"), incident))

    def close(self, name: str) -> None:
        """It is right again."""
        if name in self._standing:
            closing = close_incident(self._fleet.table("guard"), name, self._fleet.now_ms)
            self._fleet.dynamo.run(closing)
