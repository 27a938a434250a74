"""Idempotency-Key on every write: the first response is kept, sealed, and answers every repeat.

Same key, other request: 422. A repeat that comes while the first one runs waits for its response, then gets 409.
Source: the contract's section 1; draft-ietf-httpapi-idempotency-key-header.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.http import ProblemError, answered, problem, replayed, source_address, unavailable
from shared.access import idempotency as rows
from shared.access.idempotency import Operation
from shared.access.secrets import Seals
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, SyncDynamo
from shared.runtime.settings import Settings

T = TypeVar("T")
Admit = Callable[[Request, bytes], bool]
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
WAIT_MAX_S: Final = 8.0
WAIT_STEP_S: Final = 0.05
RETRY_AFTER_S: Final = 2
_CREDENTIALS: Final = ("x-api-key", "authorization", "x-session-token")
"""All that are sent count: each route reads its own, and another one beside it must not make two callers one."""


class Keeps(Protocol):
    """What keeping responses needs of a function's wiring."""

    @property
    def settings(self) -> Settings: ...

    @property
    def dynamo(self) -> SyncDynamo: ...

    @property
    def box(self) -> Seals: ...


class Once:
    """The middleware: plain ASGI, so that requests without a key pass through it for nothing."""

    def __init__(
        self,
        app: ASGIApp,
        wiring: Callable[[], Keeps],
        admit: Admit,
        names_payment: Callable[[Request], bool],
    ) -> None:
        self._app = app
        self._wiring = wiring
        self._admit = admit
        self._names_payment = names_payment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope, receive) if scope["type"] == "http" and scope["method"] in WRITES else None
        if request is None or "idempotency-key" not in request.headers or self._names_payment(request):
            await self._app(scope, receive, send)
            return
        try:
            response = await self._handle(request)
        except ProblemError as refused:
            response = problem(request, refused.status, refused.code, refused.message, refused.headers)
        except StoreUnavailable:
            response = unavailable(request)
        await response(scope, receive, send)

    @property
    def table(self) -> str:
        """The access table."""
        return self._wiring().settings.table("access")

    def run(self, request: DynamoRequest[T]) -> T:
        """One request of the store."""
        return self._wiring().dynamo.run(request)

    async def _handle(self, request: Request) -> Response:
        """One write with a key, of whoever may call at all: nothing is kept or told again for anybody else."""
        key = request.headers["idempotency-key"]
        if rows.KEY.fullmatch(key) is None:
            raise ProblemError(400, "INVALID_FIELD", "Idempotency-Key: 8 to 128 of A-Z, a-z, 0-9, _ and -")
        now, body = now_ms(), await request.body()
        if not self._admit(request, body):
            return await answered(self._app, request.scope, replayed(body, request.receive))
        target = f"{request.url.path}?{request.url.query}"
        ident = rows.operation_id(_caller(request), key)
        mine = Operation(ident, rows.fingerprint(request.method, target, body), now, now)
        claimed = await self._claim(mine)
        if claimed is None:
            raise ProblemError(
                409,
                "IDEMPOTENCY_IN_PROGRESS",
                "the first request with this key is still running; repeat it later",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        if claimed.fingerprint != mine.fingerprint:
            message = "this Idempotency-Key was used for another request"
            raise ProblemError(422, "IDEMPOTENCY_KEY_REUSED", message)
        if claimed.status is not None:
            return self._replay(claimed)
        return await self._first(request, body, claimed)

    async def _claim(self, mine: Operation) -> Operation | None:
        """The write to run (no status), the one to replay, or None when it is still running elsewhere."""
        deadline_s = time.monotonic() + WAIT_MAX_S
        if self.run(rows.claim(self.table, mine)):
            return mine
        while True:
            known = self.run(rows.find(self.table, mine.operation_id))
            if known is None:
                if self.run(rows.claim(self.table, mine)):
                    return mine
            elif rows.has_lapsed(known, mine.claimed_at_ms):
                is_over = mine.claimed_at_ms - known.started_at_ms >= rows.KEPT_MS
                if not is_over and known.fingerprint != mine.fingerprint:
                    return known
                anew = mine if is_over else replace(mine, started_at_ms=known.started_at_ms)
                if (taken := self.run(rows.take_over(self.table, known, anew))) is not None:
                    return taken
            elif known.status is not None or known.fingerprint != mine.fingerprint:
                return known
            if time.monotonic() > deadline_s:
                return None
            await asyncio.sleep(WAIT_STEP_S)

    async def _first(self, request: Request, body: bytes, claimed: Operation) -> Response:
        request.state.operation_id = rows.work_id(claimed)
        try:
            response = await answered(self._app, request.scope, replayed(body, request.receive))
        except BaseException:
            self.run(rows.release(self.table, claimed))
            raise
        said = bytes(response.body)
        if rows.is_kept(response.status_code) and len(said) <= rows.BODY_MAX_BYTES:
            sealed = self._wiring().box.seal(said.decode(), f"idem#{claimed.operation_id}")
            kind = response.headers.get("content-type", "")
            self.run(rows.finish(self.table, claimed, response.status_code, kind, sealed))
        else:
            self.run(rows.release(self.table, claimed))
        return response

    def _replay(self, known: Operation) -> Response:
        body = self._wiring().box.open(known.body_sealed, f"idem#{known.operation_id}")
        headers = {"content-type": known.content_type, "Idempotency-Replayed": "true"}
        return Response(body, known.status or 200, headers)


def _caller(request: Request) -> str:
    """Whose key it is: two callers may use the same one."""
    shown = [f"{name}:{given}" for name in _CREDENTIALS if (given := request.headers.get(name))]
    return "\n".join(shown) or f"address:{source_address(request)}"


def install_idempotency(
    app: FastAPI,
    wiring: Callable[[], Keeps],
    admit: Admit,
    names_payment: Callable[[Request], bool] = lambda _: False,
) -> None:
    """Give every write of an app its first response again. Install it before the request ids, which go around it.

    `admit` counts a caller under its rate limits and looks at its credential, in the headers or in the body, or raises
    ProblemError: before anything is written for it, and before anything is told again. Where it answers False nothing is
    kept: a stranger's write that only credentials can do comes to nothing anyway. Where the key names a payment, the sale
    keeps what it stands for.
    """
    app.add_middleware(Once, wiring=wiring, admit=admit, names_payment=names_payment)
