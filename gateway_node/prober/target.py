"""`python -m gateway_node.prober.target`: a probe target. One runs in each of several places; probers hold public keys.

Over TLS `/probe?nonce=&size=&at=&mac=` answers a body that only the nonce decides, to whoever holds the key; without TLS
`/page?nonce=` a page of 250 bytes, to anybody. Both are signed, with the address that asked. Nobody's data is here, and
nothing but these two is answered. TLS ends here, or at a balancer in front that keeps the address of who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import uvloop
from pydantic import Field, SecretStr

from shared.grading.asking import KEY_MIN_CHARS, is_ours
from shared.grading.model import PROOF_HEADER
from shared.grading.proof import Sight, prove
from shared.grading.rules import MEASURING_BYTES, plain_page, probe_body
from shared.runtime.clock import now_ms
from shared.runtime.duties import told_to_stop
from shared.runtime.log import configure
from shared.runtime.settings import Settings, listen_address, load_or_exit
from shared.wire.http1 import HeadError, RequestHead, build_head, take_request_head

REQUEST_MAX_BYTES: Final = 4 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 60.0
BODY_MAX_BYTES: Final = MEASURING_BYTES
ADDRESS_BYTES_PER_MINUTE: Final = 64 * 1024 * 1024
"""What one address draws at most: thousands of devices behind a carrier's NAT are probed with less."""
ADDRESSES_MAX: Final = 100_000
MINUTE_S: Final = 60
NONCE_MAX_CHARS: Final = 64
CONNECTIONS_MAX: Final = 2_000
"""Of each listener: that say nothing yet, and that are answered. Beyond it the one that said nothing for longest goes:
strangers who hold connections keep no prober out.
"""
CHUNK_BYTES: Final = 64 * 1024

log = logging.getLogger("psx.target")


class TargetSettings(Settings):
    """Environment of a probe target (prefix PSX_). `redis_url` and the tables are not used."""

    target_place: str
    target_listen: str
    target_plain_listen: str
    target_cert: Path | None = None
    """Certificate and key, unless a balancer in front ends TLS."""
    target_signing_key: SecretStr
    probe_asking_key: SecretStr = Field(min_length=KEY_MIN_CHARS)
    """Whose questions are answered with bodies: one key, or several with commas while they are rotated."""
    redis_url: str = "redis://unused"
    table_prefix: str = ""


class TargetService:
    """Answers probes; `now_s` is the clock of signatures."""

    def __init__(self, place: str, signing_key: str, asking_keys: str, now_s: Callable[[], int]) -> None:
        self._place = place
        self._key = signing_key
        self._asking_keys = asking_keys
        self._now_s = now_s
        self._silent: dict[bool, dict[asyncio.StreamWriter, None]] = {True: {}, False: {}}
        self._answering = {True: 0, False: 0}
        self._minute = 0
        self._drawn: dict[str, int] = {}

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, balanced: bool = False
    ) -> None:
        """One connection, one answer. Closes it, whatever comes. `balanced`: a balancer in front ended its TLS."""
        encrypted = balanced or writer.get_extra_info("ssl_object") is not None
        try:
            head = await self._asked(reader, writer, encrypted=encrypted)
            if head is not None and self._answering[encrypted] < CONNECTIONS_MAX:
                self._answering[encrypted] += 1
                try:
                    await self._answer(head, writer, encrypted=encrypted)
                finally:
                    self._answering[encrypted] -= 1
        except (OSError, EOFError, TimeoutError, HeadError, ValueError, asyncio.LimitOverrunError):
            pass  # a prober that left, or somebody who is none
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), REQUEST_TIMEOUT_S)

    async def _asked(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, encrypted: bool
    ) -> RequestHead | None:
        """The question of a connection; None when it is none."""
        silent = self._silent[encrypted]
        if len(silent) >= CONNECTIONS_MAX:
            oldest = next(iter(silent))
            del silent[oldest]
            oldest.transport.abort()
        silent[writer] = None
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                raw = await reader.readuntil(b"\r\n\r\n")
        finally:
            silent.pop(writer, None)
        if len(raw) > REQUEST_MAX_BYTES:
            return None
        head = take_request_head(bytearray(raw))
        return head if head is not None and head.method == "GET" else None

    async def _answer(self, head: RequestHead, writer: asyncio.StreamWriter, *, encrypted: bool) -> None:
        nonce, body = self._body(head.target, encrypted=encrypted)
        if body is None:
            writer.write(build_head("HTTP/1.1 404 Not Found", [("Connection", "close")]))
            return
        address = str(writer.get_extra_info("peername")[0])
        if not self._may_draw(address, len(body)):
            writer.write(build_head("HTTP/1.1 429 Too Many Requests", [("Connection", "close")]))
            return
        sight = Sight(address, self._place)
        proof = prove(self._key, nonce, sight, body, self._now_s())
        kind = "application/octet-stream" if encrypted else "text/html"
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), (PROOF_HEADER, proof)]
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            writer.write(build_head("HTTP/1.1 200 OK", [*headers, ("Connection", "close")]))
            for start in range(0, len(body), CHUNK_BYTES):
                writer.write(body[start : start + CHUNK_BYTES])
                await writer.drain()

    def _body(self, target: str, *, encrypted: bool) -> tuple[str, bytes | None]:
        url = urlsplit(target)
        fields = dict(parse_qsl(url.query))
        nonce = fields.get("nonce", "")
        if not 0 < len(nonce) <= NONCE_MAX_CHARS:
            return nonce, None
        if encrypted and url.path == "/probe" and is_ours(self._asking_keys, fields, self._now_s()):
            return nonce, probe_body(nonce, min(max(int(fields["size"]), 0), BODY_MAX_BYTES))
        return nonce, plain_page(nonce) if not encrypted and url.path == "/page" else None

    def _may_draw(self, address: str, size: int) -> bool:
        """Count what an address draws in this minute: a page is for anybody who asks."""
        minute = self._now_s() // MINUTE_S
        if minute != self._minute or len(self._drawn) >= ADDRESSES_MAX:
            self._minute = minute
            self._drawn.clear()
        drawn = self._drawn[address] = self._drawn.get(address, 0) + size
        return drawn <= ADDRESS_BYTES_PER_MINUTE


async def serve(settings: TargetSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = told_to_stop()
    tls = _tls(settings.target_cert)
    key = settings.target_signing_key.get_secret_value()
    asking = settings.probe_asking_key.get_secret_value()
    service = TargetService(settings.target_place, key, asking, lambda: now_ms() // 1000)
    host, port = listen_address(settings.target_listen)
    plain_host, plain_port = listen_address(settings.target_plain_listen)
    probes = partial(service.serve, balanced=tls is None)
    servers = [
        await asyncio.start_server(probes, host, port, ssl=tls, limit=REQUEST_MAX_BYTES),
        await asyncio.start_server(service.serve, plain_host, plain_port, limit=REQUEST_MAX_BYTES),
    ]
    log.info("target ready", extra={"place": settings.target_place})
    await stopping.wait()
    for server in servers:
        server.close()


def _tls(cert: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert)
    return context


if __name__ == "__main__":
    configure("probe-target")
    uvloop.run(serve(load_or_exit(TargetSettings)))
