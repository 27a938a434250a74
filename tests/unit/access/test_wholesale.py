"""What a wholesale purchase costs: by its own size, never more for more, and a setting may change the steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.access.rules import DISCOUNTS, PURCHASE_MAX_BYTES, wholesale_price
from shared.kernel.money import BYTES_PER_GB

SIZES = st.integers(1, PURCHASE_MAX_BYTES)


@pytest.mark.parametrize(
    ("gigabytes", "per_gb"),
    [
        (1, 4_000_000),
        (10, 3_600_000),
        (50, 3_200_000),
        (100, 2_800_000),
        (250, 2_400_000),
        (10_000, 2_400_000),
    ],
)
def test_the_price_of_a_gb_falls_from_four_to_two_forty(gigabytes: int, per_gb: int) -> None:
    assert wholesale_price(gigabytes * BYTES_PER_GB, {}) == (per_gb, gigabytes * per_gb)


@pytest.mark.parametrize("gigabytes", [gb for gb, _ in DISCOUNTS if gb])
def test_a_byte_less_than_a_step_has_the_price_before_it(gigabytes: int) -> None:
    at, below = (wholesale_price(gigabytes * BYTES_PER_GB - less, {})[0] for less in (0, 1))
    assert at < below


@given(SIZES)
def test_a_price_is_whole_and_never_below_its_rate(size: int) -> None:
    per_gb, total = wholesale_price(size, {})
    assert isinstance(total, int)
    assert 0 <= total * BYTES_PER_GB - size * per_gb < BYTES_PER_GB


@given(SIZES, SIZES)
def test_a_larger_purchase_never_pays_more_for_a_gb(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert wholesale_price(large, {})[0] <= wholesale_price(small, {})[0]


def test_a_setting_changes_the_steps_in_whatever_order_it_lists_them() -> None:
    setting = {"steps": [[0, 5_000_000], [2, 1_000_000]]}
    assert wholesale_price(2 * BYTES_PER_GB, setting)[0] == 1_000_000
    assert wholesale_price(2 * BYTES_PER_GB - 1, setting)[0] == 5_000_000


@pytest.mark.parametrize("steps", [[["x", 1]], [[1]], 5, [None]])
def test_a_setting_that_is_no_list_of_steps_is_an_error_and_no_price(steps: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        wholesale_price(1, {"steps": steps})
