"""Customers' word on an exit: enough witnesses, each with one voice; never one hostile customer, never a dead target."""

from dataclasses import replace
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.grading.conduct import (
    FORGOTTEN_AFTER_MS,
    HOLD_MAX_MS,
    HOLD_MS,
    is_barred,
    lets_customers_down,
    next_bar,
)
from shared.grading.model import Bar, Conduct, Experience, Grade, ProbeResult, Thresholds
from shared.grading.rules import Listing, decide_listing
from shared.kernel.ids import DeviceId

T = Thresholds()
DOWN = Experience(served=0, failed=2, served_elsewhere=100, failed_elsewhere=3)
SERVED = Experience(served=3, failed=0)
DAY_MS = 86_400_000
CHANCE_PER_HOUR = {10: 7e-6, 20: 3e-5, 30: 1e-4}

experiences = st.lists(
    st.builds(
        Experience,
        served=st.integers(0, 50),
        failed=st.integers(0, 50),
        served_elsewhere=st.integers(0, 200),
        failed_elsewhere=st.integers(0, 200),
    ),
    max_size=30,
).map(tuple)


def down(*customers: Experience, targets: int = 9) -> bool:
    return lets_customers_down(Conduct(customers, targets), T)


def test_six_witnesses_that_were_let_down_and_few_served_are_enough() -> None:
    assert down(*[DOWN] * 6)
    assert not down(*[DOWN] * 5)
    assert down(*[DOWN] * 8, *[SERVED] * 2)
    assert not down(*[DOWN] * 8, *[SERVED] * 3)


def test_a_dead_target_or_two_are_no_fault_of_the_exit() -> None:
    assert not down(*[DOWN] * 50, targets=2)


def test_a_handful_of_tunnels_says_nothing() -> None:
    assert not down(*[replace(DOWN, failed=1)] * 7)
    assert down(*[replace(DOWN, failed=1)] * 8)


@pytest.mark.parametrize(
    "customer",
    [
        Experience(0, 9, served_elsewhere=4),  # hardly known
        Experience(
            0, 9, served_elsewhere=69, failed_elsewhere=31
        ),  # fails everywhere, as in the outage of a target
        Experience(9, 9, served_elsewhere=100),  # was served as well
    ],
)
def test_whose_word_does_not_count(customer: Experience) -> None:
    assert not down(*[customer] * 50)


@given(experiences, st.integers(0, 10_000), st.integers(0, 10_000))
def test_one_customer_never_decides_however_much_it_does(
    others: tuple[Experience, ...], served: int, failed: int
) -> None:
    """Whatever one customer does, it is one voice: with one witness fewer than enough, the exit stays."""
    witnesses = [c for c in others if c.failed > c.served]
    hostile = Experience(served, failed, served_elsewhere=10_000)
    if len(witnesses) < T.customers_to_bar - 1:
        assert not down(*others, hostile)


@given(experiences, st.integers(0, 20))
def test_a_served_customer_more_never_speaks_against_an_exit(
    customers: tuple[Experience, ...], targets: int
) -> None:
    before = lets_customers_down(Conduct(customers, targets), T)
    assert before or not lets_customers_down(Conduct((*customers, SERVED), targets), T)


@pytest.mark.parametrize(("failed_elsewhere", "needed"), [(10, 6), (15, 8), (20, 9), (30, 12)])
def test_the_worse_customers_fare_elsewhere_the_more_of_them_it_takes(
    failed_elsewhere: int, needed: int
) -> None:
    """Where many exits lie, every customer fails now and then: that protects no liar."""
    said = Experience(0, 2, served_elsewhere=100 - failed_elsewhere, failed_elsewhere=failed_elsewhere)
    assert down(*[said] * needed)
    assert not down(*[said] * (needed - 1))


@pytest.mark.parametrize("failed_elsewhere", [10, 20, 30])
def test_an_honest_exit_is_hardly_ever_barred_by_chance(failed_elsewhere: int) -> None:
    """By customers that fail so many times in a hundred elsewhere. Exactly, over all that so many customers can say."""
    p, worst = failed_elsewhere / 100, 0.0
    witness = Experience(0, 2, 100 - failed_elsewhere, failed_elsewhere)
    for count in range(1, 60):
        chance = 0.0
        for failed in range(count + 1):
            if down(*[witness] * failed, *[SERVED] * (count - failed)):
                chance += comb(count, failed) * p**failed * (1 - p) ** (count - failed)
        worst = max(worst, chance)
    assert worst < CHANCE_PER_HOUR[failed_elsewhere], "an hour of such customers"


@given(st.lists(st.integers(0, 3 * DAY_MS), max_size=60))
def test_an_exit_is_barred_six_times_in_a_day_at_most(waits: list[int]) -> None:
    """However soon customers speak again after each bar's end."""
    bar, now, began = Bar(), DAY_MS, []
    for wait in waits:
        now = max(now, bar.until_ms) + wait
        bar = next_bar(bar, now)
        began.append(now)
        assert HOLD_MS <= bar.until_ms - now <= HOLD_MAX_MS
    for first in began:
        assert sum(first <= at < first + DAY_MS for at in began) <= 6


def test_bars_grow_and_are_forgotten_after_a_day_without() -> None:
    bar, now, holds = Bar(), DAY_MS, []
    for _ in range(9):
        bar = next_bar(bar, now)
        holds.append((bar.until_ms - now) // 60_000)
        now = bar.until_ms
    assert holds == [30, 60, 120, 240, 480, 960, 1440, 1440, 1440]
    assert next_bar(bar, bar.until_ms + FORGOTTEN_AFTER_MS - 1).times == 10
    assert next_bar(bar, bar.until_ms + FORGOTTEN_AFTER_MS) == Bar(
        1, bar.until_ms + FORGOTTEN_AFTER_MS + HOLD_MS
    )


def test_a_bar_of_a_clock_that_was_wrong_bars_nobody_for_ever() -> None:
    assert is_barred(Bar(1, 1_000), 999)
    assert not is_barred(Bar(1, 1_000), 1_000)
    assert not is_barred(Bar(1, 1_000 + HOLD_MAX_MS + 1), 1_000)
    assert not is_barred(Bar(), 0)


def test_a_barred_exit_is_off_sale_until_its_time_is_over_whatever_probes_say() -> None:
    passed = ProbeResult(1, throughput_kbps=2000, vantage="eu")
    grade = Grade(
        DeviceId("d"),
        passes=9,
        listed=True,
        listed_before=True,
        latest=passed,
        bar=Bar(1, HOLD_MS),
    )

    def verdict(now_ms: int, *, wanted: bool = True) -> Listing:
        return decide_listing(grade, wanted=wanted, consented=True, online=True, now_ms=now_ms)

    assert verdict(HOLD_MS - 1) is Listing.LETS_DOWN
    assert verdict(HOLD_MS) is Listing.LISTED
    assert verdict(1, wanted=False) is Listing.OWNER_SAID_NO
