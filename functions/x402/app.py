"""Routes of the sale. What they do stands in `sale.py`."""

import re
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from functions.http import InlineRoute, ProblemError, install
from functions.idempotency import install_idempotency
from functions.x402 import admin, described, peer_tiers
from functions.x402.balance import BalanceDesk, steps
from functions.x402.ports import PortDesk
from functions.x402.reading import POOL_TERMS, PORT_TERMS, pays, refuse_field
from functions.x402.sale import Sale
from functions.x402.wiring import Wiring
from shared.kernel.traffic import traffic_unit
from shared.metering.rules import day_of
from shared.metering.table import usage_days
from shared.runtime.clock import now_ms
from shared.sale import answers
from shared.sale import table as sales
from shared.sale.live import REGENERATE_LIMIT
from shared.sale.model import FieldFault, Session

USAGE_DAYS_MAX: Final = 90
USAGE_DAYS_DEFAULT: Final = 30
DAY_MS: Final = 86_400_000
STATUSES: Final = ("active", "expired", "all")
WALLET_SESSIONS_MAX: Final = 50
_SESSION_ID: Final = re.compile(r"[0-9a-f]{1,64}")


def create_app(wiring: Callable[[], Wiring]) -> FastAPI:
    """The app; nothing is connected before the first request."""
    app = FastAPI(title="psx sale", openapi_url=None, docs_url=None, redoc_url=None)
    app.router.route_class = InlineRoute
    sale = Sale(wiring)
    install_idempotency(app, wiring, sale.admit, lambda request: pays(request.headers))
    install(app)
    app.include_router(admin.router(wiring))
    app.include_router(peer_tiers.router(wiring))
    balance = BalanceDesk(sale)

    prepaid = described.sold(
        "Prepaid traffic of a reseller: its price, or the balance", ("traffic",), key=True
    )

    @app.post("/v1/x402/balance", openapi_extra=prepaid)
    def buy_balance(request: Request) -> JSONResponse:
        return balance.buy(request)

    @app.get("/v1/x402/pool/pricing")
    def pool_pricing() -> dict[str, Any]:
        return sale.sheet()

    @app.get("/v1/x402/pricing")
    def pricing() -> dict[str, Any]:
        sheet = sale.sheet()
        kinds = sorted(sale.w.live.get("prices").get("ports", {}))
        ports = [answers.tier_row(sale.prices(kind)) for kind in kinds]
        balances = {"product": "balance", "currency": "USDC", "steps": steps(sale.w)}
        proxy = {"product": "proxy", "tiers": ports, "caveats": list(sale.port_caveats())}
        return sheet | {"proxy": proxy, "balance": balances}

    @app.get("/v1/x402/countries")
    def countries() -> dict[str, Any]:
        return {"countries": {c.upper(): n for c, n in sorted(sale.countries().items())}}

    @app.api_route(
        "/v1/x402/pool",
        methods=["GET", "POST"],
        openapi_extra=described.sold("Pool access: its price, or a key for a payment", POOL_TERMS),
    )
    async def pool(request: Request) -> JSONResponse:
        return sale.buy(request, await request.body())

    desk = PortDesk(sale)

    @app.api_route(
        "/v1/x402/proxy",
        methods=["GET", "POST"],
        openapi_extra=described.sold("A dedicated port: its price, or its credentials", PORT_TERMS),
    )
    async def proxy(request: Request) -> JSONResponse:
        return desk.buy(request, await request.body())

    @app.get(
        "/v1/x402/manage/session",
        openapi_extra=described.managed("A dedicated port, whether it is online, and its credit", 409),
    )
    def port_session(request: Request) -> dict[str, Any]:
        return desk.session(request)

    @app.get(
        "/v1/x402/manage/session/topup/calculate",
        openapi_extra=described.managed("What more traffic would cost", 409, terms=("addTrafficGB",)),
    )
    def calculate(request: Request) -> dict[str, Any]:
        return desk.calculate(request)

    @app.post(
        "/v1/x402/manage/ports/replace",
        openapi_extra=described.managed(
            "Another device for a port whose device is offline: free, at most 3", 409
        ),
    )
    def replace(request: Request) -> dict[str, Any]:
        return desk.replace(request)

    _manage(app, sale)
    return app


def _manage(app: FastAPI, sale: Sale) -> None:
    @app.get("/v1/x402/manage/pool/credit", openapi_extra=described.managed("What a key has left"))
    def credit(request: Request) -> dict[str, Any]:
        session, pak, _ = sale.session(request)
        shown = answers.credit(pak, sale.held(session, pak), sale.used(pak))
        return {"credit": shown, "trafficUnit": traffic_unit()}

    @app.get("/v1/x402/manage/pool/usage", openapi_extra=described.managed("Bytes by day"))
    def usage(request: Request, days: str = str(USAGE_DAYS_DEFAULT)) -> dict[str, Any]:
        _, pak, _ = sale.session(request)
        if not (days.isascii() and days.isdecimal() and len(days) < 3 and 0 < int(days) <= USAGE_DAYS_MAX):
            refuse_field(FieldFault("days", f"1 to {USAGE_DAYS_MAX}"))
        since = day_of(now_ms() - (int(days) - 1) * DAY_MS)
        owner, table = f"pak#{pak.pak_id}", sale.w.settings.table("usage")
        page = sale.w.dynamo.run(usage_days(table, owner, since, USAGE_DAYS_MAX))
        rows = [{"day": day, "bytesOut": up, "bytesIn": down} for day, up, down in page.rows]
        return {"usage": rows, "usedBytes": sale.used(pak), "trafficUnit": traffic_unit()}

    @app.get("/v1/x402/manage/pool/connection", openapi_extra=described.managed("The credentials again"))
    def connection(request: Request) -> JSONResponse:
        session, pak, token = sale.session(request)
        return sale.connection(session, pak, token, sale.held(session, pak))

    more = described.topped_up("More traffic (402, then a payment) or more time (free)")

    @app.post("/v1/x402/manage/session/topup", openapi_extra=more)
    @app.post("/v1/x402/manage/pool/topup", openapi_extra=more)
    async def top_up(request: Request) -> JSONResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            refuse_field(FieldFault("body", "a JSON object"))
        return sale.top_up(request, body)

    @app.post(
        "/v1/x402/manage/pool/regenerate",
        openapi_extra=described.managed("Another secret under the same username", 409),
    )
    def regenerate(request: Request) -> JSONResponse:
        session, pak, token = sale.session(request)
        sale.limit(request, REGENERATE_LIMIT, pak.pak_id)
        held = sale.held(session, pak)  # what can fail comes before the old secret ends
        bought = sale.w.counter.regenerate(session, pak, token)
        if bought is None:
            raise ProblemError(409, "CHANGED_MEANWHILE", "the key changed in the same moment, please retry")
        return sale.credentials(bought, held)

    @app.get("/v1/x402/sessions/wallet/{address}")
    def of_wallet(request: Request, address: str, status: str = "all", cursor: str = "") -> dict[str, Any]:
        sale.look(request)
        if status not in STATUSES:
            refuse_field(FieldFault("status", ", ".join(STATUSES)))
        if cursor and _SESSION_ID.fullmatch(cursor) is None:
            refuse_field(FieldFault("cursor", "what nextCursor said"))
        wallet = address.lower() if address.startswith("0x") else address
        page = sale.w.dynamo.run(
            sales.sessions_of_wallet(sale.w.settings.table("sales"), wallet, WALLET_SESSIONS_MAX, cursor)
        )
        found = [_public(s) for s in page.rows]
        kept = [s for s in found if status in {"all", s["status"]}]
        following = page.rows[-1].session_id if page.next_key is not None else None
        return {"sessions": kept, "count": len(kept), "nextCursor": following}

    @app.get("/v1/x402/sessions/{session_id}/status")
    def status(request: Request, session_id: str) -> dict[str, Any]:
        sale.look(request)
        session = sale.w.dynamo.run(sales.get_session_by_id(sale.w.settings.table("sales"), session_id))
        if session is None:
            raise ProblemError(404, "NOT_FOUND", "there is no such session")
        return _public(session)


def _public(session: Session) -> dict[str, Any]:
    """A session without anything that works as a credential."""
    return {
        "sessionId": session.session_id,
        "network": session.network,
        "txHash": session.tx_hash,
        "createdAt": session.created_at_ms,
        "expiresAt": session.expires_at_ms,
        "status": "active" if session.expires_at_ms > now_ms() else "expired",
    }
