"""Served bytes become what suppliers are owed: exactly, once, at their rate."""

from typing import Any, TypeVar

import pytest

from shared.access import table as access
from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.ledger.service import trial_balance
from shared.ledger.table import post
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.table import put_batch, usage_days
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, SyncDynamo
from shared.settlement.rules import RateMissing, accruals, rate_for
from shared.settlement.service import RollUpReport, Tables, _apply, owed_micro, roll_up

T = TypeVar("T")
TABLES = Tables("psx-test-usage", "psx-test-access", "psx-test-ledger", "psx-test-devices")
SUPPLIER = AccountId("psx_s")
NOW = 1_800_000_000_000
RATES: dict[str, Any] = {
    "mobile": 1_200_000,
    "residential": 500_000,
    "overrides": {"psx_vip": {"mobile": 2_000_000}},
}


def line(device: str, up: int, down: int, ip_type: IpType = IpType.MOBILE, pak: str = "p1") -> UsageLine:
    key = LineKey(
        PakId(pak), AccountId("psx_a"), DeviceId(device), SUPPLIER, Country("us"), Pool.MBL, ip_type
    )
    return UsageLine(key, up, down)


def batch(sequence: int, *lines: UsageLine) -> FlushBatch:
    return FlushBatch(GatewayId("g1"), sequence, NOW, lines)


def mint(dynamo: SyncDynamo, *paks: str) -> None:
    for pak in paks:
        dynamo.run(
            access.mint(
                TABLES.access,
                Pak(
                    PakId(pak),
                    AccountId("psx_a"),
                    "x",
                    f"h{pak}",
                    "s",
                    10**12,
                    0,
                    True,
                    None,
                    None,
                    Quality.SAFE,
                    False,
                    NOW,
                    NOW,
                ),
            )
        )


@pytest.mark.parametrize(
    ("ip_type", "account", "rate"),
    [
        (IpType.MOBILE, "psx_s", 1_200_000),
        (IpType.RESIDENTIAL, "psx_s", 500_000),
        (IpType.MOBILE, "psx_vip", 2_000_000),
    ],
)
def test_a_suppliers_own_rate_comes_first(ip_type: IpType, account: str, rate: int) -> None:
    assert rate_for(RATES, ip_type, AccountId(account)) == rate


def test_a_missing_rate_is_never_guessed() -> None:
    with pytest.raises(RateMissing):
        rate_for(RATES, IpType.UNKNOWN, SUPPLIER)


def test_a_batch_earns_one_transfer_per_device_and_class() -> None:
    made = accruals(
        batch(3, line("d1", 1, 2), line("d1", 3, 0, pak="p2"), line("d2", 1, 0, IpType.RESIDENTIAL)), RATES
    )
    assert [(t.transfer_id, t.amount) for t in made] == [
        ("accrual:g1:3:d1:mobile", 6 * 1_200_000),
        ("accrual:g1:3:d2:residential", 500_000),
    ]
    assert accruals(batch(4, line("d1", 0, 0)), RATES) == []


def test_a_roll_up_applies_each_batch_once(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1", "p2")
    dynamo.run(put_batch(TABLES.usage, batch(0, line("d1", 10, 20), line("d2", 5, 0, pak="p2"))))
    dynamo.run(put_batch(TABLES.usage, batch(1, line("d1", 100, 0))))
    report = roll_up(dynamo, TABLES, RATES, NOW)
    assert (report.applied, report.repeated, report.transfers, report.total_bytes) == (2, 0, 3, 135)
    assert roll_up(dynamo, TABLES, RATES, NOW).applied == 0
    pak = dynamo.run(access.get_pak(TABLES.access, PakId("p1")))
    assert pak is not None
    assert pak.used_bytes == 130
    assert dynamo.run(usage_days(TABLES.usage, "dev#d1", "2027-01-01", 5)).rows == (("2027-01-15", 110, 20),)
    assert trial_balance(dynamo, TABLES.ledger) == (135 * 1_200_000,) * 2
    assert owed_micro(dynamo, TABLES.ledger, SUPPLIER) == 135 * 1_200_000 // 10**9


def test_bytes_of_a_key_that_is_not_there_hold_up_nobody_elses(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    dynamo.run(put_batch(TABLES.usage, batch(0, line("d1", 10, 0), line("d1", 5, 0, pak="gone"))))
    report = roll_up(dynamo, TABLES, RATES, NOW)
    assert (report.applied, report.keyless_bytes) == (1, 5)
    assert roll_up(dynamo, TABLES, RATES, NOW).applied == 0
    pak = dynamo.run(access.get_pak(TABLES.access, PakId("p1")))
    assert pak is not None
    assert pak.used_bytes == 10
    assert dynamo.run(usage_days(TABLES.usage, "dev#d1", "2027-01-01", 5)).rows == (("2027-01-15", 15, 0),)


def test_a_crash_between_accrual_and_application_is_finished_by_the_next_run(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    broken = batch(0, line("d1", 7, 0))
    dynamo.run(put_batch(TABLES.usage, broken))
    for transfer in accruals(broken, RATES):
        dynamo.run(post(TABLES.ledger, transfer))
    report = roll_up(dynamo, TABLES, {**RATES, "mobile": 9_000_000}, NOW)
    assert (report.applied, report.transfers) == (1, 0)
    assert trial_balance(dynamo, TABLES.ledger) == (7 * 1_200_000,) * 2


def test_nothing_moves_while_a_rate_is_missing(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    dynamo.run(put_batch(TABLES.usage, batch(0, line("d1", 7, 0, IpType.UNKNOWN))))
    with pytest.raises(RateMissing):
        roll_up(dynamo, TABLES, RATES, NOW)
    assert roll_up(dynamo, TABLES, {**RATES, "unknown": 1}, NOW).applied == 1


def test_a_batch_that_another_run_applied_meanwhile_is_counted_as_repeated(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    told, report = batch(0, line("d1", 7, 0)), RollUpReport()
    dynamo.run(put_batch(TABLES.usage, told))
    for _ in range(2):
        _apply(dynamo, TABLES, told, RATES, NOW, report)
    assert (report.applied, report.repeated, report.total_bytes) == (1, 1, 7)


class Busy:
    """A store in which some keys are being changed all the time."""

    def __init__(self, dynamo: SyncDynamo, *paks: str) -> None:
        self._dynamo = dynamo
        self._busy = [f"pak#{pak}" for pak in paks]

    def run(self, request: DynamoRequest[T]) -> T:
        """One request; a transaction on a busy key is cancelled."""
        if request.operation == "transact_write_items" and any(b in str(request.params) for b in self._busy):
            raise StoreUnavailable("transact_write_items: TransactionCanceledException")
        return self._dynamo.run(request)


def test_a_key_that_is_busy_holds_up_no_other_keys_bytes(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1", "p2")
    dynamo.run(put_batch(TABLES.usage, batch(0, line("d1", 1, 1, pak="p1"))))
    dynamo.run(put_batch(TABLES.usage, batch(1, line("d2", 5, 2, pak="p2"))))
    busy: Any = Busy(dynamo, "p1")
    report = roll_up(busy, TABLES, RATES, NOW)
    assert (report.applied, report.deferred, report.total_bytes) == (1, 1, 7)
    assert roll_up(dynamo, TABLES, RATES, NOW).total_bytes == 2


def test_a_store_that_takes_nothing_ends_the_run(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    for sequence in range(12):
        dynamo.run(put_batch(TABLES.usage, batch(sequence, line("d1", 1, 1))))
    busy: Any = Busy(dynamo, "p1")
    with pytest.raises(StoreUnavailable):
        roll_up(busy, TABLES, RATES, NOW)
    assert roll_up(dynamo, TABLES, RATES, NOW).total_bytes == 24
