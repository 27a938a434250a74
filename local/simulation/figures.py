"""What a simulated fleet is measured by; `report.py` says it in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """What a simulation measured. Times in ms, bytes and writes as sums."""

    listed_broken_ms: int = 0
    routable_broken_ms: int = 0
    good_unlisted_ms: int = 0
    alive_ms: int = 0
    probes: int = 0
    probe_bytes: int = 0
    grade_writes: int = 0
    listing_writes: int = 0
    braked_rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    fault_to_last_ms: list[int] = field(default_factory=list)
    hit_to_last_ms: list[int] = field(default_factory=list)
    customers_of_fault: list[int] = field(default_factory=list)
    """How many customers were routed to each broken exit; a fault that none met counts as 0."""
    customers: int = 0
    """All that were routed anywhere."""
    fault_to_delisted_ms: list[int] = field(default_factory=list)
    mended_to_listed_ms: list[int] = field(default_factory=list)
    bars: int = 0
    bars_of_honest: int = 0
    liars: int = 0
    liar_customers: int = 0
    """Customers that were dropped by exits that serve probes."""
    liar_listed_ms: int = 0
    first_drop_to_barred_ms: list[int] = field(default_factory=list)
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(hour, listed, listed but broken, good but unlisted)"""
