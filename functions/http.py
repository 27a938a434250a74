"""What both HTTP functions share: request ids, problem details, who is calling, where they stand.

Source: RFC 9457; draft-ietf-httpapi-ratelimit-headers-10.
"""

import functools
import inspect
import re
import uuid
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.access.live import Allowance
from shared.access.rules import network_of
from shared.runtime.dynamo import StoreUnavailable

RETRY_AFTER_S: Final = 2
PROBLEM_TYPE: Final = "application/problem+json"
BRACKETS_MAX: Final = 1_000
"""Brackets of a body. Parsing them nested costs stack, and a chain SDK lifts the interpreter's own bound on that."""
PATH_MAX_BYTES: Final = 1_000
"""Ids of paths become keys of the store, which have bounds."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")


class InlineRoute(APIRoute):
    """A route whose work runs where it is called. A function serves one request at a time and has nothing else to do
    meanwhile, so the threads that the framework would take for it cost a millisecond and gain nothing.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        super().__init__(path, _inline(endpoint), **how)


def _inline(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    async def called(*args: Any, **named: Any) -> Any:
        return endpoint(*args, **named)

    return called


class Routes(APIRouter):
    """Routes of a function."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__(prefix=prefix, route_class=InlineRoute)


class ProblemError(Exception):
    """An expected refusal: status, stable code, one message for whoever meets it."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def problem(request: Request, status: int, code: str, message: str, headers: dict[str, str]) -> JSONResponse:
    """A problem document that keeps `code` and `message`."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": code,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        "requestId": getattr(request.state, "request_id", ""),
    }
    return JSONResponse(body, status, headers, PROBLEM_TYPE)


def unavailable(request: Request) -> JSONResponse:
    """A store does not answer: nothing is known, and nothing is to be paid again."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    message = "temporarily unavailable; repeat the same request, and do not pay again"
    return problem(request, 503, "TEMPORARILY_UNAVAILABLE", message, headers)


def lambda_handler(app: FastAPI) -> Mangum:
    """An app as a Lambda handler; problem documents travel as text, like all JSON."""
    return Mangum(app, lifespan="off", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, PROBLEM_TYPE])


def source_address(request: Request) -> str:
    """The address of the caller's socket as the gateway saw it; never a header."""
    return request.client.host if request.client else ""


def bearer(request: Request) -> str:
    """The token of `Authorization: Bearer`, or ""."""
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def source_network(request: Request) -> str:
    """Whom limits count the caller as."""
    return network_of(source_address(request))


def seconds_up(ms: int) -> int:
    """Milliseconds as whole seconds, rounded up."""
    return -(-ms // 1000)


def rate_limit_headers(request: Request) -> dict[str, str]:
    """`RateLimit` and `RateLimit-Policy` for what this request was counted under."""
    told: list[Allowance] = getattr(request.state, "rate_limits", [])
    if not told:
        return {}
    return {
        "RateLimit-Policy": ", ".join(
            f'"{a.limit.name}";q={a.limit.calls};w={a.limit.window_s}' for a in told
        ),
        "RateLimit": ", ".join(
            f'"{a.limit.name}";r={a.left};t={seconds_up(a.wait_ms or a.reset_ms)}' for a in told
        ),
    }


class Edge:
    """Around everything: a request's id, the bound on nested bodies, and where its caller stands. Plain ASGI: it costs
    microseconds where a middleware that makes requests and responses costs a third of a 402.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        body = await request.body()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-ID"] = request.state.request_id
                headers.update(rate_limit_headers(request))
            await send(message)

        if len(scope["path"].encode()) > PATH_MAX_BYTES:
            words = f"there is nothing at a path of more than {PATH_MAX_BYTES} bytes"
            await problem(request, 404, "NOT_FOUND", words, {})(scope, receive, told)
        elif body.count(b"[") + body.count(b"{") > BRACKETS_MAX:
            words = f"body: at most {BRACKETS_MAX} arrays and objects"
            await problem(request, 400, "INVALID_FIELD", words, {})(scope, receive, told)
        else:
            await self._app(scope, replayed(body, receive), told)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for whoever reads it next."""
    unread = True

    async def again() -> Message:
        nonlocal unread
        if not unread:
            return await receive()
        unread = False
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def answered(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """An app's whole answer, held back."""
    started: Message = {}
    parts = list[bytes]()

    async def hold(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, hold)
    held = Response(b"".join(parts), started["status"])
    held.raw_headers = list(started["headers"])
    return held


def install(app: FastAPI) -> None:
    """Give an app its request ids and its errors."""
    app.add_middleware(Edge)

    @app.exception_handler(ProblemError)
    async def refused(request: Request, error: ProblemError) -> JSONResponse:
        return problem(request, error.status, error.code, error.message, error.headers)

    @app.exception_handler(StoreUnavailable)
    async def away(request: Request, error: StoreUnavailable) -> JSONResponse:
        return unavailable(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query"}) or "body"
        return problem(request, 400, "INVALID_FIELD", f"{field}: {first['msg']}", {})

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP_ERROR")
        return problem(request, error.status_code, code, str(error.detail), dict(error.headers or {}))
