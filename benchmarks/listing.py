"""The listing run on a fleet of 200,000: a minute with 2,000 changes, and a Redis that lost everything."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from benchmarks.row import OURS, Goal, Reading, Row, compare
from benchmarks.stores import filled_dynamo, redis_server
from shared.grading import table as grades
from shared.grading.listing import SEGMENTS, ListingReport, ListingRun
from shared.grading.live import device_mark, mark_changed
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.offer import endpoint_of
from shared.grading.rules import add_result
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, RelayId
from shared.pool.live import listed_count
from shared.pool.model import Presence
from shared.pool.presence import put_presence
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Origin

FLEET: Final = 200_000
CHANGES: Final = 2_000
OWNERS: Final = 500
ROUNDS: Final = 2
BATCH_WRITE: Final = 25
WRITERS: Final = 4
GOAL_S: Final = 20.0
REBUILD_GOAL_S: Final = 60.0
ON_SALE_MAX_S: Final = 600.0
LOOK_EVERY_S: Final = 0.2
NOW: Final = 1_800_000_000_000
PASS: Final = ProbeResult(NOW, None, 50, 80, 40, 2_000, Country("us"), IpType.MOBILE, 64601, "Lab", "eu", "m")
FAIL: Final = ProbeResult(NOW, Failure.CONNECT_REFUSED)


def measure() -> list[Row]:
    """Seconds of whole runs; the stores and the run share this machine."""
    logging.getLogger("psx").setLevel(logging.WARNING)  # the job writes a line for each change
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    fleet = [_device(number) for number in range(FLEET)]
    with redis_server() as url, filled_dynamo("bench", _rows(fleet)) as dynamo:
        redis = SyncRedis(url)
        job = ListingRun(dynamo, redis, lambda name: f"psx-bench-{name}")
        _connect(redis, fleet)
        on_sale, compared = _rebuild(job, redis, fleet)
        minutes = []
        for number in range(ROUNDS):
            _connect(redis, fleet)  # as relays do: presence lasts for less than a round
            minutes.append(_minute(job, dynamo, redis, fleet, number))
        redis.close()
    return [
        compare("listing_200k", "s a run", {OURS: minutes}, [Goal("", GOAL_S, at_most=True)]),
        compare(
            "listing_200k_redis_lost",
            "s until all is on sale",
            {OURS: [on_sale]},
            [Goal("", REBUILD_GOAL_S, at_most=True)],
        ),
        compare(
            "listing_200k_redis_lost_compared", "s of runs until all is compared", {OURS: [compared]}, []
        ),
    ]


def _device(number: int) -> Device:
    name = f"agent_{number:032x}"
    origin = Origin(Country("us"), IpType.MOBILE, 64601, "Lab")
    owner = AccountId(f"psx_owner{number % OWNERS}")
    consent = Consent("2026-11", "sdk", NOW)
    return Device(
        DeviceId(name), owner, name, Kind.AGENT, origin, "lab", "eu", NOW, proven_at_ms=NOW, consent=consent
    )


def _grade(device: Device) -> Grade:
    grade = add_result(add_result(Grade(device.device_id), PASS), replace(PASS, vantage="us"))
    return replace(grade, listed=True, listed_before=True, reason="listed")


def device_row(device: Device) -> Mapping[str, Any]:
    """A device as its enrolment leaves it."""
    created: Any = devices.create("t", device).params["TransactItems"]
    row: Mapping[str, Any] = next(item["Put"]["Item"] for item in created if "Put" in item)
    return row


def listed_row(device: Device, grade: Grade) -> Mapping[str, Any]:
    """The grade of a device that is on sale, as prober and listing run leave it."""
    values: Any = grades.put_result("t", grade).params["ExpressionAttributeValues"]
    listed: Any = grades.set_listed("t", endpoint_of(device, grade, IpType.MOBILE)).params
    told = listed["ExpressionAttributeValues"]
    row = {name.removeprefix(":"): value for name, value in values.items() if name != ":before"}
    row |= {"pk": {"S": f"grade#{device.device_id}"}, "sk": {"S": "-"}}
    row |= {"listed": told[":yes"], "listed_before": told[":yes"], "reason": told[":reason"]}
    return {**row, "shelf": told[":shelf"], "goods": told[":goods"]}


def _rows(fleet: Sequence[Device]) -> Mapping[str, Iterable[str]]:
    """All rows of a fleet: its first device's with other ids, because building each one takes longer than the runs."""
    first = fleet[0]
    was = [first.device_id, f'"{first.account_id}', f"{grades.shelf_of(Pool.PEER, first.device_id)}"]

    def others(text: str) -> Iterator[str]:
        for device in fleet:
            ours = [
                device.device_id,
                f'"{device.account_id}',
                f"{grades.shelf_of(Pool.PEER, device.device_id)}",
            ]
            found = text
            for before, after in zip(was, ours, strict=True):
                found = found.replace(before, after)
            yield found

    return {
        "psx-bench-devices": others(json.dumps(device_row(first))),
        "psx-bench-grades": others(json.dumps(listed_row(first, _grade(first)))),
    }


def fill(dynamo: SyncDynamo, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Straight into the tables: enrolling so many through the API is another row's work."""

    def write(batch: list[tuple[str, Mapping[str, Any]]]) -> None:
        asked: dict[str, list[Any]] = {}
        for table, item in batch:
            asked.setdefault(table, []).append({"PutRequest": {"Item": item}})
        answer = dynamo._client.batch_write_item(RequestItems=asked)
        if answer.get("UnprocessedItems"):
            raise RuntimeError("the store had no time to be filled")

    with ThreadPoolExecutor(WRITERS) as threads:
        batch: list[tuple[str, Mapping[str, Any]]] = []
        waiting = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_WRITE:
                waiting.append(threads.submit(write, batch))
                batch = []
        if batch:
            waiting.append(threads.submit(write, batch))
        for done in waiting:
            done.result()


def _connect(redis: SyncRedis, fleet: Sequence[Device]) -> None:
    for device in fleet:
        presence = Presence(
            device.device_id, device.account_id, RelayId("r"), "127.0.0.1", 1, "192.0.2.1", Country("us"),
            IpType.MOBILE, 64601, "Lab", NOW,
        )  # fmt: skip
        redis.run(put_presence(presence))


def _rebuild(job: ListingRun, redis: SyncRedis, fleet: Sequence[Device]) -> tuple[Reading, Reading]:
    """Nothing is on sale in Redis, everything in the truth: until all is back, and until runs have compared all of it.

    Runs are counted, and not the pauses between them, in which relays say again who is there.
    """
    began, swept = time.monotonic(), 0
    with ThreadPoolExecutor(1) as beside:
        on_sale_s = beside.submit(_all_on_sale, redis, len(fleet), began)
        report = job.run(NOW)
    compared_s = time.monotonic() - began
    _expect(report, report.rebuilt == len(fleet) and report.delisted == [])
    while report.left:
        swept += report.swept
        _connect(redis, fleet)
        began = time.monotonic()
        report = job.run(NOW, sweep=False)
        compared_s += time.monotonic() - began
        _expect(report, report.changed == 0)
    _expect(report, swept + report.swept >= SEGMENTS)
    return Reading(on_sale_s.result()), Reading(compared_s)


def _all_on_sale(redis: SyncRedis, count: int, began: float) -> float:
    while time.monotonic() - began < ON_SALE_MAX_S:
        if redis.run(listed_count(Pool.PEER)) == count:
            return time.monotonic() - began
        time.sleep(LOOK_EVERY_S)
    raise RuntimeError("the fleet did not come back on sale")


def _minute(
    job: ListingRun, dynamo: SyncDynamo, redis: SyncRedis, fleet: Sequence[Device], number: int
) -> Reading:
    """Half of the changes fail and go off sale, half were marked and stand as they stood; and a part is swept."""
    changed = fleet[number * CHANGES : (number + 1) * CHANGES]
    for device in changed[::2]:
        grade = _grade(device)
        for _ in range(3):
            grade = add_result(grade, FAIL)
        found = dynamo.run(grades.get_grade("psx-bench-grades", device.device_id))
        if found is None or not dynamo.run(
            grades.put_result("psx-bench-grades", replace(grade, version=found.version))
        ):
            raise RuntimeError("a grade was not written")
    redis.run(mark_changed([device_mark(device.device_id) for device in changed]))
    began = time.monotonic()
    report = job.run(NOW)
    _expect(report, report.changed == CHANGES // 2)
    return Reading(time.monotonic() - began)


def _expect(report: ListingReport, holds: bool) -> None:
    if not holds:
        raise RuntimeError(f"the run did something else: {report}"[:500])
