"""What a simulation found, as figures (JSON) and as a picture (PNG)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from local.simulation.figures import Figures
from local.simulation.world import MINUTE_MS, Rates

DAY_MS: Final = 86_400_000
MONTH_DAYS: Final = 30
WRITE_UNIT_USD: Final = 0.625 / 1_000_000
READ_UNIT_USD: Final = 0.125 / 1_000_000
"""DynamoDB on demand, us-east-1, per unit of 1 KB written or 4 KB read: an assumption, to be checked before a budget."""
GRADE_WRITE_UNITS: Final = 2
LISTING_WRITE_UNITS: Final = 3
"""The row and its place in the index."""
READS_PER_PROBE: Final = 2
PERCENTILES: Final = (50, 90, 99)


def summarise(figures: Figures, count: int, hours: float) -> dict[str, Any]:
    """Per device and day, and for the whole fleet."""
    device_days = figures.alive_ms / DAY_MS
    days = hours / 24
    writes = figures.grade_writes * GRADE_WRITE_UNITS + figures.listing_writes * LISTING_WRITE_UNITS
    reads = figures.probes * READS_PER_PROBE
    usd = (writes * WRITE_UNIT_USD + reads * READ_UNIT_USD) / days * MONTH_DAYS
    return {
        "devices": count,
        "hours": hours,
        "listedButBrokenMinutesPerDeviceDay": _minutes(figures.listed_broken_ms, device_days),
        "routableButBrokenMinutesPerDeviceDay": _minutes(figures.routable_broken_ms, device_days),
        "goodButUnlistedMinutesPerDeviceDay": _minutes(figures.good_unlisted_ms, device_days),
        "seconds": {
            "faultToLastCustomer": percentiles(figures.fault_to_last_ms),
            "firstHitToLastCustomer": percentiles(figures.hit_to_last_ms),
            "faultToDelisted": percentiles(figures.fault_to_delisted_ms),
            "recoveredToListed": percentiles(figures.mended_to_listed_ms),
        },
        "customersRoutedToABrokenExit": {
            **_counts(figures.customers_of_fault),
            "perMillionCustomers": round(
                sum(figures.customers_of_fault) * 1_000_000 / max(figures.customers, 1)
            ),
        },
        "liars": {
            "exits": figures.liars,
            "customersDroppedPerLiarDay": round(figures.liar_customers / max(figures.liars, 1) / days),
            "listedShareOfTime": round(
                figures.liar_listed_ms / max(figures.liars * hours * MINUTE_MS * 60, 1), 3
            ),
            "firstDropToBarredSeconds": percentiles(figures.first_drop_to_barred_ms),
            "bars": figures.bars,
            "barsOfHonestExits": figures.bars_of_honest,
        },
        "probesPerDeviceDay": round(figures.probes / device_days, 1),
        "probeMBPerDeviceDay": round(figures.probe_bytes / device_days / 1_000_000, 2),
        "gradeWritesPerDay": round(figures.grade_writes / days),
        "listingWritesPerDay": round(figures.listing_writes / days),
        "writesIfEveryProbeWrotePerDay": round(figures.probes / days),
        "dynamoUsdPerMonth": round(usd),
        "brakedRounds": figures.braked_rounds,
        "outcomes": dict(figures.outcomes.most_common()),
    }


def _minutes(total_ms: int, device_days: float) -> float:
    return round(total_ms / MINUTE_MS / device_days, 3)


def percentiles(found_ms: list[int]) -> dict[str, float | int]:
    """p50, p90, p99 and the count; seconds."""
    ordered = sorted(found_ms)
    if not ordered:
        return {"n": 0}
    at = {
        f"p{p}": round(ordered[min(len(ordered) * p // 100, len(ordered) - 1)] / 1000, 1) for p in PERCENTILES
    }
    return {**at, "n": len(ordered)}


def _counts(found: list[int]) -> dict[str, float | int]:
    """Of customers per fault: mean, p50, p99, most."""
    ordered = sorted(found)
    if not ordered:
        return {"faults": 0}
    p50, p99 = (ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 99))
    mean = round(sum(ordered) / len(ordered), 2)
    return {"faults": len(ordered), "mean": mean, "p50": p50, "p99": p99, "most": ordered[-1]}


def draw(figures: Figures, count: int, rates: Rates, path: Path) -> None:
    """The fleet over time, and how fast faults and recoveries are followed."""
    import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (fleet, shares) = plt.subplots(1, 2, figsize=(13, 4.5))
    hours = [point[0] for point in figures.series]
    for place, label in ((1, "listed"), (2, "listed but broken"), (3, "good but unlisted")):
        fleet.plot(hours, [max(point[place], 1) for point in figures.series], label=label)
    fleet.set_yscale("log")
    for at, what in (
        (rates.carrier_at_h, "carrier out"),
        (rates.region_at_h, "region lost"),
        (rates.target_at_h, "target out"),
    ):
        if hours and at <= hours[-1]:
            fleet.axvline(at, color="grey", linestyle=":")
            where = fleet.get_xaxis_transform()
            fleet.text(at, 0.55, what, rotation=90, fontsize=8, color="grey", transform=where)
    fleet.set(title=f"{count:,} devices", xlabel="hours", ylabel="devices")
    fleet.legend(loc="center right")
    for found, label in (
        (figures.fault_to_last_ms, "fault to last customer"),
        (figures.hit_to_last_ms, "first failed customer to last"),
        (figures.fault_to_delisted_ms, "fault to delisted"),
        (figures.mended_to_listed_ms, "recovered to listed"),
    ):
        ordered = sorted(found)
        if ordered:
            share = [(n + 1) / len(ordered) for n in range(len(ordered))]
            shares.plot([max(ms, 1) / 1000 for ms in ordered], share, label=label)
    shares.set_xscale("log")
    shares.set(title="convergence", xlabel="seconds", ylabel="share of cases")
    shares.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
