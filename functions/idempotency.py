"""Idempotency-Key on every write: the first response is kept, sealed, and answers every repeat.

Same key, other request: 422. A repeat that comes while the first one runs waits for its response, then gets 409.
Source: the contract's section 1; draft-ietf-httpapi-idempotency-key-header.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from functions.http import problem, source_address
from shared.access import idempotency as rows
from shared.access.idempotency import Operation
from shared.access.secrets import Seals
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, SyncDynamo
from shared.runtime.settings import Settings

T = TypeVar("T")
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
WAIT_MAX_S: Final = 8.0
WAIT_STEP_S: Final = 0.05
RETRY_AFTER_S: Final = 2
_CREDENTIALS: Final = ("x-api-key", "authorization", "x-session-token")
"""All that are sent count: each route reads its own, and another one beside it must not make two callers one."""
Next = Callable[[Request], Awaitable[Response]]


class Keeps(Protocol):
    """What keeping responses needs of a function's wiring."""

    @property
    def settings(self) -> Settings: ...

    @property
    def dynamo(self) -> SyncDynamo: ...

    @property
    def box(self) -> Seals: ...


class _Writes:
    def __init__(self, wiring: Callable[[], Keeps]) -> None:
        self._wiring = wiring

    @property
    def table(self) -> str:
        """The access table."""
        return self._wiring().settings.table("access")

    async def run(self, request: DynamoRequest[T]) -> T:
        """Off the loop: the executor is synchronous."""
        return await run_in_threadpool(self._wiring().dynamo.run, request)

    async def handle(self, request: Request, call_next: Next) -> Response:
        """One write with a key."""
        key = request.headers["idempotency-key"]
        if rows.KEY.fullmatch(key) is None:
            message = "Idempotency-Key: 8 to 128 of A-Z, a-z, 0-9, _ and -"
            return problem(request, 400, "INVALID_FIELD", message, {})
        now, body = now_ms(), await request.body()
        target = f"{request.url.path}?{request.url.query}"
        ident = rows.operation_id(_caller(request), key)
        mine = Operation(ident, rows.fingerprint(request.method, target, body), now, now)
        claimed = await self._claim(mine)
        if claimed is None:
            return problem(
                request,
                409,
                "IDEMPOTENCY_IN_PROGRESS",
                "the first request with this key is still running; repeat it later",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        if claimed.fingerprint != mine.fingerprint:
            message = "this Idempotency-Key was used for another request"
            return problem(request, 422, "IDEMPOTENCY_KEY_REUSED", message, {})
        if claimed.status is not None:
            return self._replay(claimed)
        return await self._first(request, call_next, claimed)

    async def _claim(self, mine: Operation) -> Operation | None:
        """The write to run (no status), the one to replay, or None when it is still running elsewhere."""
        deadline_s = time.monotonic() + WAIT_MAX_S
        if await self.run(rows.claim(self.table, mine)):
            return mine
        while True:
            known = await self.run(rows.find(self.table, mine.operation_id))
            if known is None:
                if await self.run(rows.claim(self.table, mine)):
                    return mine
            elif rows.has_lapsed(known, mine.claimed_at_ms):
                is_over = mine.claimed_at_ms - known.started_at_ms >= rows.KEPT_MS
                if not is_over and known.fingerprint != mine.fingerprint:
                    return known
                anew = mine if is_over else replace(mine, started_at_ms=known.started_at_ms)
                if (taken := await self.run(rows.take_over(self.table, known, anew))) is not None:
                    return taken
            elif known.status is not None or known.fingerprint != mine.fingerprint:
                return known
            if time.monotonic() > deadline_s:
                return None
            await asyncio.sleep(WAIT_STEP_S)

    async def _first(self, request: Request, call_next: Next, claimed: Operation) -> Response:
        request.state.operation_id = rows.work_id(claimed)
        try:
            response = await call_next(request)
            body = b"".join([part async for part in response.body_iterator])  # type: ignore[attr-defined]
        except BaseException:
            await self.run(rows.release(self.table, claimed))
            raise
        if rows.is_kept(response.status_code) and len(body) <= rows.BODY_MAX_BYTES:
            sealed = self._wiring().box.seal(body.decode(), f"idem#{claimed.operation_id}")
            kind = response.headers.get("content-type", "")
            await self.run(rows.finish(self.table, claimed, response.status_code, kind, sealed))
        else:
            await self.run(rows.release(self.table, claimed))
        return Response(body, response.status_code, dict(response.headers))

    def _replay(self, known: Operation) -> Response:
        body = self._wiring().box.open(known.body_sealed, f"idem#{known.operation_id}")
        headers = {"content-type": known.content_type, "Idempotency-Replayed": "true"}
        return Response(body, known.status or 200, headers)


def _caller(request: Request) -> str:
    """Whose key it is: two callers may use the same one."""
    shown = [f"{name}:{given}" for name in _CREDENTIALS if (given := request.headers.get(name))]
    return "\n".join(shown) or f"address:{source_address(request)}"


def install_idempotency(
    app: FastAPI, wiring: Callable[[], Keeps], names_payment: Callable[[Request], bool] = lambda _: False
) -> None:
    """Give every write of an app its first response again. Install it before the request ids, which go around it.

    Where the key names a payment, the sale keeps what it stands for itself.
    """
    writes = _Writes(wiring)

    @app.middleware("http")
    async def once(request: Request, call_next: Next) -> Response:
        if request.method not in WRITES or "idempotency-key" not in request.headers or names_payment(request):
            return await call_next(request)
        try:
            return await writes.handle(request, call_next)
        except StoreUnavailable:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            message = "temporarily unavailable; repeat the same request"
            return problem(request, 503, "TEMPORARILY_UNAVAILABLE", message, headers)
