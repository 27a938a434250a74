"""Prepaid traffic of resellers, bought by the same rails as everything else, at the wholesale price of its size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse

from functions.http import ProblemError
from functions.x402.admin import api_key_of
from functions.x402.reading import refuse_field, shown_payment
from functions.x402.sale import Sale
from functions.x402.wiring import Wiring
from shared.access.model import AccountKind, ApiKey, Scope
from shared.access.prepaid import get_prepaid
from shared.access.rules import DISCOUNTS, PURCHASE_MAX_BYTES, wholesale_price
from shared.access.table import get_account
from shared.kernel.ids import AccountId
from shared.kernel.money import NotADecimal, format_gb, gb_number, parse_gb
from shared.kernel.traffic import traffic_unit
from shared.sale import answers
from shared.sale.live import BUY_LIMIT, PAID_LIMIT
from shared.sale.model import Claim, FieldFault, Offer, Order, Prices, Refused
from shared.sale.rules import read_prices
from shared.sale.service import account_requester, balance_order

_MAY_PREPAY: Final = frozenset({AccountKind.RESELLER, AccountKind.PARTNER, AccountKind.CUSTOMER})


def wholesale(wiring: Wiring, traffic: int, setting: Mapping[str, Any]) -> Prices | None:
    """The catalogue's terms at the price per GB of one purchase of this size; None while nothing is priced."""
    prices = read_prices(wiring.live.get("prices"))
    per_gb, _ = wholesale_price(traffic, setting)
    return None if prices is None else replace(prices, price_micro_per_gb=per_gb)


def steps(wiring: Wiring) -> list[dict[str, Any]]:
    """The volume discount as the price sheet tells it."""
    rows = sorted(tuple(row) for row in wiring.live.get("wholesale").get("steps") or DISCOUNTS)
    return [{"fromGB": gb, "pricePerGB": answers.usdc(micro)} for gb, micro in rows]


class BalanceDesk:
    """Routes' work."""

    def __init__(self, sale: Sale) -> None:
        self._sale = sale

    def buy(self, request: Request) -> JSONResponse:
        """`POST /v1/x402/balance?traffic=`: 402 with the price, or the credited balance."""
        sale, key = self._sale, self._reseller(request)
        sale.open_prices()
        traffic = _traffic(request.query_params.get("traffic"))
        payment = shown_payment(request.headers)
        offers = sale.offers(
            "wholesale",
            lambda setting: self._offer(key.account_id, traffic, setting),
            paying=payment is not None,
        )
        order = offers[0].order
        what = f"{format_gb(traffic)} GB of prepaid traffic for {key.account_id}"
        asking = (BUY_LIMIT, account_requester(order))
        sale.limit(request, *(asking if payment is None else (PAID_LIMIT, asking[1])))
        if payment is None:
            return sale.required(request, order, what, None, account_requester(order))
        found = sale.w.counter.credit(offers, payment)
        if isinstance(found, Refused):
            return sale.refused(request, found, offers[0], what, payment, asking)
        return self._credited(order, *found)

    def _offer(self, account: AccountId, traffic: int, setting: Mapping[str, Any]) -> Offer:
        prices = wholesale(self._sale.w, traffic, setting)
        if prices is None:
            raise ProblemError(503, "SALE_NOT_VALIDATED", "no prices are set yet; nothing was charged")
        return Offer(balance_order(account, traffic, prices), prices)

    def _reseller(self, request: Request) -> ApiKey:
        """Whose balance it is: the account of an API key that may resell."""
        key = api_key_of(self._sale.w, request, Scope.RESELL)
        account = self._sale.w.dynamo.run(get_account(self._sale.w.settings.table("access"), key.account_id))
        if account is None or account.kind not in _MAY_PREPAY:
            raise ProblemError(403, "SCOPE_MISSING", "this account cannot hold a prepaid balance")
        return key

    def _credited(self, order: Order, claim: Claim, repeated: bool) -> JSONResponse:
        w = self._sale.w
        found = w.dynamo.run(get_prepaid(w.settings.table("access"), AccountId(order.account)))
        body = {
            "product": "balance",
            "accountId": order.account,
            "creditedGB": gb_number(claim.traffic_bytes),
            "repeated": repeated,
            "balance": {
                "creditedGB": gb_number(found.credited_bytes) if found else 0,
                "availableGB": gb_number(found.available_bytes) if found else 0,
            },
            "payment": answers.payment_facts(claim),
            "trafficUnit": traffic_unit(),
        }
        rail = w.rail_of(claim.network)
        headers = answers.payment_response_headers(claim, rail.caip2)
        return JSONResponse(body, 200, {"Cache-Control": "no-store", **headers})


def _traffic(text: str | None) -> int:
    allowed = FieldFault("traffic", f"above 0 and up to {format_gb(PURCHASE_MAX_BYTES)} GB")
    try:
        traffic = parse_gb(text or "")
    except NotADecimal:
        refuse_field(allowed)
    return traffic if 0 < traffic <= PURCHASE_MAX_BYTES else refuse_field(allowed)
