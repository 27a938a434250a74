"""Runs a fleet through simulated time: every verdict, tier, next time and brake is the real rule's.

A settled exit's probes are not run one by one, because the rules leave it as it is: they are counted, and the next one that
could say something else is drawn.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from gateway_node.tunnels import BARREN_CUSTOMERS
from local.simulation.figures import Figures
from local.simulation.liars import Customers
from local.simulation.world import FAILURES, HOUR_MS, MINUTE_MS, NOTICED_AFTER_MS, Device, Fault, Rates, World
from shared.grading.conduct import next_bar
from shared.grading.live import FAULT_WAITS_S, FAULTS_KEPT_S, LEFT_AFTER_MS
from shared.grading.model import Bar, Cause, Failure, ProbeResult, Thresholds
from shared.grading.rules import (
    LIGHT_BYTES,
    LONG_MEAN_BYTES,
    LONG_SHARE,
    MEASURE_EVERY_MS,
    PLAIN_EVERY_MS,
    PROBE_OVERHEAD_BYTES,
    WRITE_EVERY_MS,
    Listing,
    add_result,
    brake_allows,
    choose_plan,
    decide_listing,
    is_worth_writing,
    next_probe_ms,
    throughput_kbps,
    wants_attention,
)
from shared.pool.live import BREAKER_PAUSE_S

ROUND_MS: Final = 20_000
POLL_MS: Final = 250
PASS_MS: Final = 600
FAIL_MS: Final = {Fault.REFUSES: 300, Fault.DROPS: 500, Fault.HANGS: 12_000, Fault.ALTERS: 900}
URGENT_FAIL_MAX_MS: Final = 3_000
PAUSE_MS: Final = 120_000
SAMPLE_MS: Final = 5 * MINUTE_MS
PLACES: Final = ("eu", "us")


class Simulation:
    """One run, decided by its seed."""

    def __init__(self, count: int, hours: float, rates: Rates, thresholds: Thresholds, seed: int = 1) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self.world = World(count, rates, self._rng)
        self.world.populate()
        self.customers = Customers(self.world.devices, thresholds, rates)
        self._thresholds = thresholds
        self._end_ms = int(hours * HOUR_MS)
        self._heap: list[tuple[int, int, Callable[..., None], Device | None, int]] = []
        self._sequence = 0
        self._now = 0
        self._marked: set[int] = set()
        self._held: set[int] = set()
        self._listed = 0
        self._listed_broken = 0
        self._good_unlisted = 0
        self.figures = Figures()

    def run(self) -> Figures:
        """Run to the end."""
        self._begin()
        while self._heap and self._heap[0][0] <= self._end_ms:
            self._now, _, act, device, token = heapq.heappop(self._heap)
            if device is None:
                act()
            else:
                act(device, token)
        self._now = self._end_ms
        for device in self.world.devices:
            self._account(device)
        self.figures.alive_ms = self._end_ms * len(self.world.devices)
        self.figures.customers = self._customers()
        return self.figures

    def _at(self, in_ms: int, act: Callable[..., None], device: Device | None = None, token: int = 0) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self._now + max(in_ms, 0), self._sequence, act, device, token))

    def _begin(self) -> None:
        rates, spread = self.world.rates, self._thresholds.interval_s * 1000
        for device in self.world.devices:
            self._at(self._rng.randrange(spread), self._probe, device)
            if not device.alters:
                self._at(self.world.works_for_ms(device), self._break, device)
            self._at(self.world.stays_for_ms(), self._leave, device)
            if device.lies:
                self.figures.liars += 1
                self._at(self.world.customer_in_ms(), self._dropped, device)
            if device.decays:
                self._at(self._rng.randrange(self._end_ms), self._decay, device)
        self._at(ROUND_MS, self._round)
        self._at(SAMPLE_MS, self._sample)
        self._at(int(rates.carrier_at_h * HOUR_MS), self._carrier_out)
        self._at(int(rates.region_at_h * HOUR_MS), self._region_lost)

    def _customers(self) -> int:
        """About how many there were: each exit on sale has its own, one every so often."""
        listed_ms = SAMPLE_MS * sum(point[1] for point in self.figures.series)
        return round(listed_ms / 1000 / self.world.rates.customer_every_s)

    # what is measured

    def _account(self, device: Device) -> None:
        """Called before anything about a device changes."""
        passed = self._now - device.since_ms
        if passed:
            if device.grade.listed and device.lies:
                self.figures.liar_listed_ms += passed
            if device.grade.listed and device.broken:
                self.figures.listed_broken_ms += passed
                held_ms = min(max(device.paused_until_ms - device.since_ms, 0), passed)
                self.figures.routable_broken_ms += passed - held_ms
            elif device.good and not device.grade.listed:
                self.figures.good_unlisted_ms += passed
        device.since_ms = self._now

    def _sample(self) -> None:
        listed = broken = unlisted = 0
        for device in self.world.devices:
            listed += device.grade.listed
            broken += device.grade.listed and device.broken
            unlisted += device.good and not device.grade.listed
        self.figures.series.append((self._now / HOUR_MS, listed, broken, unlisted))
        self._at(SAMPLE_MS, self._sample)

    # fates

    def _break(self, device: Device, _: int) -> None:
        self._account(device)
        if device.fault is None:
            device.fault = self.world.new_fault()
            self._at(self.world.broken_for_ms(device), self._mend, device)
            self._went_wrong(device)

    def _mend(self, device: Device, _: int) -> None:
        self._account(device)
        device.fault = None
        self._went_right(device)
        self._at(self.world.works_for_ms(device), self._break, device)

    def _decay(self, device: Device, _: int) -> None:
        device.kbps = device.kbps * 2 // 3
        self._at(HOUR_MS, self._decay, device)

    def _leave(self, device: Device, _: int) -> None:
        if device.away:
            return
        self._account(device)
        device.away = True
        self._unsettle(device)
        device.probe_token += 1
        self._at(LEFT_AFTER_MS, self._mark, device)
        self._at(self.world.away_for_ms(), self._return, device)

    def _return(self, device: Device, _: int) -> None:
        self._account(device)
        device.away = False
        self._marked.add(device.index)
        device.probe_token += 1
        self._at(POLL_MS, self._probe, device, device.probe_token)
        self._went_right(device)
        self._at(self.world.stays_for_ms(), self._leave, device)

    def _carrier_out(self) -> None:
        for device in self.world.devices:
            if device.in_carrier:
                self._account(device)
                device.carrier_out = True
                self._went_wrong(device)
        self._at(int(self.world.rates.carrier_for_min * MINUTE_MS), self._carrier_back)

    def _carrier_back(self) -> None:
        for device in self.world.devices:
            if device.in_carrier:
                self._account(device)
                device.carrier_out = False
                self._went_right(device)

    def _region_lost(self) -> None:
        """A relay region dies: its devices are absent at once, and come back elsewhere as they redial."""
        within_ms = int(self.world.rates.region_back_within_s * 1000)
        for device in self.world.devices:
            if device.in_region and not device.away:
                self._account(device)
                device.away = True
                self._unsettle(device)
                device.probe_token += 1
                self._at(LEFT_AFTER_MS, self._mark, device)
                self._at(self._rng.randrange(within_ms), self._return, device)

    def _went_wrong(self, device: Device) -> None:
        if not device.grade.listed or device.broke_ms >= 0 or device.away:
            return
        device.broke_ms, device.first_hit_ms, device.last_routed_ms = self._now, -1, -1
        device.customers = 0
        device.mended_ms = -1
        self._unsettle(device)
        self._at(self.world.customer_in_ms(), self._customer, device, self._now)

    def _went_right(self, device: Device) -> None:
        if not device.works:
            return
        self._close_fault(device)
        if not device.grade.listed and device.grade.listed_before:
            device.mended_ms = self._now

    def _close_fault(self, device: Device) -> None:
        if device.broke_ms >= 0:
            self.figures.customers_of_fault.append(device.customers)
        if device.broke_ms >= 0 and device.last_routed_ms >= 0:
            self.figures.fault_to_last_ms.append(device.last_routed_ms - device.broke_ms)
            self.figures.hit_to_last_ms.append(device.last_routed_ms - device.first_hit_ms)
        device.broke_ms = -1

    def _unsettle(self, device: Device) -> None:
        """A settled exit's next probe is somewhere within its interval: put it back into time."""
        if device.settled_ms < 0:
            return
        self._count_settled(device)
        device.settled_ms = -1
        device.probe_token += 1
        self._at(
            self._rng.randrange(self._thresholds.interval_s * 1000), self._probe, device, device.probe_token
        )

    # customers

    def _customer(self, device: Device, broke_ms: int) -> None:
        if device.broke_ms != broke_ms or not device.grade.listed or device.away:
            return
        if self._now >= device.paused_until_ms:
            device.last_routed_ms = self._now
            device.customers += 1
            self._complains(device)
            if device.first_hit_ms < 0:
                device.first_hit_ms = self._now
            fault = device.fault or Fault.HANGS
            noticed_ms = NOTICED_AFTER_MS[fault]
            if noticed_ms is not None:
                self._at(noticed_ms, self._report, device, broke_ms)
        self._at(self.world.customer_in_ms(), self._customer, device, broke_ms)

    def _dropped(self, device: Device, _: int) -> None:
        """A customer of an exit that serves probes alone: accepted, and closed without a byte."""
        self._at(self.world.customer_in_ms(), self._dropped, device)
        if not device.grade.listed or not device.works or self._now < device.paused_until_ms:
            return
        self.figures.liar_customers += 1
        self._complains(device)
        device.barren += 1
        if device.barren % BARREN_CUSTOMERS == 0 and self._reported(device):
            self._account(device)
            device.paused_until_ms = self._now + BREAKER_PAUSE_S * 1000

    def _complains(self, device: Device) -> None:
        self.customers.failed(device, self.world.new_customer(), self._now)

    def _excuse(self, device: Device) -> None:
        self.customers.excuse(device, self._now)

    def _report(self, device: Device, broke_ms: int) -> None:
        if device.broke_ms != broke_ms:
            return
        if device.fault is Fault.REFUSES:  # plainly the exit's fault: the breaker opens at once
            self._account(device)
            device.paused_until_ms = max(device.paused_until_ms, self._now + BREAKER_PAUSE_S * 1000)
        self._reported(device)

    def _reported(self, device: Device) -> bool:
        """Whether a fault is probed at once: `report_fault`, in simulated time."""
        passed_ms = self._now - device.reported_ms
        if passed_ms >= FAULTS_KEPT_S * 1000:
            device.reports = 0
        last = min(device.reports, len(FAULT_WAITS_S)) - 1
        if device.reports and passed_ms < FAULT_WAITS_S[last] * 1000:
            return False
        device.reports += 1
        device.reported_ms = self._now
        if device.spent_bytes < self._thresholds.bytes_per_day:
            self._ask_for_probe(device)
        return True

    def _ask_for_probe(self, device: Device) -> None:
        self._unsettle(device)
        device.probe_token += 1
        self._at(POLL_MS, self._probe_urgently, device, device.probe_token)

    # probes

    def _probe_urgently(self, device: Device, token: int) -> None:
        self._probe(device, token, urgent=True)

    def _probe(self, device: Device, token: int, *, urgent: bool = False) -> None:
        if token != device.probe_token:
            return
        took_ms = PASS_MS if device.works else FAIL_MS[device.fault or Fault.HANGS]
        took_ms = min(took_ms, URGENT_FAIL_MAX_MS) if urgent else took_ms
        probed = partial(self._probed, urgent=urgent)
        self._at(0 if device.away else took_ms, probed, device, token)

    def _probed(self, device: Device, token: int, *, urgent: bool = False) -> None:
        if token != device.probe_token:
            return
        self._account(device)
        before = device.grade
        draw = self._rng.random()
        plan = choose_plan(before, device.spent_bytes, self._now, self._thresholds, draw, urgent=urgent)
        result = self._result(device, plan.size_bytes, plain=plan.plain)
        if result is None:  # the target is away: nothing is held against anybody
            self._at(5_000, self._probe, device, token)
            return
        if not device.away:
            cost = PROBE_OVERHEAD_BYTES * (2 if plan.plain else 1) + (plan.size_bytes if result.passed else 0)
            device.spent_bytes += cost
            self.figures.probe_bytes += cost
            self.figures.probes += 1
        self.figures.outcomes[result.failure.value if result.failure else "passed"] += 1
        device.grade = add_result(before, result, self._thresholds)
        self.figures.grade_writes += is_worth_writing(before, device.grade)
        if wants_attention(before, device.grade, self._thresholds):
            self._marked.add(device.index)
        if not result.passed:
            device.reports = 0
            self._excuse(device)
        elif not device.grade.cut_short:
            device.paused_until_ms = 0
        if result.failure is not None and result.failure.cause is Cause.EXIT:
            device.paused_until_ms = self._now + PAUSE_MS
        self._plan_next(device)

    def _result(self, device: Device, size: int, *, plain: bool) -> ProbeResult | None:
        rates, at_ms = self.world.rates, self._now
        place = self._rng.choice([p for p in PLACES if p not in device.grade.vantages] or PLACES)
        if device.away:
            return ProbeResult(at_ms, Failure.PEER_OFFLINE)
        target_out = rates.target_at_h * HOUR_MS
        if place == PLACES[0] and target_out <= at_ms < target_out + rates.target_for_min * MINUTE_MS:
            return None
        if device.broken and (device.fault is not Fault.ALTERS or plain):
            return ProbeResult(at_ms, FAILURES[device.fault or Fault.HANGS], vantage=place)
        if self._rng.random() < rates.noise:
            return ProbeResult(at_ms, Failure.BODY_SHORT, vantage=place)
        kbps = throughput_kbps(size, size // max(device.kbps, 1))
        return ProbeResult(at_ms, throughput_kbps=kbps, vantage=place, exit_mark="x", plain=plain)

    def _plan_next(self, device: Device) -> None:
        grade = device.grade
        assert grade.latest is not None  # noqa: S101 - a result was added
        wait_ms = next_probe_ms(grade, device.spent_bytes, self._thresholds, self._rng.random())
        if wait_ms is None:
            return
        due_soon = self._now - grade.measured_ms >= MEASURE_EVERY_MS
        if grade.listed and grade.latest.passed and device.works and not due_soon and not device.decays:
            device.settled_ms = self._now
            probes = int(math.log(max(self._rng.random(), 1e-12)) / math.log(1 - self.world.rates.noise)) + 1
            wait_ms *= probes
            wait_ms = min(wait_ms, grade.measured_ms + MEASURE_EVERY_MS - self._now)
            self._at(wait_ms, self._settled_probe, device, device.probe_token)
            return
        self._at(wait_ms, self._probe, device, device.probe_token)

    def _settled_probe(self, device: Device, token: int) -> None:
        if token == device.probe_token:
            self._count_settled(device)
            device.settled_ms = -1
            self._probed(device, token)

    def _count_settled(self, device: Device) -> None:
        """The probes of a settled exit that were not run one by one: the same rules, as sums."""
        passed_ms = self._now - device.settled_ms
        probes = passed_ms // (self._thresholds.interval_s * 1000)
        pages = passed_ms // PLAIN_EVERY_MS
        long = int(probes * LONG_SHARE * (LONG_MEAN_BYTES - LIGHT_BYTES))
        cost = probes * (PROBE_OVERHEAD_BYTES + LIGHT_BYTES) + long + pages * PROBE_OVERHEAD_BYTES
        self.figures.probes += probes
        self.figures.outcomes["passed"] += probes
        self.figures.probe_bytes += cost
        self.figures.grade_writes += passed_ms // min(WRITE_EVERY_MS, PLAIN_EVERY_MS)
        device.spent_bytes += cost
        latest = device.grade.latest
        assert latest is not None  # noqa: S101 - it was settled by a result
        device.grade = replace(device.grade, latest=replace(latest, at_ms=self._now))

    # the listing run

    def _mark(self, device: Device, _: int) -> None:
        self._marked.add(device.index)

    def _judge(self) -> None:
        """Bar whom enough customers speak against; who is accused for the first time is probed."""
        for device in self.customers.judge(self._now, self._listed):
            self._barred(device, next_bar(device.grade.bar, self._now))

    def _barred(self, device: Device, bar: Bar) -> None:
        self.figures.bars += 1
        self.figures.bars_of_honest += not device.lies
        if device.lies and device.fared:
            self.figures.first_drop_to_barred_ms.append(self._now - device.fared_ms)
        self.customers.forget(device)
        device.grade = replace(device.grade, bar=bar)
        self._marked.add(device.index)
        self._at(bar.until_ms - self._now, self._mark, device)

    def _round(self) -> None:
        self._judge()
        looked = [self.world.devices[i] for i in sorted(self._marked | self._held)]
        self._marked.clear()
        self._held.clear()
        drop: list[tuple[Device, Listing]] = []
        for device in looked:
            verdict = decide_listing(
                device.grade,
                wanted=True,
                consented=True,
                online=not device.away,
                now_ms=self._now,
                thresholds=self._thresholds,
            )
            if verdict is Listing.LISTED and not device.grade.listed:
                self._list(device)
            elif verdict is not Listing.LISTED and device.grade.listed:
                drop.append((device, verdict))
        for device, verdict in drop:
            if verdict.braked_as is None:
                self._unlist(device, verdict)
        for cause in Cause:
            of_cause = [(device, verdict) for device, verdict in drop if verdict.braked_as is cause]
            if brake_allows(len(of_cause), self._listed, self._thresholds.brake_percent):
                for device, verdict in of_cause:
                    self._unlist(device, verdict)
            else:
                self.figures.braked_rounds += 1
                self._held.update(device.index for device, _ in of_cause)
        for index in sorted(self.customers.accused):
            if self.world.devices[index].accused_ms == self._now:
                self._ask_for_probe(self.world.devices[index])
        self._at(ROUND_MS, self._round)

    def _list(self, device: Device) -> None:
        self._account(device)
        first = not device.grade.listed_before
        device.grade = replace(device.grade, listed=True, listed_before=True, reason="listed")
        self._listed += 1
        self.figures.listing_writes += 1
        if device.mended_ms >= 0 and not first:
            self.figures.mended_to_listed_ms.append(self._now - device.mended_ms)
        device.mended_ms = -1
        if not device.works:
            self._went_wrong(device)

    def _unlist(self, device: Device, verdict: Listing) -> None:
        self._account(device)
        device.grade = replace(device.grade, listed=False, reason=verdict.value)
        self._listed -= 1
        self.figures.listing_writes += 1
        if device.broke_ms >= 0 and verdict is not Listing.OFFLINE:
            self.figures.fault_to_delisted_ms.append(self._now - device.broke_ms)
        self._close_fault(device)
        if device.works and device.mended_ms < 0 and verdict is not Listing.LETS_DOWN:
            device.mended_ms = self._now
