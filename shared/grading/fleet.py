"""Reads what the listing run looks at: devices, their grades, who is there, what their owners decided. In batches."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from shared.grading import live as marks
from shared.grading import table as grades
from shared.grading.model import Grade
from shared.guard.table import read_setting
from shared.kernel.ids import AccountId, DeviceId
from shared.pool.model import Presence
from shared.pool.presence import read_presences
from shared.runtime.dynamo import (
    BATCH_GET_MAX,
    Batch,
    DynamoRequest,
    Item,
    RunsDynamo,
    StoreUnavailable,
    batch_get,
    fan_out,
)
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.hours import next_change_ms
from shared.supply.model import Device, Kind, Owner
from shared.supply.owners import owner_key, read_owner

T = TypeVar("T")
PAGE: Final = 1_000
READ_ATTEMPTS_MAX: Final = 8
READ_PAUSE_S: Final = 0.05
"""Longer with each attempt: a store that left keys out asks for a pause."""


def parts_of(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """Items in lists of a size; the last one may be shorter."""
    part: list[T] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


class Fleet:
    """The stores as one run reads them. `at_once` is how many requests are under way."""

    def __init__(
        self, dynamo: RunsDynamo, redis: SyncRedis, table: Callable[[str], str], at_once: int, now_ms: int
    ) -> None:
        self.dynamo, self.redis, self.table, self.at_once, self.now_ms = dynamo, redis, table, at_once, now_ms
        self._owners: dict[AccountId, Owner] = {}

    def setting(self, name: str) -> dict[str, Any]:
        """A live setting; empty when nobody wrote it."""
        return self.dynamo.run(read_setting(self.table("guard"), name)) or {}

    def by_id(self, ids: Sequence[DeviceId]) -> list[Device]:
        """Devices of these ids, in no order."""
        return self._many("devices", [devices.device_key(i) for i in ids], devices.read_device)

    def grades(self, ids: Sequence[str]) -> dict[DeviceId, Grade]:
        """Grades of these devices."""
        found = self._many("grades", [grades.grade_key(DeviceId(i)) for i in ids], grades.read_grade)
        return {grade.device_id: grade for grade in found}

    def of_account(self, account_id: AccountId) -> Iterator[list[Device]]:
        """All devices of an account, as they are and not as the index has them."""
        for page in self._pages(lambda s: devices.of_account(self.table("devices"), account_id, PAGE, s)):
            yield self.by_id([device.device_id for device in page])

    def segment(self, number: int, of: int) -> Iterator[list[Device]]:
        """A part of all devices, in pages."""
        table = self.table("devices")
        yield from self._pages(lambda start: devices.all_devices(table, PAGE, start, (number, of)))

    def present(self, found: Sequence[Device]) -> dict[DeviceId, Presence]:
        """Which of these are connected, and where."""
        peers = [d.device_id for d in found if d.kind is not Kind.MODEM]
        present: dict[DeviceId, Presence] = {}
        for part in parts_of(peers):
            for presence in self.redis.run(read_presences(part)):
                if presence is not None:
                    present[presence.device_id] = presence
        return present

    def owners(self, accounts: set[AccountId]) -> Mapping[AccountId, Owner]:
        """What owners decided. Those with hours are looked at again when their hours begin or end."""
        asked = sorted(accounts - self._owners.keys())
        found = self._many("devices", [owner_key(a) for a in asked], read_owner)
        self._owners |= {a: Owner(a) for a in asked} | {o.account_id: o for o in found}
        for owner in found:
            if owner.hours is not None:
                in_ms = next_change_ms(owner.hours, self.now_ms) - self.now_ms
                self.redis.run(marks.mark_changed([marks.hours_mark(owner.account_id)], in_ms))
        return self._owners

    def _pages(
        self, request: Callable[[Mapping[str, Any] | None], DynamoRequest[Any]]
    ) -> Iterator[list[Any]]:
        start: Mapping[str, Any] | None = None
        while True:
            page = self.dynamo.run(request(start))
            if page.rows:
                yield list(page.rows)
            start = page.next_key
            if start is None:
                return

    def _many(self, table: str, keys: Sequence[tuple[str, str]], parse: Callable[[Item], T]) -> list[T]:
        """Rows by their keys, in no order; those that are not there are left out. Raises StoreUnavailable."""
        found: list[T] = []
        asked = list(keys)
        for attempt in range(READ_ATTEMPTS_MAX):
            if not asked:
                return found
            if attempt:
                time.sleep(READ_PAUSE_S * attempt)
            requests: list[DynamoRequest[Batch[T]]] = [
                batch_get(self.table(table), part, parse=parse) for part in parts_of(asked, BATCH_GET_MAX)
            ]
            asked = []
            for batch in fan_out(self.dynamo.run, requests, self.at_once):
                found += batch.rows
                asked += batch.left
        raise StoreUnavailable(f"{table}: the store has no time for a batch")
