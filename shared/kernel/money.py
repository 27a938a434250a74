"""Money as integers: micro-USDC where it is priced and paid, femto-USDC where it accrues.

A rate is micro-USDC per GB and a GB is 10^9 bytes, so bytes x rate is an exact number of femto-USDC (10^-15) and
nothing is ever rounded away; only a payout floors, and leaves the rest on the balance.
"""

import re
from typing import Final, NewType

MicroUsdc = NewType("MicroUsdc", int)
FemtoUsdc = NewType("FemtoUsdc", int)

MICRO_PER_USDC: Final = 1_000_000
FEMTO_PER_MICRO: Final = 1_000_000_000
BYTES_PER_GB: Final = 1_000_000_000

_DECIMAL: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)


class NotADecimal(ValueError):
    """The text is not a plain non-negative decimal with at most nine places."""


def accrue(byte_count: int, rate_micro_per_gb: MicroUsdc) -> FemtoUsdc:
    """What `byte_count` bytes earn at the rate, exactly."""
    return FemtoUsdc(byte_count * rate_micro_per_gb)


def whole_micro(amount: FemtoUsdc) -> MicroUsdc:
    """The payable part of an accrued amount; the remainder stays accrued."""
    return MicroUsdc(amount // FEMTO_PER_MICRO)


def price(byte_count: int, price_micro_per_gb: MicroUsdc) -> MicroUsdc:
    """Price of `byte_count` bytes, rounded up to a whole micro-USDC."""
    return MicroUsdc(-(-byte_count * price_micro_per_gb // BYTES_PER_GB))


def parse_gb(text: str) -> int:
    """Decimal GB text (`"0.1"`) as bytes. Raises NotADecimal; signs, exponents and NaN are refused."""
    return _scaled(text, BYTES_PER_GB)


def parse_usdc(text: str) -> MicroUsdc:
    """Decimal USDC text (`"4.00"`) as micro-USDC. Raises NotADecimal, also when it is finer than a micro."""
    scaled = _scaled(text, BYTES_PER_GB)
    micro, rest = divmod(scaled, BYTES_PER_GB // MICRO_PER_USDC)
    if rest:
        raise NotADecimal(text)
    return MicroUsdc(micro)


def _scaled(text: str, scale: int) -> int:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise NotADecimal(text)
    whole, places = match.group(1), match.group(2) or ""
    return int(whole) * scale + int(places.ljust(9, "0")) * scale // BYTES_PER_GB


def format_scaled(amount: int, scale: int) -> str:
    """`amount / scale` as the shortest exact decimal text; `scale` is a power of ten."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(amount, scale)
    places = str(rest).rjust(len(str(scale)) - 1, "0").rstrip("0") if rest else ""
    return f"{sign}{whole}.{places}" if places else f"{sign}{whole}"


def format_usdc(amount: MicroUsdc) -> str:
    """Micro-USDC as decimal USDC text."""
    return format_scaled(amount, MICRO_PER_USDC)


def format_gb(byte_count: int) -> str:
    """Bytes as decimal GB text."""
    return format_scaled(byte_count, BYTES_PER_GB)


def gb_number(byte_count: int) -> float | int:
    """Bytes as the JSON number of GB that outside clients read. For answers only; never computed with."""
    return byte_count // BYTES_PER_GB if byte_count % BYTES_PER_GB == 0 else byte_count / BYTES_PER_GB
