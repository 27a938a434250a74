"""The same simulation with the real listing job against real stores: what it decides there is what happens.

Grades are written as the prober writes them, presence as relays do, marks as both do. A round of the simulation is a run of
the job; whoever it lists or takes off is read back from the truth, so a difference between rules and job would show.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from local.simulation.engine import ROUND_MS, Simulation
from local.simulation.world import Device, Rates
from shared.grading import table as grades
from shared.grading.fleet import Fleet, parts_of
from shared.grading.listing import AT_ONCE, ListingReport, ListingRun
from shared.grading.live import (
    conduct_key,
    conduct_mark,
    count_conduct,
    device_mark,
    forget_conduct,
    mark_changed,
)
from shared.grading.model import Fared, Grade, Thresholds
from shared.grading.rules import Listing
from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId, RelayId
from shared.pool.model import PRESENCE_TTL_S, Presence
from shared.pool.presence import drop_presences, put_presence
from shared.runtime.dynamo import DynamoRequest, RunsDynamo
from shared.runtime.redis import SyncRedis, command
from shared.supply import table as devices
from shared.supply.model import Consent, Kind, Origin
from shared.supply.model import Device as Row
from shared.supply.rules import TERMS

T = TypeVar("T")
BEGINS_MS: Final = 1_800_000_000_000
SAID_AT_ONCE: Final = 500
OF_OWNER: Final = 500
"""An account that has proven nothing has room for about a thousand."""
RELAY: Final = RelayId("r")
TABLE: Final = "psx-simulation-"
AGAIN_S: Final = PRESENCE_TTL_S / 3


@dataclass(slots=True)
class Counted:
    """DynamoDB, with every request counted by its operation."""

    dynamo: RunsDynamo
    calls: Counter[str] = field(default_factory=Counter)

    def run(self, request: DynamoRequest[T]) -> T:
        """Run and count."""
        self.calls[request.operation] += 1
        return self.dynamo.run(request)


class StoredSimulation(Simulation):
    """One run, decided by its seed and by the job. `slowest_s` is the longest round."""

    def __init__(
        self,
        count: int,
        hours: float,
        rates: Rates,
        thresholds: Thresholds,
        stores: tuple[RunsDynamo, SyncRedis],
        seed: int = 1,
    ) -> None:
        super().__init__(count, hours, rates, thresholds, seed)
        self._dynamo, self._redis = stores
        self.counted = Counted(self._dynamo)
        self._job = ListingRun(self.counted, self._redis, lambda name: TABLE + name)
        self._versions: dict[int, int] = {}
        self._said: dict[int, list[Fared]] = {}
        self._present: set[int] = set()
        self._put_at_s = time.monotonic()
        self.slowest_s = 0.0
        served = self.customers.served
        fine = [Fared(DeviceId("elsewhere"), f"c{n}", served, 0) for n in range(rates.customers)]
        for part in parts_of(fine, SAID_AT_ONCE):
            self._redis.run(count_conduct(part))
        for device in self.world.devices:
            if self._dynamo.run(devices.create(TABLE + "devices", _row(device))) is not None:
                raise RuntimeError("a device of the simulation was refused a place")

    def _complains(self, device: Device) -> None:
        customer = self.world.new_customer()
        if self.customers.failed(device, customer, self._now):
            said = Fared(device.grade.device_id, f"c{customer}", 0, 1, (f"t{customer}",))
            self._said.setdefault(device.index, []).append(said)

    def _excuse(self, device: Device) -> None:
        super()._excuse(device)
        self._said.pop(device.index, None)
        self._redis.run(forget_conduct(device.grade.device_id))

    def _round(self) -> None:
        self._tell_conduct()
        accused, self.customers.accused = self.customers.accused, set()
        looked = [self.world.devices[i] for i in sorted(self._marked | self._held | accused)]
        self._marked.clear()
        self._held.clear()
        self._tell(looked)
        began = time.monotonic()
        report = self._job.run(BEGINS_MS + self._now, sweep=False)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.figures.braked_rounds += len(report.braked)
        self._follow(looked, report)
        self._look_again(accused)
        self._at(ROUND_MS, self._round)

    def _tell_conduct(self) -> None:
        """What gateways counted. The wall's clock is another one, so what was accused a round ago has stood for long."""
        said = [one for of_device in self._said.values() for one in of_device]
        self._said.clear()
        for part in parts_of(said, SAID_AT_ONCE):
            self._redis.run(count_conduct(part))
        for index in self.customers.accused:
            device = self.world.devices[index]
            if device.accused_ms >= 0:
                self._redis.run(command("HSET", conduct_key(device.grade.device_id), "accused", 1, parse=int))
            self._redis.run(mark_changed([conduct_mark(device.grade.device_id)]))

    def _look_again(self, accused: set[int]) -> None:
        """Whoever was accused for the first time is probed, and judged in the next round."""
        for index in sorted(accused):
            device = self.world.devices[index]
            key = conduct_key(device.grade.device_id)
            if self._redis.run(command("HEXISTS", key, "accused", parse=bool)):
                self.customers.accuse(device, self._now)
                self._ask_for_probe(device)

    def _tell(self, looked: Sequence[Device]) -> None:
        """Write what prober and relays know."""
        for device in looked:
            if device.grade.latest is not None:
                version = self._versions.get(device.index, 0)
                row = replace(device.grade, version=version, latest=_dated(device.grade))
                if not self._dynamo.run(grades.put_result(TABLE + "grades", row)):
                    raise RuntimeError("somebody else writes these grades")
                self._versions[device.index] = version + 1
        self._present_now()
        if looked:
            self._redis.run(mark_changed([device_mark(device.grade.device_id) for device in looked]))

    def _present_now(self) -> None:
        """Presence lasts by the wall's clock, which is another one than the simulation's."""
        there = {d.index for d in self.world.devices if not d.away}
        again = time.monotonic() - self._put_at_s >= AGAIN_S
        for index in there if again else there - self._present:
            self._redis.run(put_presence(_presence(self.world.devices[index].grade.device_id)))
        for index in self._present - there:
            self._redis.run(drop_presences([self.world.devices[index].grade.device_id], RELAY))
        self._present = there
        self._put_at_s = time.monotonic() if again else self._put_at_s

    def _follow(self, looked: Sequence[Device], report: ListingReport) -> None:
        """What the truth says now is what the simulation goes on with."""
        stored = self._stored(device.grade.device_id for device in looked)
        for device in looked:
            found = stored.get(device.grade.device_id)
            if found is None:
                continue
            bar = replace(found.bar, until_ms=max(found.bar.until_ms - BEGINS_MS, 0))
            if bar != device.grade.bar:
                self._barred(device, bar)
            if found.listed and not device.grade.listed:
                self._list(device)
            elif device.grade.listed and not found.listed:
                self._unlist(device, Listing(found.reason))
        if report.left:
            self._held = {device.index for device in looked if device.grade.listed}

    def _stored(self, ids: Iterable[DeviceId]) -> Mapping[DeviceId, Grade]:
        fleet = Fleet(self._dynamo, self._redis, lambda name: TABLE + name, AT_ONCE, BEGINS_MS)
        return fleet.grades(list(ids))

    def disagreements(self) -> Iterator[str]:
        """Devices that the truth, the live network and the simulation do not agree on."""
        stored = self._stored(device.grade.device_id for device in self.world.devices)
        for device in self.world.devices:
            found = stored.get(device.grade.device_id)
            if found is not None and found.listed is not device.grade.listed:
                yield f"{found.device_id}: {found.reason}"


def _dated(grade: Grade) -> Any:
    assert grade.latest is not None  # noqa: S101 - looked at before
    return replace(
        grade.latest,
        at_ms=BEGINS_MS + grade.latest.at_ms,
        exit_country=Country("us"),
        exit_ip_type=IpType.RESIDENTIAL,
    )


def _owner(number: int) -> AccountId:
    return AccountId(f"psx_simulated{number // OF_OWNER}")


def _row(device: Device) -> Row:
    name = device.grade.device_id
    origin, consent = Origin(Country("us"), IpType.RESIDENTIAL), Consent(TERMS["current"], "sdk", 1)
    return Row(
        name, _owner(device.index), name, Kind.AGENT, origin, "lab", "eu", 1, proven_at_ms=1, consent=consent
    )


def _presence(name: DeviceId) -> Presence:
    number = int(name[1:])
    ip = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Presence(
        name, _owner(number), RELAY, "127.0.0.1", 1, ip, Country("us"), IpType.MOBILE, 1, "Lab", BEGINS_MS
    )
