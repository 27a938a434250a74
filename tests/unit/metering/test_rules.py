"""Bytes are counted once and cut into batches that fit one transaction."""

from hypothesis import given
from hypothesis import strategies as st

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import MAX_LINES_PER_BATCH, FlushBatch, LineKey, Meter, UsageLine
from shared.metering.rules import batches, day_of, totals


def key(pak: str, device: str) -> LineKey:
    return LineKey(
        PakId(pak),
        AccountId("psx_a"),
        DeviceId(device),
        AccountId("psx_s"),
        Country("us"),
        Pool.MBL,
        IpType.MOBILE,
    )


@given(st.integers(0, 70), st.integers(0, 1000))
def test_batches_are_numbered_without_gaps_and_bounded(count: int, first: int) -> None:
    lines = tuple(UsageLine(key("p", str(n)), 1, n) for n in range(count))
    made = list(batches(GatewayId("g"), first, 5, lines))
    assert [b.sequence for b in made] == list(range(first, first + len(made)))
    assert tuple(line for b in made for line in b.lines) == lines
    assert all(0 < len(b.lines) <= MAX_LINES_PER_BATCH for b in made)


def test_totals_are_per_key() -> None:
    lines = (UsageLine(key("a", "x"), 1, 2), UsageLine(key("a", "y"), 3, 4), UsageLine(key("b", "x"), 5, 6))
    assert totals(FlushBatch(GatewayId("g"), 0, 0, lines)) == {"a": 10, "b": 11}


def test_days_are_utc() -> None:
    assert day_of(1_800_000_000_000) == "2027-01-15"


def test_a_meter_without_a_cap_never_runs_out() -> None:
    assert Meter(10, None).left_bytes is None
    assert Meter(10, 15).left_bytes == 5
    assert Meter(20, 15).left_bytes == 0
