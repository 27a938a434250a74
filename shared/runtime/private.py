"""The private listener of a node: `/health`, `/ready` and `/metrics`, and nothing that would need more than a GET.

`/health` is for whoever takes a machine away: this process works. What it lacks from others is told by `/ready`: a store
that is away must not end the nodes that go on without it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

REQUEST_MAX_BYTES: Final = 4096
REQUEST_TIMEOUT_S: Final = 5.0


async def serve_private(host: str, port: int, fault: Callable[[], str | None]) -> asyncio.Server:
    """Listen on a private address. `fault` answers None when all is well, else what is not."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT_S)
            status, kind, body = _page(line.split(b" ", 2)[1].decode("latin-1"), fault())
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, OSError):
            pass  # whoever asks badly on a private port gets no answer
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port, limit=REQUEST_MAX_BYTES)


def _page(path: str, fault: str | None) -> tuple[str, str, bytes]:
    if path == "/metrics":
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest()
    if path == "/ready" and fault:
        return "503 Service Unavailable", "text/plain", fault.encode()
    if path in {"/health", "/ready"}:
        return "200 OK", "text/plain", b"ok"
    return "404 Not Found", "text/plain", b""
