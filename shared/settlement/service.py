"""Rolling up: counted batches become day totals, used bytes of keys, and what suppliers are owed.

Each batch is first accrued (transfers with fixed ids, so a repeat posts nothing), then applied in one transaction that can
succeed only once. A crash between the two is finished by the next run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shared.access.table import add_used_item
from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, DeviceId, PakId
from shared.kernel.money import whole_micro
from shared.ledger import table as ledger
from shared.ledger.model import Posted, supplier
from shared.metering import table as usage
from shared.metering.model import FlushBatch, SpoiledBatch
from shared.metering.rules import totals
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable, TransactItem, transact
from shared.settlement.rules import RateMissing, accruals, earned_by_device
from shared.supply.proving import prove_device
from shared.supply.table import get_device

BATCHES_PER_PAGE: Final = 100
BATCHES_PER_RUN_MAX: Final = 5_000
DEFERRED_MAX: Final = 10
"""Batches that one run leaves to the next one because a row of theirs was busy; beyond it the store is away."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Names of the tables that a roll-up reads and writes."""

    usage: str
    access: str
    ledger: str
    devices: str


@dataclass(slots=True)
class RollUpReport:
    """What one run did."""

    applied: int = 0
    repeated: int = 0
    transfers: int = 0
    total_bytes: int = 0
    proven: int = 0
    served: set[DeviceId] = field(default_factory=set)
    deferred: int = 0
    unrated: int = 0
    rates_missing: set[str] = field(default_factory=set)
    keyless_bytes: int = 0
    spoiled: list[SpoiledBatch] = field(default_factory=list)


def roll_up(dynamo: RunsDynamo, tables: Tables, rates: Mapping[str, Any], now_ms: int) -> RollUpReport:
    """Apply every pending batch. Safe to run twice, late or beside itself.

    A batch with bytes of a class that has no rate moves nothing, and is put off until the rate is set.
    """
    report = RollUpReport()
    for ip_type in IpType:
        if not dynamo.run(usage.batches_to_apply(tables.usage, 1, waiting_for=ip_type)).rows:
            continue
        if isinstance(rates.get(ip_type.value), int):
            _apply_all(dynamo, tables, rates, now_ms, report, ip_type)
        else:
            report.unrated += 1
            report.rates_missing.add(ip_type.value)
    _apply_all(dynamo, tables, rates, now_ms, report, None)
    return report


def _apply_all(
    dynamo: RunsDynamo,
    tables: Tables,
    rates: Mapping[str, Any],
    now_ms: int,
    report: RollUpReport,
    waiting_for: IpType | None,
) -> None:
    start: Any = None
    seen: set[tuple[str, int | str]] = set()
    while len(seen) < BATCHES_PER_RUN_MAX:
        page = dynamo.run(usage.batches_to_apply(tables.usage, BATCHES_PER_PAGE, start, waiting_for))
        fresh = [batch for batch in page.rows if _name(batch) not in seen]
        if not fresh:  # whatever stands here stays: look behind it
            start = page.next_key
            if start is None:
                return
        for batch in fresh:
            seen.add(_name(batch))
            if isinstance(batch, SpoiledBatch):
                dynamo.run(usage.set_aside(tables.usage, batch))
                report.spoiled.append(batch)
                continue
            try:
                _apply(dynamo, tables, batch, rates, now_ms, report)
            except RateMissing as missing:
                dynamo.run(usage.put_off(tables.usage, batch, str(missing)))
                report.unrated += 1
                report.rates_missing.add(str(missing))
            except (
                StoreUnavailable
            ):  # a key that is being changed in this moment holds up no other key's bytes
                report.deferred += 1
                if report.deferred > DEFERRED_MAX:
                    raise


def _name(batch: FlushBatch | SpoiledBatch) -> tuple[str, int | str]:
    if isinstance(batch, SpoiledBatch):
        return batch.pk, batch.sk
    return batch.gateway_id, batch.sequence


def _apply(
    dynamo: RunsDynamo,
    tables: Tables,
    batch: FlushBatch,
    rates: Mapping[str, Any],
    now_ms: int,
    report: RollUpReport,
) -> None:
    for transfer in accruals(batch, rates):
        report.transfers += dynamo.run(ledger.post(tables.ledger, transfer)) is Posted.CREATED
    used = totals(batch)
    items = usage.apply_items(tables.usage, batch, earned_by_device(batch, rates))
    keys, first = list(used), len(items)
    conflict = dynamo.run(transact([*items, *_used_items(tables, keys, used, now_ms)]))
    if conflict is not None and 0 not in conflict.failed:
        # Bytes of a key that is not there: they were carried, earned and counted by day, and hold up nobody else's.
        there = [pak_id for index, pak_id in enumerate(keys, first) if index not in conflict.failed]
        report.keyless_bytes += sum(used[pak_id] for pak_id in keys if pak_id not in there)
        conflict = dynamo.run(transact([*items, *_used_items(tables, there, used, now_ms)]))
    if conflict is None:
        report.applied += 1
        report.total_bytes += sum(used.values())
    else:
        report.repeated += 1
    _prove_served(dynamo, tables.devices, batch, now_ms, report)


def _used_items(
    tables: Tables, keys: Sequence[PakId], used: Mapping[PakId, int], now_ms: int
) -> list[TransactItem]:
    return [add_used_item(tables.access, pak_id, used[pak_id], now_ms) for pak_id in keys]


def _prove_served(
    dynamo: RunsDynamo, table: str, batch: FlushBatch, now_ms: int, report: RollUpReport
) -> None:
    """Devices that served a first byte to others leave their account's unproven count: an owner's own proves nothing."""
    served = {
        line.key.device_id
        for line in batch.lines
        if line.total_bytes and line.key.account_id != line.key.supplier_id
    }
    for device_id in served - report.served:
        report.served.add(device_id)
        device = dynamo.run(get_device(table, device_id))
        if device is not None and device.proven_at_ms is None:
            report.proven += prove_device(dynamo, table, device, now_ms)


def owed_micro(dynamo: RunsDynamo, ledger_table: str, account_id: AccountId) -> int:
    """What a supplier is owed, in whole micro-USDC."""
    return whole_micro(dynamo.run(ledger.get_balance(ledger_table, supplier(account_id))).owed)
