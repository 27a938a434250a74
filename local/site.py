"""The second site of the lab: what ordinary servers do, in the clear and over TLS, for the clients of the gateway.

It keeps connections, answers HEAD, `Expect: 100-continue`, conditional and chunked requests, and remembers every request as
it came in. Pages: `/echo` (JSON of what was seen, any method), `/chunked/<n>`, `/cached` (ETag, 304), `/ws` (WebSocket
echo), `/files/...` (the run's folder `www`). Counting bytes is `local.target`'s business.
"""

from __future__ import annotations

import json
import ssl
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from aiohttp import WSMsgType, web

KEPT_REQUESTS: Final = 1000
CHUNK_BYTES: Final = 1024
ETAG: Final = '"psx-lab"'
BODY_MAX_BYTES: Final = 8 * 1024 * 1024

Seen = dict[str, Any]


class Site:
    """Pages, and the requests that came in, oldest first."""

    def __init__(self, files: Path) -> None:
        self.seen: deque[Seen] = deque(maxlen=KEPT_REQUESTS)
        self._files = files

    async def start(self, host: str, plain_port: int, tls_port: int, context: ssl.SSLContext) -> None:
        """Listen on both ports until the process ends."""
        app = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[self._remember])
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_get("/chunked/{count}", _chunked)
        app.router.add_get("/cached", _cached)
        app.router.add_get("/ws", _websocket)
        app.router.add_static("/files", self._files)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, host, plain_port).start()
        await web.TCPSite(runner, host, tls_port, ssl_context=context).start()

    @web.middleware
    async def _remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append(_described(request))
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _echo(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode("latin-1")
        return web.Response(
            text=json.dumps({**_described(request), "body": body}), content_type="application/json"
        )


def _described(request: web.Request) -> Seen:
    transport = request.transport
    address, port = transport.get_extra_info("peername")[:2] if transport is not None else ("", 0)
    return {
        "address": address,
        "port": port,
        "tls": request.secure,
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name.lower(), value] for name, value in request.headers.items()],
    }


async def _chunked(request: web.Request) -> web.Response:
    count = int(request.match_info["count"])

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"c" * CHUNK_BYTES

    return web.Response(body=parts())


async def _cached(request: web.Request) -> web.Response:
    if request.headers.get("If-None-Match") == ETAG:
        return web.Response(status=304, headers={"ETag": ETAG})
    return web.Response(text="fresh\n", headers={"ETag": ETAG})


async def _websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket
