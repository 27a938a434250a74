"""What the synthetic customer may spend, and what its purchases say of the sale."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.guard.settings import setting_fault
from shared.upkeep.purchase import (
    SERVED_WITHIN_MS,
    SILENT_MAX_MS,
    Attempt,
    Budget,
    Purchases,
    beyond_day,
    beyond_each,
    purchase_fault,
    purchases_row,
    read_budget,
    read_purchases,
)

DAY_MS = 86_400_000
NOON = 20_000 * DAY_MS + DAY_MS // 2
BUDGET = Budget(each_micro=500_000, day_micro=1_000_000, every_s=3600)


def attempt(at_ms: int = NOON, due: int = 400_000) -> Attempt:
    return Attempt("a1", due, "0xours", at_ms // 1000 + 600, at_ms)


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(1, 600_000)), max_size=40))
def test_no_day_costs_more_than_its_budget_whenever_it_is_tried(tries: list[tuple[int, int]]) -> None:
    known, now, spent = Purchases(), NOON, dict[int, int]()
    for later_ms, due in tries:
        now += later_ms
        if not known.is_due(BUDGET, now) or beyond_each(BUDGET, due):
            continue
        if beyond_day(BUDGET, known.spent_on(now), due) is None:
            known = known.begun(attempt(now, due)).ended(now)
            spent[now // DAY_MS] = spent.get(now // DAY_MS, 0) + due
    assert all(day <= BUDGET.day_micro for day in spent.values())


def test_a_payment_counts_before_its_outcome_is_known_and_after_it_failed() -> None:
    known = Purchases().begun(attempt())
    assert known.spent_on(NOON) == 400_000
    assert known.ended(NOON, "refused").spent_on(NOON) == 400_000
    assert known.spent_on(NOON + DAY_MS) == 0
    assert not known.is_due(BUDGET, NOON + 3_599_999)
    assert known.is_due(BUDGET, NOON + 3_600_000)
    assert known.is_due(BUDGET, NOON - DAY_MS), "a clock that was set back holds nothing up"


@pytest.mark.parametrize(
    ("known", "later_ms", "fault"),
    [
        (Purchases(looked_ms=NOON), 0, None),
        (Purchases(looked_ms=NOON).begun(attempt()), SERVED_WITHIN_MS, None),
        (Purchases(looked_ms=NOON).begun(attempt()), SERVED_WITHIN_MS + 1, "paid and not served: no answer"),
        (
            replace(Purchases(looked_ms=NOON).begun(attempt()), fault="the sale answers 503"),
            SERVED_WITHIN_MS + 1,
            "paid and not served: the sale answers 503",
        ),
        (Purchases().begun(attempt()).ended(NOON, "paid, and nothing works"), 0, "paid, and nothing works"),
        (Purchases(looked_ms=NOON), SILENT_MAX_MS + 1, "the job that buys has not run for half an hour"),
    ],
)
def test_what_is_told_of_the_purchases(known: Purchases, later_ms: int, fault: str | None) -> None:
    assert purchase_fault(purchases_row(known), NOON + later_ms) == fault


def test_nothing_is_told_while_nobody_wants_purchases() -> None:
    assert purchase_fault(None, NOON) is None
    assert purchase_fault({}, NOON) is None


def test_the_state_is_read_as_it_was_written() -> None:
    for known in (Purchases(), Purchases().begun(attempt())):
        assert read_purchases(purchases_row(known)) == known


def test_a_budget_is_three_whole_numbers_and_nought_a_day_is_none() -> None:
    right = {"each_micro": 1, "day_micro": 0, "every_s": 300}
    assert setting_fault("purchases", right) is None
    assert read_budget(right) is None
    assert read_budget({}) is None
    assert read_budget(right | {"day_micro": 5}) == Budget(1, 5, 300)
    for wrong in ({"each_micro": 0}, {"day_micro": -1}, {"every_s": 299}, {"every_s": True}, {"more": 1}):
        assert setting_fault("purchases", right | wrong) is not None, wrong
