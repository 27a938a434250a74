"""Takes exits off sale for a while that serve probes and let customers down. The rule stands in `conduct.py`."""

import logging
from collections.abc import Sequence
from typing import Final

from shared.grading import live as marks
from shared.grading import table as grades
from shared.grading.conduct import PROBED_WITHIN_MS, is_barred, lets_customers_down, next_bar
from shared.grading.fleet import Fleet, parts_of
from shared.grading.model import Thresholds
from shared.grading.shelf import Brake
from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId
from shared.supply.model import Device

JUDGED_AT_ONCE: Final = 200

log = logging.getLogger("psx.listing")


class Barring:
    """Judges what gateways counted, in two looks. A bar is written conditionally: of two runs at once one sets it."""

    def __init__(self, fleet: Fleet, thresholds: Thresholds, brake: Brake) -> None:
        self._fleet, self._thresholds, self._brake = fleet, thresholds, brake

    def judge(self, accused: Sequence[DeviceId]) -> tuple[list[str], set[DeviceId]]:
        """Who was barred now; who should be and is held by the brake. The run that looks next takes the barred off."""
        guilty = self._fleet.by_id([i for i in self._guilty(accused) if self._probe_had_its_chance(i)])
        barred: list[str] = []
        held: set[DeviceId] = set()
        for pool in Pool:
            of_pool = [device for device in guilty if device.pool is pool]
            if self._brake.holds_bars(pool, len(of_pool)):
                held |= {device.device_id for device in of_pool}
            else:
                barred += [device.device_id for device in of_pool if self._bar(device)]
        return barred, held

    def _guilty(self, accused: Sequence[DeviceId]) -> list[DeviceId]:
        guilty: list[DeviceId] = []
        for part in parts_of(accused, JUDGED_AT_ONCE):
            found = self._fleet.redis.run(marks.read_conduct(part))
            guilty += [
                device_id
                for device_id, conduct in zip(part, found, strict=True)
                if lets_customers_down(conduct, self._thresholds)
            ]
        known = self._fleet.grades(guilty)
        return [
            i
            for i in guilty
            if i in known and known[i].listed and not is_barred(known[i].bar, self._fleet.now_ms)
        ]

    def _probe_had_its_chance(self, device_id: DeviceId) -> bool:
        """Asks for a probe the first time, and comes back: one that fails forgets what customers said."""
        redis = self._fleet.redis
        if redis.run(marks.accuse(device_id)):
            return True
        redis.run(marks.ask_probe(device_id, urgent=True))
        redis.run(marks.mark_changed([marks.conduct_mark(device_id)], PROBED_WITHIN_MS))
        return False

    def _bar(self, device: Device) -> bool:
        """What was counted is forgotten first: a run that dies behind that leaves it to the next customers."""
        fleet, device_id = self._fleet, device.device_id
        before = fleet.grades([device_id])[device_id].bar
        bar = next_bar(before, fleet.now_ms)
        fleet.redis.run(marks.forget_conduct(device_id))
        if fleet.dynamo.run(grades.set_bar(fleet.table("grades"), device_id, before, bar)) is None:
            return False
        fleet.redis.run(marks.put_barred(device.pool, device_id, bar.until_ms))
        fleet.redis.run(marks.mark_changed([marks.bar_mark(device_id)], bar.until_ms - fleet.now_ms))
        log.warning("barred", extra={"device": device_id, "times": bar.times, "until_ms": bar.until_ms})
        return True
