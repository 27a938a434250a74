"""The fleet of a simulation: what each device really is, and when it breaks, mends, leaves and returns.

Rates are assumptions, named here; nothing in the rules knows them.
"""

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway_node.attempts import SLOW_OPEN_S
from shared.grading.model import Failure, Grade
from shared.kernel.ids import DeviceId

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000


class Fault(StrEnum):
    """How a device is broken, and so who notices after how long."""

    REFUSES = "refuses"
    DROPS = "drops"
    HANGS = "hangs"
    ALTERS = "alters"


NOTICED_AFTER_MS: Final = {
    Fault.REFUSES: 100,
    Fault.DROPS: 1_000,
    Fault.HANGS: int(SLOW_OPEN_S * 1000),
    Fault.ALTERS: None,
}
"""When a customer's failed tunnel is reported; nobody reports altered content."""
FAILURES: Final = {
    Fault.REFUSES: Failure.CONNECT_REFUSED,
    Fault.DROPS: Failure.TLS_DROPPED,
    Fault.HANGS: Failure.CONNECT_TIMEOUT,
    Fault.ALTERS: Failure.PLAIN_ALTERED,
}


@dataclass(frozen=True, slots=True)
class Rates:
    """How the fleet behaves. Means are of exponential times, shares of the whole fleet."""

    break_every_h: float = 48.0
    broken_for_min: float = 15.0
    leave_every_h: float = 8.0
    away_for_min: float = 20.0
    flapping_share: float = 0.01
    flapping_period_min: float = 10.0
    decaying_share: float = 0.02
    altering_share: float = 0.003
    lying_share: float = 0.005
    """Serve probes and drop customers, always."""
    customers: int = 2_000
    noise: float = 0.002
    customer_every_s: float = 20.0
    carrier_share: float = 0.15
    carrier_at_h: float = 2.0
    carrier_for_min: float = 15.0
    region_share: float = 0.30
    region_at_h: float = 4.0
    region_back_within_s: float = 90.0
    target_at_h: float = 6.0
    target_for_min: float = 10.0


@dataclass(slots=True)
class Device:
    """One device: the truth about it, and what the network believes."""

    index: int
    grade: Grade
    flaps: bool = False
    decays: bool = False
    alters: bool = False
    lies: bool = False
    in_carrier: bool = False
    in_region: bool = False
    kbps: int = 2_000
    fault: Fault | None = None
    carrier_out: bool = False
    away: bool = False
    # the network's side
    fared: dict[int, int] = field(default_factory=dict)
    """Customers that it failed -> how often."""
    fared_ms: int = 0
    excused_until_ms: int = 0
    accused_ms: int = -1
    barren: int = 0
    probe_token: int = 0
    settled_ms: int = -1
    paused_until_ms: int = 0
    reports: int = 0
    reported_ms: int = 0
    spent_bytes: int = 0
    # what is measured
    since_ms: int = 0
    broke_ms: int = -1
    first_hit_ms: int = -1
    last_routed_ms: int = -1
    customers: int = 0
    mended_ms: int = -1

    @property
    def works(self) -> bool:
        """Whether a customer would be served."""
        return self.fault is None and not self.carrier_out and not self.away

    @property
    def good(self) -> bool:
        """Whether it ought to be on sale."""
        return self.works and not self.lies

    @property
    def broken(self) -> bool:
        """Whether it is there and serves nobody."""
        return not self.away and not self.works


@dataclass(slots=True)
class World:
    """Devices, and the draw of their fates."""

    count: int
    rates: Rates
    rng: random.Random
    devices: list[Device] = field(default_factory=list)

    def populate(self) -> None:
        """Make the fleet."""
        draw, rates = self.rng.random, self.rates
        for index in range(self.count):
            kind = draw()
            device = Device(index, Grade(DeviceId(f"d{index}")))
            device.flaps = kind < rates.flapping_share
            device.decays = rates.flapping_share <= kind < rates.flapping_share + rates.decaying_share
            device.alters = draw() < rates.altering_share
            device.lies = not device.alters and draw() < rates.lying_share
            device.in_carrier = draw() < rates.carrier_share
            device.in_region = draw() < rates.region_share
            device.kbps = int(self.rng.lognormvariate(7.3, 0.8))
            device.fault = Fault.ALTERS if device.alters else None
            self.devices.append(device)

    def works_for_ms(self, device: Device) -> int:
        """Until it breaks the next time."""
        mean_ms = (
            self.rates.flapping_period_min * MINUTE_MS if device.flaps else self.rates.break_every_h * HOUR_MS
        )
        return int(self.rng.expovariate(1 / mean_ms))

    def broken_for_ms(self, device: Device) -> int:
        """Until it mends by itself."""
        mean_min = self.rates.flapping_period_min if device.flaps else self.rates.broken_for_min
        return int(self.rng.expovariate(1 / (mean_min * MINUTE_MS)))

    def stays_for_ms(self) -> int:
        """Until it leaves."""
        return int(self.rng.expovariate(1 / (self.rates.leave_every_h * HOUR_MS)))

    def away_for_ms(self) -> int:
        """Until it returns."""
        return int(self.rng.expovariate(1 / (self.rates.away_for_min * MINUTE_MS)))

    def customer_in_ms(self) -> int:
        """Until the next customer is routed to it."""
        return max(int(self.rng.expovariate(1 / (self.rates.customer_every_s * 1000))), 1)

    def new_customer(self) -> int:
        """Which customer that is."""
        return self.rng.randrange(self.rates.customers)

    def new_fault(self) -> Fault:
        """How it breaks."""
        return self.rng.choice((Fault.REFUSES, Fault.DROPS, Fault.HANGS))
