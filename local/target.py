"""`python -m local.target`: the target site of the lab, over TLS, counting raw TCP bytes below TLS by connection.

Pages: `/ip`, `/bytes/<n>`, `/slow/<n>` (64 KiB every 50 ms). A private port answers
`/connections`, and `/requests` of the second site (`local.site`), which runs in this process too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import uvloop

from local.http_server import HttpAnswer, HttpRequest, serve_http
from local.site import Site
from shared.wire.http1 import HeadError, RequestHead, take_request_head

BODY_MAX_BYTES: Final = 64 * 1024 * 1024
KEPT_CONNECTIONS: Final = 10_000
CHUNK_BYTES: Final = 64 * 1024
SLOW_CHUNK_S: Final = 0.05
LINGER_S: Final = 2.0


@dataclass(slots=True)
class Seen:
    """One connection as the target saw it: raw bytes each way, and what was asked."""

    address: str
    path: str = ""
    received_bytes: int = 0
    sent_bytes: int = 0
    open: bool = True


class TlsSide(asyncio.Protocol):
    """TLS by hand over a memory BIO, so that bytes are counted as the network carries them."""

    def __init__(self, context: ssl.SSLContext, kept: deque[Seen]) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._kept = kept
        self._seen = Seen("")
        self._transport: asyncio.Transport | None = None
        self._shaken = False
        self._plain = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        self._seen.address = str(transport.get_extra_info("peername")[0])
        self._kept.append(self._seen)

    def data_received(self, data: bytes) -> None:
        self._seen.received_bytes += len(data)
        self._in.write(data)
        try:
            self._advance()
        except ssl.SSLZeroReturnError:
            pass  # the client said goodbye
        except ssl.SSLError:
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._seen.open = False
        self._room.set()
        if self._task is not None:
            self._task.cancel()

    def _advance(self) -> None:
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while part := self._tls.read(CHUNK_BYTES):
                self._plain += part
        except ssl.SSLWantReadError:
            pass
        self._flush()
        if self._task is None and self._plain:
            try:
                head = take_request_head(self._plain)
            except HeadError:
                head = None
            if head is not None:
                self._seen.path = head.target
                self._task = asyncio.get_running_loop().create_task(self._answer(head))

    async def _answer(self, head: RequestHead) -> None:
        url = urlsplit(head.target)
        body, pause_s = self._body(url.path)
        status = "200 OK" if body is not None else "404 Not Found"
        body = body or b""
        seen = json.dumps({"ip": self._seen.address})
        lines = [
            f"HTTP/1.1 {status}",
            "Content-Type: application/octet-stream",
            f"Content-Length: {len(body)}",
            f"X-PSX-Seen: {seen}",
            "Connection: close",
        ]
        await self._send(("\r\n".join(lines) + "\r\n\r\n").encode())
        for start in range(0, len(body), CHUNK_BYTES):
            await self._send(body[start : start + CHUNK_BYTES])
            if pause_s:
                await asyncio.sleep(pause_s)
        with contextlib.suppress(
            ssl.SSLError
        ):  # the close_notify is written; the client's own may come or not
            self._tls.unwrap()
        self._flush()
        if self._transport is not None and not self._transport.is_closing():
            # Linger: the client's last bytes are still under way, and they are counted here as they are at the gateway.
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _body(self, path: str) -> tuple[bytes | None, float]:
        name, _, argument = path.strip("/").partition("/")
        if name == "ip":
            return json.dumps({"ip": self._seen.address}).encode(), 0
        if name in {"bytes", "slow"} and argument.isdecimal() and int(argument) <= BODY_MAX_BYTES:
            return b"x" * int(argument), SLOW_CHUNK_S if name == "slow" else 0
        return (b"psx lab\n", 0) if not name else (None, 0)

    async def _send(self, data: bytes) -> None:
        await self._room.wait()
        self._tls.write(data)
        self._flush()

    def _flush(self) -> None:
        raw = self._out.read()
        if raw and self._transport is not None and not self._transport.is_closing():
            self._seen.sent_bytes += len(raw)
            self._transport.write(raw)


async def main(environ: dict[str, str]) -> None:
    """Serve until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(environ["TARGET_CERT"])
    kept: deque[Seen] = deque(maxlen=KEPT_CONNECTIONS)

    site = Site(Path(environ["TARGET_FILES"]))

    async def control(request: HttpRequest) -> HttpAnswer:
        told = list(site.seen) if request.target == "/requests" else [asdict(seen) for seen in kept]
        return HttpAnswer(200, (("Content-Type", "application/json"),), json.dumps(told).encode())

    make: Callable[[], TlsSide] = lambda: TlsSide(context, kept)  # noqa: E731 - typed for create_server
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, environ["TARGET_HOST"], int(environ["TARGET_PORT"]))
    await serve_http("127.0.0.1", int(environ["TARGET_CONTROL_PORT"]), control)
    ports = int(environ["TARGET_PLAIN_PORT"]), int(environ["TARGET_TLS_PORT"])
    await site.start(environ["TARGET_HOST"], *ports, context)
    sys.stderr.write("target ready\n")
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(dict(os.environ)))
