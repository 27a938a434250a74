"""The Lambda Runtime API, as the real Python bootstrap asks it: next invocation, its response, its error.

One endpoint per function and workers as they are needed, each with one invocation at a time, as in the cloud: a network
has a dozen functions, and most are asked by nobody or by their schedule alone.
Source: AWS Lambda developer guide, "Using the Lambda runtime API".
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from local.http_server import HttpAnswer, HttpRequest, serve_http
from local.paths import ROOT
from local.supervisor import Supervisor

_API: Final = "/2018-06-01/runtime/"
INVOKE_TIMEOUT_S: Final = 30.0


class FunctionFailed(Exception):
    """A function raised, or did not answer in time."""


class FunctionTimedOut(FunctionFailed):
    """Nobody knows whether the function is still at it, or whether it ever began."""


@dataclass(frozen=True, slots=True)
class Code:
    """What a function runs from: an interpreter that has the bootstrap, and the folder of the code."""

    python: Path = Path(sys.executable)
    folder: Path = ROOT


@dataclass
class _Invocation:
    request_id: str
    event: bytes
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LocalFunction:
    """One function: its queue of invocations and the workers that take them, `workers` of them at most."""

    def __init__(
        self,
        name: str,
        handler: str,
        workers: int,
        timeout_s: float = INVOKE_TIMEOUT_S,
        code: Code | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self.name = name
        self._handler = handler
        self._workers_max = workers
        self._workers = 0
        self._start_worker: Callable[[int], Awaitable[object]]
        self._code = code or Code()
        self._queue: asyncio.Queue[_Invocation] = asyncio.Queue()
        self._open: dict[str, _Invocation] = {}
        self._server: asyncio.Server | None = None

    async def start(self, supervisor: Supervisor, env: Mapping[str, str]) -> None:
        """Serve the Runtime API on a port of its own; workers start when something is asked."""
        self._server = await serve_http("127.0.0.1", 0, self._serve)
        port = self._server.sockets[0].getsockname()[1]
        command = [str(self._code.python), "-m", "awslambdaric", self._handler]
        settings = {
            **env,
            "PYTHONPATH": str(self._code.folder),
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "_HANDLER": self._handler,
        }
        self._start_worker = lambda number: supervisor.start(
            f"lambda-{self.name}-{number}", command, settings, cwd=self._code.folder
        )

    async def have_workers(self, wanted: int) -> None:
        """Start workers until there are so many, or as many as there may be."""
        while self._workers < min(wanted, self._workers_max):
            self._workers += 1
            await self._start_worker(self._workers)

    def stop(self) -> None:
        """Stop serving; workers are ended by their supervisor, and no others start."""
        self._workers_max = 0
        if self._server is not None:
            self._server.close()

    async def invoke(self, event: Mapping[str, Any]) -> Any:
        """Run the function on an event and answer what it returned. Raises FunctionFailed and FunctionTimedOut."""
        invocation = _Invocation(secrets.token_hex(16), json.dumps(event).encode())
        self._open[invocation.request_id] = invocation
        await self._queue.put(invocation)
        try:
            await self.have_workers(len(self._open))
            return await asyncio.wait_for(invocation.answer, self._timeout_s)
        except TimeoutError:
            raise FunctionTimedOut(f"{self.name} did not answer within {self._timeout_s:.0f} s") from None
        finally:
            self._open.pop(invocation.request_id, None)

    async def _serve(self, request: HttpRequest) -> HttpAnswer:
        path = request.target.removeprefix(_API)
        if path == "invocation/next":
            return await self._next()
        request_id, _, kind = path.removeprefix("invocation/").partition("/")
        invocation = self._open.get(request_id)
        if invocation is not None and not invocation.answer.done():
            if kind == "response":
                invocation.answer.set_result(json.loads(request.body or b"null"))
            else:
                invocation.answer.set_exception(
                    FunctionFailed(request.body.decode("utf-8", "replace")[:2000])
                )
        return HttpAnswer(202, body=b"{}")

    async def _next(self) -> HttpAnswer:
        invocation = await self._queue.get()
        return HttpAnswer(
            200,
            (
                ("Lambda-Runtime-Aws-Request-Id", invocation.request_id),
                ("Lambda-Runtime-Deadline-Ms", str(int((time.time() + self._timeout_s) * 1000))),
                (
                    "Lambda-Runtime-Invoked-Function-Arn",
                    f"arn:aws:lambda:local:000000000000:function:{self.name}",
                ),
                ("Content-Type", "application/json"),
            ),
            invocation.event,
        )
