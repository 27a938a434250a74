"""Pure rules of settlement: which rate a device earns, and which transfers a batch of counted bytes makes."""

from collections.abc import Mapping
from typing import Any

from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, DeviceId
from shared.kernel.money import MicroUsdc, accrue
from shared.ledger.model import BANDWIDTH, Transfer, supplier
from shared.metering.model import FlushBatch, LineKey


class RateMissing(LookupError):
    """No rate is set for this class: nothing may be guessed."""


def rate_for(rates: Mapping[str, Any], ip_type: IpType, supplier_id: AccountId) -> MicroUsdc:
    """Micro-USDC per GB for a class, the supplier's own rate first. Raises RateMissing."""
    override = rates.get("overrides", {}).get(supplier_id, {}).get(ip_type.value)
    rate = override if override is not None else rates.get(ip_type.value)
    if not isinstance(rate, int):
        raise RateMissing(ip_type.value)
    return MicroUsdc(rate)


def accruals(batch: FlushBatch, rates: Mapping[str, Any]) -> list[Transfer]:
    """The transfers that a batch earns, one per (device, supplier, class). Ids are fixed, so a repeat changes nothing."""
    earned: dict[tuple[str, AccountId, IpType], int] = {}
    for line in batch.lines:
        key = _earner(line.key)
        earned[key] = earned.get(key, 0) + line.total_bytes
    transfers = []
    for (device_id, supplier_id, ip_type), byte_count in earned.items():
        rate = rate_for(rates, ip_type, supplier_id)
        amount = accrue(byte_count, rate)
        if amount == 0:
            continue
        transfer_id = f"accrual:{batch.gateway_id}:{batch.sequence}:{device_id}:{ip_type.value}"
        memo = f"{byte_count} bytes at {rate} micro/GB"
        transfers.append(
            Transfer(transfer_id, BANDWIDTH, supplier(supplier_id), amount, "accrual", batch.at_ms, memo)
        )
    return transfers


def earned_by_device(batch: FlushBatch, rates: Mapping[str, Any]) -> dict[DeviceId, int]:
    """What each device made of a batch, in femto-USDC: the same sums as the transfers'. Raises RateMissing."""
    earned: dict[DeviceId, int] = {}
    for line in batch.lines:
        rate = rate_for(rates, line.key.ip_type, line.key.supplier_id)
        earned[line.key.device_id] = earned.get(line.key.device_id, 0) + accrue(line.total_bytes, rate)
    return earned


def _earner(key: LineKey) -> tuple[str, AccountId, IpType]:
    return key.device_id, key.supplier_id, key.ip_type
