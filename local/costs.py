"""`./psx costs`: what a month of psx costs in AWS, from the prices and the loads named here.

A model, not an offer: prices are assumed for eu-central-1 on demand, without free tiers, tax or support; look them
up before deciding. Loads follow from the code where it says them (probes, flushes, tokens) and are assumed elsewhere.
Money is in integers of a millionth of a US dollar. docs/operations/costs.md holds the table; a test compares the two.
"""

import sys
from dataclasses import dataclass
from typing import Final

from shared.grading.listing import SEGMENTS
from shared.grading.rules import (
    DEFAULTS,
    LIGHT_BYTES,
    LONG_MEAN_BYTES,
    LONG_SHARE,
    PLAIN_EVERY_MS,
    PROBE_OVERHEAD_BYTES,
)
from shared.metering.model import FLUSH_INTERVAL_S
from shared.supply.tokens import TOKEN_LIFE_S

DOLLAR: Final = 1_000_000
HOURS: Final = 730
MINUTES: Final = HOURS * 60
SECONDS: Final = HOURS * 3600
TB_GB: Final = 1_000

# Prices: micro-dollars
LEAVING_PER_GB: Final = ((10_000, 90_000), (40_000, 85_000), (100_000, 70_000), (10**9, 50_000))
"""(GB of this step, price of a GB in it): from AWS to the Internet, in a month."""
CROSSING_PER_GB: Final = 20_000
"""Between zones or regions, both sides."""
NODE_PER_HOUR: Final = 100_000
"""A machine of 4 vCPU and 8 GB (c7g.xlarge class, reserved prices are lower), with its disk and public address."""
BALANCER_PER_HOUR: Final = 27_000
BALANCER_PER_UNIT_HOUR: Final = 6_000
"""A network balancer's unit: 1 GB an hour, or 100,000 open connections, whichever is more."""
TARGET_PER_HOUR: Final = 24_000
"""A probe target's machine (t3.small class), with its disk and public address."""
NAT_PER_HOUR: Final = 57_000
"""A NAT gateway with its public address. What goes through it is little: tables and address data have endpoints."""
CACHE_SMALL_PER_HOUR: Final = 31_000
CACHE_LARGE_PER_HOUR: Final = 160_000
WRITES_PER_MILLION: Final = 763_000
READS_PER_MILLION: Final = 153_000
CALLS_PER_MILLION: Final = 1_400_000
"""HTTP API and Lambda, per request."""
LAMBDA_GB_SECONDS_PER_MILLION: Final = 16_700_000
WATCHING: Final = 25 * DOLLAR
"""Keys, secrets, alarms, dashboard, logs of the functions, sampled traces."""

# Loads
DEVICES_PER_RELAY: Final = 10_000
TB_PER_GATEWAY: Final = 20
TARGETS: Final = 2
SPARE_NODES: Final = 2
"""One relay and one gateway: rolling updates and the loss of a machine."""
SOCKETS_PER_DEVICE: Final = 4
CACHE_SMALL_DEVICES_MAX: Final = 10_000
DEVICE_ROW_BYTES: Final = 1_000
SWEPT_PER_MINUTE: Final = 4
"""Segments: a large fleet is not swept faster in the time that a run has."""
PROBES_PER_DAY: Final = 254
READS_PER_PROBE: Final = 2
WRITES_PER_DEVICE_DAY: Final = 147
"""In units: 55 grades of two, 12 listings of three."""
BUSY_DEVICE_MBIT: Final = 4
"""How fast a device carries while it carries: decides how many (device, flush) lines a terabyte makes."""
WRITES_PER_LINE: Final = 14
"""A transfer, two balances and two postings, and two day rows, each doubled because they are transactions."""
CALL_GB_MS: Final = 50
READS_PER_REFRESH: Final = 2
WRITES_PER_REFRESH: Final = 1
STEADY_JOBS_MB: Final = 1024 + 256
"""Roll-up and live numbers run all the time."""
DEVICES: Final = (1_000, 42_000, 200_000)
TERABYTES: Final = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class Month:
    """One month, in micro-dollars."""

    leaving: int
    crossing: int
    balancers: int
    nodes: int
    metering: int
    listing: int
    api: int
    probes: int
    targets: int
    fixed: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, name) for name in self.__slots__)


def month(devices: int, terabytes: int) -> Month:
    """The costs of a month with so many devices online and so much traffic sold."""
    sold_gb, probes_gb = terabytes * TB_GB, probe_gb(devices)
    machines = -(-devices // DEVICES_PER_RELAY) + -(-terabytes // TB_PER_GATEWAY) + SPARE_NODES
    connections = devices * SOCKETS_PER_DEVICE * HOURS // 100_000
    units = sold_gb + max(sold_gb, connections)  # the gateways' balancer, the relays'
    cache = CACHE_SMALL_PER_HOUR if devices <= CACHE_SMALL_DEVICES_MAX else CACHE_LARGE_PER_HOUR
    steady = SECONDS * STEADY_JOBS_MB * LAMBDA_GB_SECONDS_PER_MILLION // 1024 // 10**6
    return Month(
        leaving=leaving(sold_gb),
        crossing=sold_gb * CROSSING_PER_GB,
        balancers=2 * HOURS * BALANCER_PER_HOUR + units * BALANCER_PER_UNIT_HOUR,
        nodes=machines * HOURS * NODE_PER_HOUR,
        metering=lines(terabytes) * WRITES_PER_LINE * WRITES_PER_MILLION // 10**6,
        listing=listing(devices),
        api=refreshes(devices),
        probes=probes_gb * (CROSSING_PER_GB + BALANCER_PER_UNIT_HOUR),
        targets=TARGETS * HOURS * (BALANCER_PER_HOUR + TARGET_PER_HOUR)
        + probes_gb * BALANCER_PER_UNIT_HOUR
        + leaving(probes_gb),
        fixed=2 * HOURS * (NAT_PER_HOUR + cache) + steady + WATCHING,
    )


def leaving(gigabytes: int) -> int:
    """What it costs to send so much to the Internet."""
    cost, left = 0, gigabytes
    for step, price in LEAVING_PER_GB:
        cost += min(left, step) * price
        left -= min(left, step)
    return cost


def lines(terabytes: int) -> int:
    """Counted (device, flush) pairs of so much traffic."""
    bytes_per_line = int(BUSY_DEVICE_MBIT * 1_000_000 // 8 * FLUSH_INTERVAL_S)
    return terabytes * TB_GB * 10**9 // bytes_per_line


def listing(devices: int) -> int:
    """Grades as probes find them, and a part of all devices swept each minute. Source: docs/quality.md."""
    swept = devices * (2 * DEVICE_ROW_BYTES + 4096) // 4096 // 2 * SWEPT_PER_MINUTE // SEGMENTS * MINUTES
    days = MINUTES // 1440
    reads = swept + devices * days * PROBES_PER_DAY * READS_PER_PROBE
    writes = devices * days * WRITES_PER_DEVICE_DAY
    return (reads * READS_PER_MILLION + writes * WRITES_PER_MILLION) // 10**6


def refreshes(devices: int) -> int:
    """Each device asks for its next token when the one before ends."""
    calls = devices * SECONDS // TOKEN_LIFE_S
    running = CALL_GB_MS * LAMBDA_GB_SECONDS_PER_MILLION // 1000
    stores = READS_PER_REFRESH * READS_PER_MILLION + WRITES_PER_REFRESH * WRITES_PER_MILLION
    return calls * (CALLS_PER_MILLION + running + stores) // 10**6


def probe_gb(devices: int) -> int:
    """What probes of settled exits carry with the default thresholds: a small body always, a long one seldom."""
    light = SECONDS // DEFAULTS.interval_s * (LIGHT_BYTES + PROBE_OVERHEAD_BYTES)
    pages = SECONDS * 1000 // PLAIN_EVERY_MS * PROBE_OVERHEAD_BYTES
    long = int(SECONDS // DEFAULTS.interval_s * LONG_SHARE * (LONG_MEAN_BYTES - LIGHT_BYTES))
    return devices * (light + pages + long) // 10**9


def table() -> str:
    """The table of docs/operations/costs.md, in whole dollars."""
    names = Month.__slots__
    rows = [f"| devices | TB sold | {' | '.join(names)} | all |", "|---" * (len(names) + 3) + "|"]
    for devices in DEVICES:
        for terabytes in TERABYTES:
            found = month(devices, terabytes)
            cells = [getattr(found, name) for name in names] + [found.total]
            told = " | ".join(f"{cell // DOLLAR:,}" for cell in cells)
            rows.append(f"| {devices:,} | {terabytes} | {told} |")
    return "\n".join(rows) + "\n"


def costs() -> int:
    """Print the table; answers the exit status."""
    sys.stdout.write(table())
    return 0
