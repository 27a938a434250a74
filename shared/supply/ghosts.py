"""Devices that registered, never served and are long gone: their account gets its room back.

They are forgotten, but for those whose consent was withdrawn: these keep their row and lose their place in the counts.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.kernel.ids import AccountId
from shared.pool.presence import read_presence
from shared.runtime.dynamo import Contended, DynamoRequest, RunsDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.model import Device, Owner
from shared.supply.owners import get_owner
from shared.supply.rules import is_ghost, is_withdrawn

PAGE: Final = 500
DROPPED_PER_RUN_MAX: Final = 2_000
"""About half a minute of transactions; the rest waits for the next run."""


@dataclass(slots=True)
class GhostReport:
    """What a run found."""

    devices: int = 0
    dropped: int = 0
    released: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class GhostRun:
    """One run's tools. Without Redis nobody knows who is connected: the run raises StoreUnavailable and drops nobody."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]

    def run(self, now_ms: int) -> GhostReport:
        """Take ghosts out of the counts. Safe to run twice, late, or beside itself."""
        report = GhostReport()
        owners: dict[AccountId, Owner] = {}
        for device in self._all():
            report.devices += 1
            if not is_ghost(device, now_ms):
                continue
            withdrawn = is_withdrawn(device, self._owner(device, owners))
            if withdrawn and device.released_at_ms is not None:
                continue
            if self.redis.run(read_presence(device.device_id)) is not None:
                report.kept += 1
            elif withdrawn:
                report.released += self._done(
                    devices.release_place(self.table("devices"), device, now_ms), report
                )
            else:
                report.dropped += self._done(devices.drop_ghost(self.table("devices"), device), report)
            if report.dropped + report.released == DROPPED_PER_RUN_MAX:
                break
        return report

    def _all(self) -> Iterator[Device]:
        start: Mapping[str, Any] | None = None
        while True:
            page = self.dynamo.run(devices.all_devices(self.table("devices"), PAGE, start))
            yield from page.rows
            start = page.next_key
            if start is None:
                return

    def _owner(self, device: Device, known: dict[AccountId, Owner]) -> Owner:
        if device.account_id not in known:
            request = get_owner(self.table("devices"), device.account_id)
            known[device.account_id] = self.dynamo.run(request)
        return known[device.account_id]

    def _done(self, request: DynamoRequest[bool], report: GhostReport) -> bool:
        """Whether it was written; one that changed meanwhile, or is contended, is kept for the next run."""
        with contextlib.suppress(Contended):
            if self.dynamo.run(request):
                return True
        report.kept += 1
        return False
