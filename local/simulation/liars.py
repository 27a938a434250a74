"""Exits that serve probes and drop customers, and what customers' word does to them, in simulated time.

Only customers that an exit failed are played. How often they are served elsewhere is their share of all tunnels, and how
often they are failed there is counted: where many exits lie, nobody fares well.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from local.simulation.world import Device, Rates
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

SERVED_MIN: Final = 100
"""A fleet of a few devices has customers that are known from elsewhere, too."""


class Customers:
    """What customers said, and who is to be looked at for it: the count that gateways keep, by the real rule."""

    def __init__(self, devices: list[Device], thresholds: Thresholds, rates: Rates) -> None:
        self._devices, self._thresholds = devices, thresholds
        tunnels = len(devices) * WINDOW_S / rates.customer_every_s / rates.customers
        self.served = max(int(tunnels), SERVED_MIN)
        """How many tunnels of each customer are served within the window."""
        self._failed: Counter[int] = Counter()
        self._began_ms = 0
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
        self._failed[customer] += 1
        if len(device.fared) >= CUSTOMERS_MIN:
            self.accused.add(device.index)
        return True

    def excuse(self, device: Device, now_ms: int) -> None:
        """A probe failed."""
        self.forget(device)
        device.excused_until_ms = now_ms + EXCUSED_S * 1000

    def forget(self, device: Device) -> None:
        """What follows is counted afresh."""
        for customer, count in device.fared.items():
            self._failed[customer] = max(self._failed[customer] - count, 0)
        device.fared.clear()
        device.accused_ms = -1

    def judge(self, now_ms: int, listed: int) -> list[Device]:
        """Who is barred now, as `shared/grading/barring.py` does it on stores."""
        if now_ms - self._began_ms >= WINDOW_S * 1000:
            self._failed.clear()
            self._began_ms = now_ms
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
        said = tuple(self._experience(customer, count) for customer, count in device.fared.items())
        found = lets_customers_down(Conduct(said, len(device.fared)), self._thresholds)
        return found and device.grade.listed and not is_barred(device.grade.bar, now_ms)

    def _experience(self, customer: int, count: int) -> Experience:
        failed = self._failed[customer]
        return Experience(0, count, self.served, max(failed - count, 0))
