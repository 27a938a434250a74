"""How an exit treats customers, whatever it does for probes: whose word counts, when it is barred, for how long. Pure.

A probe cannot find an exit that serves our targets and drops everybody else: a liar, or a network that lets some sites
through only. So its customers are asked, each with one voice. Decision 0075.
"""

from math import log10
from typing import Final

from shared.grading.model import Bar, Conduct, Experience, Thresholds

WINDOW_S: Final = 3600
"""An exit's conduct is counted for so long, from the first customer that it failed."""
PROBED_WITHIN_MS: Final = 15_000
"""An exit is barred when it is found guilty twice, so far apart that a probe had its chance: what probes find broken, they
see to, and it is back as soon as it works.
"""
EXCUSED_S: Final = 60
"""Customers that failed around a probe that failed, too, say nothing that is not known."""
EXCUSES_MAX: Final = 2
"""Within the window; whoever fails more probes, never so many in a row that it is delisted, is judged like others."""
CUSTOMERS_MIN: Final = 3
"""No setting makes fewer customers enough. From so many on that failed, an exit is looked at."""
TUNNELS_MIN: Final = 8
TARGETS_MIN: Final = 3
"""Different targets that failed: one that is dead, or that bans the exit's address, is no fault of the exit."""
ELSEWHERE_MIN: Final = 5
ELSEWHERE_FAILED_PERCENT_WELL: Final = 10
"""Up to here a customer's word counts in full, and beyond it the less, the worse it fares: where one exit in ten lies,
every customer fails one time in ten.
"""
ELSEWHERE_FAILED_PERCENT_MAX: Final = 30
"""Whoever fares worse than this with other exits has trouble of its own."""
HOLD_MS: Final = 30 * 60_000
HOLD_MAX_MS: Final = 24 * 3600_000
FORGOTTEN_AFTER_MS: Final = 24 * 3600_000
ADVICE: Final = (
    "Customers' connections fail on this device while our probes pass: a firewall, filter or DNS on its path lets only "
    "some sites through, or its router drops connections under load. It is on sale again by itself at offSaleUntil."
)
"""What a supplier can do about it."""
CHECK: Final = "customers"
"""The failing check that a supplier is shown."""


def word_of(customer: Experience) -> float:
    """What the word of a customer that an exit failed counts against it, 0 to 1: others serve it, and nearly always.

    The logarithm of how likely an honest exit fails it, so that words add up to how unlikely it is that an exit is honest.
    """
    elsewhere = customer.served_elsewhere + customer.failed_elsewhere
    if (
        elsewhere < ELSEWHERE_MIN
        or customer.failed_elsewhere * 100 > elsewhere * ELSEWHERE_FAILED_PERCENT_MAX
    ):
        return 0.0
    if customer.failed_elsewhere * 100 <= elsewhere * ELSEWHERE_FAILED_PERCENT_WELL:
        return 1.0
    return -log10(customer.failed_elsewhere / elsewhere)


def lets_customers_down(conduct: Conduct, thresholds: Thresholds) -> bool:
    """Whether enough witnesses were let down, and few customers served. Each has one voice, however many its tunnels are;
    whoever was served speaks for the exit, witness or not.
    """
    against = [(c, word_of(c)) for c in conduct.customers if c.failed > c.served]
    witnesses = [c for c, word in against if word]
    served = sum(c.served > 0 and c.served >= c.failed for c in conduct.customers)
    return (
        sum(word for _, word in against) >= thresholds.customers_to_bar
        and len(witnesses) * 100 >= thresholds.bar_percent * (len(witnesses) + served)
        and sum(c.failed for c in witnesses) >= TUNNELS_MIN
        and conduct.targets >= TARGETS_MIN
    )


def next_bar(before: Bar, now_ms: int) -> Bar:
    """For half an hour, and twice as long each time; a day without one after its end, and the count begins again.

    So an exit goes off and on sale for this reason six times in any day at most.
    """
    fresh = not before.until_ms or now_ms >= before.until_ms + FORGOTTEN_AFTER_MS
    times = 0 if fresh else before.times
    hold_ms = min(HOLD_MS << min(times, 10), HOLD_MAX_MS)
    return Bar(times + 1, now_ms + hold_ms)


def is_barred(bar: Bar, now_ms: int) -> bool:
    """Whether an exit is off sale on customers' word. One that seems to last too long was written by a wrong clock."""
    return 0 < bar.until_ms - now_ms <= HOLD_MAX_MS
