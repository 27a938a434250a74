"""Money is integers, exact in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kernel.money import (
    BYTES_PER_GB,
    FEMTO_PER_MICRO,
    MICRO_PER_USDC,
    FemtoUsdc,
    MicroUsdc,
    NotADecimal,
    accrue,
    format_gb,
    format_scaled,
    format_usdc,
    gb_number,
    parse_gb,
    parse_usdc,
    price,
    whole_micro,
)


def test_a_gb_accrues_exactly_its_rate() -> None:
    assert whole_micro(accrue(BYTES_PER_GB, MicroUsdc(250_000))) == 250_000


@given(st.lists(st.integers(0, 10**13), max_size=20), st.integers(0, 10**8))
def test_accruing_in_parts_equals_accruing_the_sum(parts: list[int], rate: int) -> None:
    assert sum(accrue(p, MicroUsdc(rate)) for p in parts) == accrue(sum(parts), MicroUsdc(rate))


def test_what_is_finer_than_a_micro_stays_accrued() -> None:
    amount = accrue(1, MicroUsdc(1))
    assert amount == 1
    assert whole_micro(amount) == 0
    assert whole_micro(FemtoUsdc(FEMTO_PER_MICRO)) == 1


def test_a_tenth_of_a_gb_at_four_dollars_costs_forty_cents() -> None:
    assert price(parse_gb("0.1"), parse_usdc("4.00")) == 400_000


@given(st.integers(0, 10**12), st.integers(0, 10**8))
def test_a_price_is_rounded_up_by_less_than_one_micro(byte_count: int, rate: int) -> None:
    exact = byte_count * rate
    assert exact <= price(byte_count, MicroUsdc(rate)) * BYTES_PER_GB < exact + BYTES_PER_GB


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e9", "NaN", "inf", "1.", ".5", "0x1", "1,5", "1.0000000001", "1" * 13, " 1"]
)
def test_anything_but_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(NotADecimal):
        parse_gb(text)


def test_usdc_finer_than_a_micro_is_refused() -> None:
    with pytest.raises(NotADecimal):
        parse_usdc("0.0000001")


@given(st.integers(0, 10**15))
def test_usdc_text_reads_back_as_itself(amount: int) -> None:
    assert parse_usdc(format_usdc(MicroUsdc(amount))) == amount


@given(st.integers(0, 10**15))
def test_gb_text_reads_back_as_itself(byte_count: int) -> None:
    assert parse_gb(format_gb(byte_count)) == byte_count


def test_negative_amounts_keep_their_sign() -> None:
    assert format_scaled(-1_500_000, MICRO_PER_USDC) == "-1.5"


def test_whole_gb_are_whole_numbers() -> None:
    assert gb_number(3 * BYTES_PER_GB) == 3
    assert isinstance(gb_number(3 * BYTES_PER_GB), int)
    assert gb_number(BYTES_PER_GB // 10) == 0.1
