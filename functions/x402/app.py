"""Routes of the sale. Every answer about money that is not certain says: do not pay again."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from functions.http import ProblemError, install, source_address
from functions.x402.wiring import Wiring
from shared.access.model import Pak
from shared.kernel.codes import Pool
from shared.kernel.ids import Country
from shared.kernel.money import format_gb
from shared.metering.live import read_used
from shared.metering.table import usage_days
from shared.pool.live import stock
from shared.runtime.dynamo import StoreUnavailable
from shared.sale import answers
from shared.sale import table as sales
from shared.sale.model import FieldFault, Payment, Prices, Problem, Session, Terms
from shared.sale.rules import due_micro, proof_text, read_payment, read_prices, read_terms, read_traffic
from shared.sale.service import UNKNOWN_RETRY_S, Bought, Refused

USAGE_DAYS_MAX: Final = 90
WALLET_SESSIONS_MAX: Final = 50
_STATUS: Final = {
    Problem.NOT_ON_SALE: 503,
    Problem.PAYMENT_REQUIRED: 402,
    Problem.PAYMENT_UNKNOWN: 503,
    Problem.PAYMENT_INVALID: 402,
    Problem.PAYMENT_TOO_SMALL: 402,
    Problem.PAYMENT_TOO_OLD: 403,
    Problem.NOT_YOURS: 403,
    Problem.OTHER_PRODUCT: 409,
    Problem.BAD_PAYMENT: 400,
    Problem.RETRY: 503,
}


class Sale:
    """Routes' work, one method each."""

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        self._wiring = wiring

    @property
    def w(self) -> Wiring:
        """The container's wiring."""
        return self._wiring()

    def prices(self) -> Prices:
        """The live catalogue, or 503 while there is none."""
        prices = read_prices(self.w.live.get("prices"))
        if prices is None:
            raise ProblemError(503, Problem.NOT_ON_SALE.value, "no prices are set yet; nothing was charged")
        return prices

    def open_prices(self) -> Prices:
        """The catalogue on a route that takes money: 503 until the sale is validated."""
        prices = self.prices()
        if self.w.live.get("sale").get("ok") is not True:
            message = "the sale is closed until its configuration is validated; do not pay now"
            raise ProblemError(503, Problem.NOT_ON_SALE.value, message, {"Retry-After": "30"})
        return prices

    def countries(self) -> dict[Country, int]:
        """Live stock of what is on sale; empty when the live network cannot be asked."""
        try:
            return self.w.redis.run(stock(Pool.MBL))
        except StoreUnavailable:
            return {}

    def buy(self, request: Request) -> JSONResponse:
        """`/v1/x402/pool`: 402 with the price, or credentials for a payment."""
        prices = self.open_prices()
        terms = read_terms(request.query_params, prices)
        if isinstance(terms, FieldFault):
            _field(terms)
        payment = _payment(request.headers)
        address = source_address(request)
        due = due_micro(terms.traffic_bytes, prices)
        if payment is None:
            return self.required(request, "pool", due, _describe(terms), None)
        result = self.w.counter.buy(terms, prices, payment, address)
        if isinstance(result, Refused):
            return self.refused(request, result, "pool", due, _describe(terms), payment)
        return self.credentials(result, prices)

    def required(
        self, request: Request, product: str, due: int, description: str, error: str | None
    ) -> JSONResponse:
        """A 402 in every form."""
        w = self.w
        quote = w.counter.quote(product, due, source_address(request))
        resource = w.settings.api_base_url + request.url.path
        body = answers.payment_required(resource, description, due, quote, w.rails, self.countries(), error)
        header = answers.payment_required_header(resource, description, due, w.rails)
        return JSONResponse(body, 402, {"PAYMENT-REQUIRED": header, "Cache-Control": "no-store"})

    def refused(
        self, request: Request, result: Refused, product: str, due: int, description: str, payment: Payment
    ) -> JSONResponse:
        """A payment that buys nothing, told so that an honest payer knows what to do."""
        status = _STATUS[result.problem]
        if status == 402:
            return self.required(
                request, product, due, description, f"{result.problem.value}: {result.detail}"
            )
        message, headers = result.detail, {}
        if status == 503:
            headers["Retry-After"] = str(UNKNOWN_RETRY_S)
            message = f"{result.detail}; repeat this request with the same payment, do not pay again"
        if result.problem in {Problem.NOT_YOURS, Problem.PAYMENT_TOO_OLD}:
            text = proof_text(payment.network, payment.tx_hash).replace("\n", "\\n")
            message = (
                f"{result.detail}. If you are the payer: sign this text with the paying wallet and send the signature "
                f'as X-Payment-Proof: "{text}"; do not pay again'
            )
        raise ProblemError(status, result.problem.value, message, headers)

    def credentials(self, bought: Bought, prices: Prices) -> JSONResponse:
        """200 with credentials."""
        body = answers.credentials(
            bought.pak,
            bought.username,
            bought.secret,
            bought.session_token,
            bought.claim,
            prices,
            self.w.place,
            self.used(bought.pak),
            [c.upper() for c in sorted(self.countries())],
        )
        return JSONResponse(body, 200, {"Cache-Control": "no-store"})

    def used(self, pak: Pak) -> int:
        """Bytes used: the live count when it is ahead of what was rolled up."""
        try:
            live = self.w.redis.run(read_used(pak.pak_id))
        except StoreUnavailable:
            live = None
        return max(pak.used_bytes, live or 0)

    def session(self, request: Request) -> tuple[Session, Pak, str]:
        """The caller's session by its token, or 401."""
        token = request.headers.get("x-session-token", "")
        found = self.w.counter.session(token) if token.startswith("x402s_") else None
        if found is None:
            raise ProblemError(
                401, "SESSION_TOKEN_INVALID", "send the X-Session-Token that the purchase returned"
            )
        return (*found, token)

    def top_up(self, request: Request, body: Mapping[str, Any]) -> JSONResponse:
        """`/manage/pool/topup`: more time is free, more traffic is paid for."""
        prices = self.open_prices()
        session, pak, token = self.session(request)
        traffic = _traffic(body.get("addTrafficGB"), prices)
        seconds = body.get("addDurationSeconds", 0)
        if (
            not isinstance(seconds, int)
            or isinstance(seconds, bool)
            or not 0 <= seconds <= prices.duration_max_s
        ):
            _field(FieldFault("addDurationSeconds", f"0 to {prices.duration_max_s}"))
        if traffic is None:
            if not seconds:
                _field(FieldFault("addTrafficGB", "give addTrafficGB, addDurationSeconds or both"))
            return self.connection(session, self.w.counter.extend(pak, seconds, prices), token, prices)
        product, due = f"topup:{pak.pak_id}", due_micro(traffic, prices)
        description = f"{format_gb(traffic)} GB more for key {pak.pak_id}"
        payment = _payment(request.headers)
        if payment is None:
            return self.required(request, product, due, description, None)
        address = source_address(request)
        result = self.w.counter.top_up(session, pak, token, traffic, prices, payment, address)
        if isinstance(result, Refused):
            return self.refused(request, result, product, due, description, payment)
        if seconds and not result.repeated:
            return self.connection(session, self.w.counter.extend(result.pak, seconds, prices), token, prices)
        return self.credentials(result, prices)

    def connection(self, session: Session, pak: Pak, token: str, prices: Prices) -> JSONResponse:
        bought = self.w.counter.connection(session, pak, token)
        if bought is None:
            raise ProblemError(503, Problem.RETRY.value, "the purchase cannot be read now, please retry")
        return self.credentials(bought, prices)


def create_app(wiring: Callable[[], Wiring]) -> FastAPI:
    """The app; nothing is connected before the first request."""
    app = FastAPI(title="psx sale", openapi_url=None, docs_url=None, redoc_url=None)
    install(app)
    sale = Sale(wiring)

    @app.get("/v1/x402/pool/pricing")
    @app.get("/v1/x402/pricing")
    def pricing() -> dict[str, Any]:
        return answers.price_sheet(sale.prices(), sale.w.rails, sale.w.place)

    @app.get("/v1/x402/countries")
    def countries() -> dict[str, Any]:
        return {"countries": {c.upper(): n for c, n in sorted(sale.countries().items())}}

    @app.api_route("/v1/x402/pool", methods=["GET", "POST"])
    def pool(request: Request) -> JSONResponse:
        return sale.buy(request)

    @app.api_route("/v1/x402/proxy", methods=["GET", "POST"])
    def proxy() -> JSONResponse:
        message = "dedicated ports are not on sale yet; buy pool access at /v1/x402/pool, do not pay for this"
        raise ProblemError(503, Problem.NOT_ON_SALE.value, message)

    _manage(app, sale)
    return app


def _manage(app: FastAPI, sale: Sale) -> None:
    @app.get("/v1/x402/manage/pool/credit")
    def credit(request: Request) -> dict[str, Any]:
        _, pak, _ = sale.session(request)
        return {"credit": answers.credit(pak, sale.prices(), sale.used(pak))}

    @app.get("/v1/x402/manage/pool/usage")
    def usage(request: Request, since: str = "2000-01-01") -> dict[str, Any]:
        _, pak, _ = sale.session(request)
        owner, table = f"pak#{pak.pak_id}", sale.w.settings.table("usage")
        page = sale.w.dynamo.run(usage_days(table, owner, since, USAGE_DAYS_MAX))
        rows = [{"day": day, "bytesOut": up, "bytesIn": down} for day, up, down in page.rows]
        return {"usage": rows, "usedBytes": sale.used(pak)}

    @app.get("/v1/x402/manage/pool/connection")
    def connection(request: Request) -> JSONResponse:
        session, pak, token = sale.session(request)
        return sale.connection(session, pak, token, sale.prices())

    @app.post("/v1/x402/manage/pool/topup")
    async def top_up(request: Request) -> JSONResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            _field(FieldFault("body", "a JSON object"))
        return await run_in_threadpool(sale.top_up, request, body)

    @app.post("/v1/x402/manage/pool/regenerate")
    def regenerate(request: Request) -> JSONResponse:
        session, pak, token = sale.session(request)
        bought = sale.w.counter.regenerate(session, pak, token)
        if bought is None:
            raise ProblemError(409, "CHANGED_MEANWHILE", "the key changed in the same moment, please retry")
        return sale.credentials(bought, sale.prices())

    @app.get("/v1/x402/sessions/wallet/{address}")
    def of_wallet(address: str) -> dict[str, Any]:
        wallet = address.lower() if address.startswith("0x") else address
        page = sale.w.dynamo.run(
            sales.sessions_of_wallet(sale.w.settings.table("sales"), wallet, WALLET_SESSIONS_MAX)
        )
        return {"sessions": [_public(s) for s in page.rows], "count": len(page.rows)}

    @app.get("/v1/x402/sessions/{session_id}/status")
    def status(session_id: str) -> dict[str, Any]:
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
    }


def _payment(headers: Mapping[str, str]) -> Payment | None:
    payment = read_payment(headers)
    if isinstance(payment, Problem):
        message = "Payment-Signature: a transaction hash (0x and 64 hex digits, or a Solana signature); do not pay again"
        raise ProblemError(400, payment.value, message)
    return payment


def _traffic(value: Any, prices: Prices) -> int | None:
    """`addTrafficGB` as bytes; a JSON number is read by its shortest text."""
    if value is None or value == 0:
        return None
    traffic = read_traffic(str(value), prices) if isinstance(value, int | float | str) else FieldFault("", "")
    if isinstance(traffic, FieldFault):
        _field(FieldFault("addTrafficGB", traffic.allowed or "a number of GB"))
    return traffic


def _field(fault: FieldFault) -> NoReturn:
    raise ProblemError(400, "INVALID_FIELD", f"{fault.field}: allowed is {fault.allowed}")


def _describe(terms: Terms) -> str:
    return f"{format_gb(terms.traffic_bytes)} GB of {terms.tier} proxy traffic"
