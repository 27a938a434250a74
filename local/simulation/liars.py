"""Exits that serve probes and drop customers, and what customers' word does to them, in simulated time.

Only customers that an exit failed are played; that they fare well elsewhere is assumed, because nearly all exits work.
"""

from __future__ import annotations

from typing import Final

from local.simulation.world import Device
from shared.grading.conduct import (
    CUSTOMERS_MIN,
    EXCUSED_S,
    PROBED_WITHIN_MS,
    WINDOW_S,
    is_barred,
    lets_customers_down,
)
from shared.grading.model import Conduct, Experience, Thresholds
from shared.grading.rules import brake_allows

SERVED_ELSEWHERE: Final = 1_000


class Customers:
    """What customers said, and who is to be looked at for it: the count that gateways keep, by the real rule."""

    def __init__(self, devices: list[Device], thresholds: Thresholds) -> None:
        self._devices, self._thresholds = devices, thresholds
        self.accused: set[int] = set()
        self._barred: set[int] = set()

    def failed(self, device: Device, customer: int, now_ms: int) -> bool:
        """A customer was failed; False while a failed probe explains it."""
        if now_ms < device.excused_until_ms:
            return False
        if device.fared and now_ms - device.fared_ms >= WINDOW_S * 1000:
            self.forget(device)
        if not device.fared:
            device.fared_ms = now_ms
        device.fared[customer] = device.fared.get(customer, 0) + 1
        if len(device.fared) >= CUSTOMERS_MIN:
            self.accused.add(device.index)
        return True

    def excuse(self, device: Device, now_ms: int) -> None:
        """A probe failed."""
        self.forget(device)
        device.excused_until_ms = now_ms + EXCUSED_S * 1000

    def forget(self, device: Device) -> None:
        """What follows is counted afresh."""
        device.fared.clear()
        device.accused_ms = -1

    def judge(self, now_ms: int, listed: int) -> list[Device]:
        """Who is barred now, as `shared/grading/barring.py` does it on stores."""
        looked = [self._devices[i] for i in sorted(self.accused)]
        self.accused.clear()
        guilty: list[Device] = []
        for device in looked:
            if self._is_guilty(device, now_ms):
                self.accuse(device, now_ms)
                if now_ms - device.accused_ms >= PROBED_WITHIN_MS:
                    guilty.append(device)
        self._barred = {i for i in self._barred if is_barred(self._devices[i].grade.bar, now_ms)}
        standing = len(self._barred)
        percent = self._thresholds.brake_percent
        if guilty and not brake_allows(standing + len(guilty), listed + standing, percent):
            return []
        self.accused -= {device.index for device in guilty}
        self._barred |= {device.index for device in guilty}
        return guilty

    def accuse(self, device: Device, now_ms: int) -> None:
        """Judged again in the next round, unless a probe fails until then."""
        self.accused.add(device.index)
        device.accused_ms = now_ms if device.accused_ms < 0 else device.accused_ms

    def _is_guilty(self, device: Device, now_ms: int) -> bool:
        said = tuple(Experience(0, count, SERVED_ELSEWHERE) for count in device.fared.values())
        found = lets_customers_down(Conduct(said, len(device.fared)), self._thresholds)
        return found and device.grade.listed and not is_barred(device.grade.bar, now_ms)
