"""Dedicated ports over HTTP: one device held for one key, its session, and free replacements while it is offline."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse

from functions.http import ProblemError
from functions.x402.reading import PORT_TERMS, added_traffic, pays, refuse_field, refuse_unread
from functions.x402.sale import Sale
from shared.access.model import Pak
from shared.kernel.money import format_gb, format_usdc
from shared.kernel.traffic import traffic_unit
from shared.sale import answers
from shared.sale.model import FieldFault, Offer, Problem, Session
from shared.sale.ports import NotReplaced, PortLease
from shared.sale.rules import due_micro, read_port_terms, read_prices
from shared.sale.service import port_order

DEFAULT_TIER: Final = "shared"
_NOT_REPLACED: Final = {
    NotReplaced.ONLINE: (409, "the device of this port is online; nothing was replaced"),
    NotReplaced.USED_UP: (409, "all free replacements of this port were used"),
    NotReplaced.NONE_FREE: (503, "no other device of this kind is free now; ask again later"),
    NotReplaced.CHANGED: (409, "the port changed in the same moment; read its session"),
}


class PortDesk:
    """Routes' work, one method each."""

    def __init__(self, sale: Sale) -> None:
        self._sale = sale

    def buy(self, request: Request, body: bytes = b"") -> JSONResponse:
        """`/v1/x402/proxy`: 402 with the price, or the credentials of a port."""
        refuse_unread(request, body, PORT_TERMS)
        sale, tier = self._sale, request.query_params.get("tier", DEFAULT_TIER)
        sale.open_prices()
        paying, versions = pays(request.headers), sale.w.live.versions("prices")
        # What went off sale is still sold to who was quoted it.
        told = versions if paying else versions[:1]
        sold = {kind for setting in told for kind in setting.get("ports", {})}
        if not sold:
            message = (
                "dedicated ports are not on sale now; buy pool access at /v1/x402/pool, do not pay for this"
            )
            raise ProblemError(503, Problem.NOT_ON_SALE.value, message)
        if tier not in sold:
            refuse_field(FieldFault("tier", " or ".join(sorted(sold))))

        def read(setting: Mapping[str, Any]) -> Offer | FieldFault:
            prices = read_prices(setting, tier)
            if prices is None:
                return FieldFault("tier", "one that is on sale")
            terms = read_port_terms(request.query_params, prices)
            return terms if isinstance(terms, FieldFault) else Offer(port_order(terms, prices), prices)

        offers = sale.offers("prices", read, paying=paying)
        what = f"a {tier} dedicated port with {format_gb(offers[0].order.traffic_bytes)} GB"
        return sale.sell(request, offers, what)

    def _port(self, request: Request) -> tuple[Session, Pak, PortLease]:
        session, pak, _ = self._sale.session(request)
        port = self._sale.port_of(session.username)
        if port is None:
            raise ProblemError(409, "NOT_A_PORT", "this session is pool access: use /v1/x402/manage/pool")
        return session, pak, port

    def session(self, request: Request) -> dict[str, Any]:
        """`GET /manage/session`."""
        session, pak, port = self._port(request)
        sale = self._sale
        return {
            "product": "proxy",
            "sessionId": session.session_id,
            "port": answers.port_facts(port) | {"online": sale.w.counter.mint.ports.is_online(port)},
            "credit": answers.credit(pak, sale.held(session, pak), sale.used(pak)),
        }

    def calculate(self, request: Request) -> dict[str, Any]:
        """`GET /manage/session/topup/calculate`: what more traffic would cost; nothing is bought."""
        _, _, port = self._port(request)
        prices = self._sale.prices(port.tier)
        traffic = added_traffic(request.query_params.get("addTrafficGB"), prices)
        if isinstance(traffic, FieldFault):
            refuse_field(traffic)
        due = due_micro(traffic, prices)
        costs = {"amountUSDC": format_usdc(due), "amountMicro": str(due)}
        return {"addTrafficGB": format_gb(traffic), **costs, "trafficUnit": traffic_unit()}

    def replace(self, request: Request) -> dict[str, Any]:
        """`POST /manage/ports/replace`: the same credentials on another device."""
        _, _, port = self._port(request)
        found = self._sale.w.counter.mint.ports.replace(port)
        if isinstance(found, NotReplaced):
            status, message = _NOT_REPLACED[found]
            headers = {"Retry-After": "60"} if status == 503 else {}
            raise ProblemError(status, found.value, message, headers)
        return {"replaced": True, "port": answers.port_facts(found)}
