"""Prepaid GB: what a reseller has, what more costs, and credits that one admin asks for and another one approves."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, Field

from functions.api.amounts import Amount
from functions.api.audit import told
from functions.api.auth import caller, fresh
from functions.api.desk import Desk
from functions.api.history import write_of_account
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access.model import Account, AccountKind, Scope
from shared.access.prepaid import credit, get_prepaid
from shared.access.rules import PURCHASE_MAX_BYTES, wholesale_price
from shared.access.table import get_account
from shared.guard.approvals import Approvals
from shared.guard.model import Approval, ApprovalState
from shared.kernel.ids import AccountId
from shared.kernel.money import BYTES_PER_GB, NotADecimal, format_usdc, gb_number, parse_gb
from shared.kernel.traffic import traffic_unit
from shared.runtime.clock import new_id, now_ms

CREDIT: Final = "reseller_credit"
PREPAID_KINDS: Final = frozenset({AccountKind.RESELLER, AccountKind.PARTNER, AccountKind.CUSTOMER})


class CreditBody(BaseModel):
    """`POST /v1/admin/resellers/{account}/credits`."""

    trafficGB: Amount
    reason: Annotated[str, Field(min_length=1, max_length=256)]
    paymentReference: Annotated[str, Field(max_length=256)] = ""


class Balances(Desk):
    """Routes' work."""

    @property
    def approvals(self) -> Approvals:
        """Requests for a second admin's yes."""
        return Approvals(self.w.settings.table("guard"))

    def balance(self, account_id: AccountId) -> dict[str, Any]:
        """An account's balance; one on invoice has none."""
        found = self.w.dynamo.run(get_prepaid(self.w.settings.table("access"), account_id))
        return {
            "accountId": account_id,
            "prepaid": found is not None,
            "creditedGB": gb_number(found.credited_bytes) if found else 0,
            "availableGB": gb_number(found.available_bytes) if found else 0,
            "trafficUnit": traffic_unit(),
        }

    def quote(self, text: str) -> dict[str, Any]:
        """What one purchase of so many GB costs."""
        size = traffic(text)
        per_gb, total = wholesale_price(size, self.w.live.get("wholesale"))
        return {
            "trafficGB": gb_number(size),
            "trafficUnit": traffic_unit(),
            "bytesPerGB": BYTES_PER_GB,
            "pricePerGB": format_usdc(per_gb),
            "amountUSDC": format_usdc(total),
            "amountMicroUSDC": str(total),
        }

    def account(self, account_id: str) -> Account:
        """An account that may be prepaid, or 404."""
        table = self.w.settings.table("access")
        found = self.w.dynamo.run(get_account(table, AccountId(account_id)))
        if found is None or found.kind not in PREPAID_KINDS:
            raise ProblemError(404, "NOT_FOUND", "there is no such account")
        return found

    def propose(self, request: Request, account_id: str, body: CreditBody) -> dict[str, Any]:
        """Ask for a credit; nothing is credited before another admin says yes."""
        by = fresh(self.w, request, caller(self.w, request, Scope.ADMIN))
        size = traffic(body.trafficGB)
        account = self.account(account_id)
        facts = {
            "account": account.account_id,
            "bytes": str(size),
            "reason": body.reason,
            "payment": body.paymentReference,
        }
        ident = str(getattr(request.state, "operation_id", ""))[:24] or new_id()
        asked = Approval(ident, CREDIT, facts, by.account_id, now_ms())
        items = [self.approvals.propose_item(asked)]
        if (
            write_of_account(self.w, request, by, "credit_propose", items, approval=ident, **facts)
            is not None
        ):
            told(request)  # an earlier try of the same operation asked
        return self.shown(self.found(ident))

    def decide(self, request: Request, ident: str, state: ApprovalState) -> dict[str, Any]:
        """Another admin's word. A yes that was given and not carried out is carried out by saying it again."""
        by = fresh(self.w, request, caller(self.w, request, Scope.ADMIN))
        asked = self.found(ident)
        if asked.state is ApprovalState.PROPOSED:
            if asked.proposed_by == by.account_id:
                raise ProblemError(403, "SECOND_ADMIN_NEEDED", "who proposed this cannot decide it")
            items = [self.approvals.decide_item(asked, state, by.account_id)]
            facts = {"approval": ident, **asked.arguments}
            write_of_account(self.w, request, by, f"credit_{state.value}", items, **facts)
            asked = self.found(ident)
        told(request)  # a repeated word decides nothing more
        if asked.state is not state:
            raise ProblemError(409, "DECIDED_ALREADY", f"this request is {asked.state.value}")
        if state is ApprovalState.APPROVED:
            self.credit(asked)
        return self.shown(asked)

    def credit(self, approved: Approval) -> None:
        """Carry an approved credit out, once."""
        account = AccountId(approved.arguments["account"])
        facts = {"approved_by": approved.decided_by, "at_ms": now_ms()}
        size = int(approved.arguments["bytes"])
        credit(self.w.dynamo, self.w.settings.table("access"), account, approved.approval_id, size, facts)

    def found(self, ident: str) -> Approval:
        """A request for a credit, or 404."""
        asked = self.approvals.find(ident)
        if asked is None or asked.operation != CREDIT:
            raise ProblemError(404, "NOT_FOUND", "there is no such request")
        return asked

    def shown(self, asked: Approval) -> dict[str, Any]:
        """A request as admins see it."""
        return {
            "approvalId": asked.approval_id,
            "operation": asked.operation,
            "state": asked.state.value,
            "accountId": asked.arguments["account"],
            "trafficGB": gb_number(int(asked.arguments["bytes"])),
            "reason": asked.arguments["reason"],
            "proposedBy": asked.proposed_by,
            "decidedBy": asked.decided_by or None,
        }


def traffic(text: str) -> int:
    """GB text as bytes of one purchase, or 400."""
    try:
        size = parse_gb(text)
    except NotADecimal:
        size = 0
    if not 0 < size <= PURCHASE_MAX_BYTES:
        raise ProblemError(400, "INVALID_FIELD", "trafficGB: more than 0 and at most 100000, nine places")
    return size


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of balances."""
    routes = Routes()
    work = Balances(wiring)

    @routes.get("/v1/reseller/balance")
    def balance(request: Request) -> dict[str, Any]:
        return work.balance(caller(work.w, request, Scope.RESELL).account_id)

    @routes.get("/v1/reseller/balance/quote")
    def quote(request: Request, trafficGB: str) -> dict[str, Any]:
        caller(work.w, request, Scope.RESELL)
        return work.quote(trafficGB)

    @routes.get("/v1/admin/resellers/{account_id}/balance")
    def balance_of(request: Request, account_id: str) -> dict[str, Any]:
        caller(work.w, request, Scope.ADMIN)
        return work.balance(work.account(account_id).account_id)

    routes.post("/v1/admin/resellers/{account_id}/credits", status_code=202)(work.propose)

    @routes.post("/v1/admin/credits/{ident}/approve")
    def approve(request: Request, ident: str) -> dict[str, Any]:
        return work.decide(request, ident, ApprovalState.APPROVED)

    @routes.post("/v1/admin/credits/{ident}/reject")
    def reject(request: Request, ident: str) -> dict[str, Any]:
        return work.decide(request, ident, ApprovalState.REJECTED)

    return routes
