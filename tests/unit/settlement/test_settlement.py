"""Served bytes become what suppliers are owed: exactly, once, at their rate."""

import json
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
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, SyncDynamo, get_item, put
from shared.settlement import service
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


def test_a_batch_without_a_rate_waits_and_holds_up_no_other(
    dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCHES_PER_PAGE", 2)
    mint(dynamo, "p1")
    for sequence in range(3):
        unrated = line("d1", 7, 0, IpType.UNKNOWN)
        dynamo.run(put_batch(TABLES.usage, batch(sequence, line("d2", 1, 0), unrated)))
    dynamo.run(put_batch(TABLES.usage, batch(3, line("d1", 5, 0))))
    report = roll_up(dynamo, TABLES, RATES, NOW)
    assert (report.applied, report.unrated, report.rates_missing) == (1, 3, {"unknown"})
    assert trial_balance(dynamo, TABLES.ledger) == (5 * 1_200_000,) * 2
    report = roll_up(dynamo, TABLES, {**RATES, "unknown": 1}, NOW)
    assert (report.applied, report.unrated, report.total_bytes) == (3, 0, 24)


def test_a_batch_that_another_run_applied_meanwhile_is_counted_as_repeated(dynamo: SyncDynamo) -> None:
    mint(dynamo, "p1")
    told, report = batch(0, line("d1", 7, 0)), RollUpReport()
    dynamo.run(put_batch(TABLES.usage, told))
    for _ in range(2):
        _apply(dynamo, TABLES, told, RATES, NOW, report)
    assert (report.applied, report.repeated, report.total_bytes) == (1, 1, 7)


def test_more_unrated_batches_than_a_run_looks_at_hold_up_nobody(
    dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCHES_PER_PAGE", 3)
    monkeypatch.setattr(service, "BATCHES_PER_RUN_MAX", 6)
    mint(dynamo, "p1")
    for sequence in range(7):
        dynamo.run(put_batch(TABLES.usage, batch(sequence, line("d1", 7, 0, IpType.UNKNOWN))))
    dynamo.run(put_batch(TABLES.usage, batch(7, line("d2", 1, 0))))
    reports = [roll_up(dynamo, TABLES, RATES, NOW) for _ in range(3)]
    assert [r.total_bytes for r in reports] == [0, 1, 0]
    assert all(r.rates_missing == {"unknown"} for r in reports)
    rated = {**RATES, "unknown": 1}
    assert sum(roll_up(dynamo, TABLES, rated, NOW).total_bytes for _ in range(2)) == 49


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


class Died(BaseException):
    """The process is gone."""


class Mortal:
    """A store whose caller dies around a request: before the store hears it, or before its answer is heard."""

    def __init__(self, dynamo: SyncDynamo, requests: int, *, heard: bool) -> None:
        self._dynamo, self._left, self._heard = dynamo, requests, heard

    def run(self, request: DynamoRequest[T]) -> T:
        """One request."""
        self._left -= 1
        if self._left == 0 and not self._heard:
            raise Died
        answer = self._dynamo.run(request)
        if self._left == 0:
            raise Died
        return answer


@pytest.mark.slow  # over a second of processor time
@pytest.mark.parametrize("heard", [False, True])
def test_a_roll_up_that_is_killed_at_any_step_adds_every_byte_once(dynamo: SyncDynamo, heard: bool) -> None:
    mint(dynamo, "p1", "p2")
    died, step = True, 0
    while died:
        step += 1
        dynamo.run(put_batch(TABLES.usage, batch(step, line("d1", 10, 20), line("d2", 5, 0, pak="p2"))))
        mortal: Any = Mortal(dynamo, step, heard=heard)
        try:
            roll_up(mortal, TABLES, RATES, NOW)
            died = False
        except Died:
            roll_up(dynamo, TABLES, RATES, NOW)
        paks = [dynamo.run(access.get_pak(TABLES.access, PakId(pak))) for pak in ("p1", "p2")]
        assert [pak.used_bytes for pak in paks if pak] == [30 * step, 5 * step]
        days = [dynamo.run(usage_days(TABLES.usage, f"dev#{d}", "2027-01-01", 5)).rows for d in ("d1", "d2")]
        assert days == [(("2027-01-15", 10 * step, 20 * step),), (("2027-01-15", 5 * step, 0),)]
        assert trial_balance(dynamo, TABLES.ledger) == (35 * step * 1_200_000,) * 2
    assert step > 4


GOOD_LINE = ["p1", "psx_a", "d1", "psx_s", "us", "peer", "mobile", 1, 2]


def spoil(**fields: Any) -> dict[str, Any]:
    """A row among the batches with something wrong in it."""
    row = {"pk": "batch#evil", "sk": "000000000001", "pending": "1", "at_ms": NOW, "ttl": 1}
    return {**row, "lines": json.dumps([GOOD_LINE]), **fields}


def with_line(**places: Any) -> str:
    """One line with something wrong at a place."""
    return json.dumps([[places.get(f"at{place}", value) for place, value in enumerate(GOOD_LINE)]])


SPOILED: list[dict[str, Any]] = [
    {"lines": "["},
    {"lines": "[" * 100_000},
    {"lines": "5"},
    {"lines": None},
    {"lines": with_line(at7=-1)},
    {"lines": with_line(at7=True)},
    {"lines": with_line(at8=1.5)},
    {"lines": with_line(at8=10**16)},
    {"lines": with_line(at0="")},
    {"lines": with_line(at2="d" * 3000)},
    {"lines": with_line(at3=None)},
    {"lines": with_line(at5="moon")},
    {"lines": json.dumps([GOOD_LINE] * 21)},
    {"at_ms": 10**18},
    {"at_ms": "now"},
    {"sk": "first"},
]


@pytest.mark.parametrize("fields", SPOILED, ids=lambda f: str(f)[:40])
def test_what_is_no_batch_is_set_aside_and_holds_up_nobody(
    dynamo: SyncDynamo, fields: dict[str, Any]
) -> None:
    mint(dynamo, "p1")
    row = spoil(**fields)
    dynamo.run(put(TABLES.usage, row))
    dynamo.run(put_batch(TABLES.usage, batch(0, line("d1", 10, 0))))
    report = roll_up(dynamo, TABLES, RATES, NOW)
    assert (report.applied, report.total_bytes, len(report.spoiled)) == (1, 10, 1)
    again = roll_up(dynamo, TABLES, RATES, NOW)
    assert (again.applied, again.spoiled) == (0, [])
    kept = dynamo.run(get_item(TABLES.usage, row["pk"], row["sk"], parse=lambda r: r))
    assert kept is not None
    assert kept["fault"]
    assert not {"pending", "ttl"} & kept.keys()
