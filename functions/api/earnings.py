"""Routes of what devices earn: by day, the wallet that is paid to, and requests to be paid."""

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Final, TypeVar

from fastapi import Request
from pydantic import Field

from functions.api.audit import told
from functions.api.auth import by_device, device_of, must_decide
from functions.api.desk import Desk
from functions.api.device_view import MICRO_PER_USDC, DeviceView, wallet_facts
from functions.api.enrolling import Body, WalletText
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, source_address
from functions.limits import spend
from shared.access.live import Limit
from shared.access.model import AccountKind
from shared.access.table import get_account
from shared.guard.model import AuditEvent
from shared.guard.service import run_audited
from shared.kernel.money import (
    FEMTO_PER_MICRO,
    FemtoUsdc,
    MicroUsdc,
    NotADecimal,
    format_usdc,
    parse_usdc,
    whole_micro,
)
from shared.kernel.traffic import traffic_unit
from shared.metering.table import earned_days
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import DynamoRequest
from shared.settlement.service import owed_micro
from shared.supply.model import Device
from shared.supply.owners import Withdrawal, request_withdrawal, withdrawals
from shared.supply.rules import WALLET_COOLING_MS, same_wallet, wallet_now, withdrawal_fault
from shared.supply.table import change

T = TypeVar("T")
DAYS_TOLD: Final = 90
DAYS_KEPT_MAX: Final = 3_660
"""Ten years of daily rows: about 0.5 MB, read in one query."""
WITHDRAWALS_TOLD: Final = 50
WALLET_CHANGES: Final = Limit("wallet_change", 10, 86_400)


class WalletBody(Body):
    """`PUT .../wallet`."""

    walletAddress: WalletText


class WithdrawBody(Body):
    """`POST .../withdraw`: how many USDC; all that can be, when left out."""

    amount: Annotated[Decimal | None, Field(gt=0, le=10**9)] = None


class Earnings(Desk):
    """Routes' work."""

    table_name = "devices"

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        super().__init__(wiring)
        self._view = DeviceView(wiring)

    def _days(self, device: Device) -> tuple[tuple[str, int, int], ...]:
        table = self.w.settings.table("usage")
        return self.w.dynamo.run(earned_days(table, device.device_id, DAYS_KEPT_MAX)).rows

    def _available(self, device: Device) -> MicroUsdc:
        """What the device earned and nobody asked to be paid yet, in whole micro-USDC."""
        femto = sum(earned for _, _, earned in self._days(device))
        return MicroUsdc(whole_micro(FemtoUsdc(femto)) - device.requested_micro)

    def earnings(self, device: Device) -> dict[str, Any]:
        """Bytes and money of the device by day, and what its owner's account is owed."""
        days = self._days(device)
        earned = whole_micro(FemtoUsdc(sum(femto for _, _, femto in days)))
        owed = owed_micro(self.w.dynamo, self.w.settings.table("ledger"), device.account_id)
        asked = self.w.dynamo.run(withdrawals(self.table, device.account_id, WITHDRAWALS_TOLD))
        return {
            "deviceId": device.device_id,
            "servedBytes": sum(count for _, count, _ in days),
            "days": [
                {"day": day, "bytes": count, "earnedUSDC": format_usdc(MicroUsdc(femto // FEMTO_PER_MICRO))}
                for day, count, femto in days[:DAYS_TOLD]
            ],
            "earningsPerGB": self._view.rate(device, self._view.ip_type(device)) / MICRO_PER_USDC,
            "earnedUSDC": format_usdc(earned),
            "availableUSDC": format_usdc(MicroUsdc(max(earned - device.requested_micro, 0))),
            "trafficUnit": traffic_unit(),
            "accountPendingMicroUSDC": str(owed),
            "withdrawals": [_told(w) for w in asked.rows if w.device_id == device.device_id],
            **wallet_facts(device, now_ms()),
        }

    def set_wallet(self, request: Request, device: Device, wallet: str) -> dict[str, Any]:
        """Another wallet, after its cooling time. The owner's key may set the first one at once."""
        w, now = self.w, now_ms()
        spend(request, w.redis, [WALLET_CHANGES], device.device_id, now, closed=True)
        account = w.dynamo.run(get_account(w.settings.table("access"), device.account_id))
        current = wallet_now(device, now)
        if account is not None and account.kind is AccountKind.WALLET and not same_wallet(wallet, current):
            message = "this device belongs to its wallet; register it anew with the other wallet"
            raise ProblemError(409, "WALLET_FIXED", message)
        must_decide(w, request)
        first = current is None and not by_device(w, request)
        if first or same_wallet(wallet, current):
            write = change(self.table, device.device_id, {"wallet": current or wallet}, ("pending_wallet",))
        else:
            pending = {"wallet": wallet, "from_ms": now + WALLET_COOLING_MS}
            fields = {"pending_wallet": pending, "wallet": current}
            write = change(self.table, device.device_id, fields)
        facts = {"from": current or "", "to": wallet}
        changed = self._run(request, device, write, "wallet_change", facts)
        return {"deviceId": device.device_id, **wallet_facts(changed or device, now)}

    def _run(
        self, request: Request, device: Device, write: DynamoRequest[T], action: str, metadata: dict[str, str]
    ) -> T:
        """A write with its event, which stands in the account's history."""
        event = AuditEvent(
            f"acct#{device.account_id}",
            action,
            device.account_id,
            now_ms(),
            ip=source_address(request),
            request_id=request.state.request_id,
            auth_method="device_token" if by_device(self.w, request) else "api_key",
            metadata={"device": device.device_id, **metadata},
        )
        answer = run_audited(self.w.dynamo, self.w.settings.table("audit"), event, write)
        told(request)
        return answer

    def withdraw(self, request: Request, device: Device, asked: Decimal | None) -> dict[str, Any]:
        """Record that somebody wants what the device earned, to its registered wallet."""
        now, available = now_ms(), self._available(device)
        wallet = wallet_now(device, now)
        if wallet is None:
            raise ProblemError(409, "WALLET_MISSING", "register a wallet first: PUT .../wallet")
        try:
            amount = available if asked is None else parse_usdc(f"{asked:f}")
        except NotADecimal:
            message = "amount: USDC with at most six decimal places"
            raise ProblemError(400, "INVALID_FIELD", message) from None
        fault = withdrawal_fault(device.kind, amount, available)
        if fault is not None:
            raise ProblemError(400, "INVALID_FIELD", fault)
        wanted = Withdrawal(new_id(), device.account_id, device.device_id, amount, wallet, now)
        facts = {"amount": format_usdc(amount), "wallet": wallet, "withdrawal": wanted.withdrawal_id}
        write = request_withdrawal(self.table, device, wanted)
        if not self._run(request, device, write, "withdrawal_request", facts):
            message = "another withdrawal was asked for in this moment; look at the earnings and repeat"
            raise ProblemError(409, "WITHDRAWAL_CONFLICT", message)
        return _told(wanted)


def _told(asked: Withdrawal) -> dict[str, Any]:
    return {
        "withdrawalId": asked.withdrawal_id,
        "deviceId": asked.device_id,
        "amountUSDC": format_usdc(asked.amount_micro),
        "walletAddress": asked.wallet,
        "status": asked.state,
        "requestedAt": asked.at_ms,
    }


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of earnings."""
    routes = Routes()
    earnings = Earnings(wiring)

    @routes.get("/v1/peer/agents/{device_id}/earnings")
    @routes.get("/v1/peer/earnings/{device_id}")
    def read(request: Request, device_id: str) -> dict[str, Any]:
        return earnings.earnings(device_of(earnings.w, request, device_id))

    @routes.put("/v1/peer/agents/{device_id}/wallet")
    def wallet(request: Request, device_id: str, body: WalletBody) -> dict[str, Any]:
        device = device_of(earnings.w, request, device_id)
        return earnings.set_wallet(request, device, body.walletAddress)

    @routes.post("/v1/peer/agents/{device_id}/withdraw")
    def withdraw(request: Request, device_id: str, body: WithdrawBody | None = None) -> dict[str, Any]:
        device = device_of(earnings.w, request, device_id)
        return earnings.withdraw(request, device, body.amount if body else None)

    return routes
