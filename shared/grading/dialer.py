"""One probe: CONNECT through the exit, TLS handshake in the tunnel, a real body, its hash and its speed.

Used by the prober and by whoever checks the network as a customer. The tunnel is opened by the caller's request bytes, so a
relay's mesh listener and a modem's own port are the same to it. Leaves out scheduling and verdicts on exits.
"""

import asyncio
import contextlib
import json
import ssl
import time
from dataclasses import dataclass, replace
from typing import Final

from shared.grading.model import Failure, ProbeResult
from shared.grading.rules import compare_body, throughput_kbps
from shared.wire.http1 import HeadError, ResponseHead, take_response_head

CONNECT_TIMEOUT_S: Final = 12.0
TLS_TIMEOUT_S: Final = 8.0
OVERALL_TIMEOUT_S: Final = 30.0
READ_BYTES: Final = 64 * 1024
HEAD_MAX_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """A probe target: its TLS name, its literal address and port, and how much body to ask for."""

    name: str
    address: str
    port: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe saw; `exit_ip` is the address that the target saw, or empty."""

    result: ProbeResult
    exit_ip: str


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


async def probe(
    host: str,
    port: int,
    request: bytes,
    target: Target,
    nonce: str,
    tls: ssl.SSLContext,
    at_ms: int,
    unreachable: Failure,
) -> Seen:
    """Probe through the exit behind (host, port). Never raises for anything an exit can do."""
    partial = _Probe(ProbeResult(at_ms))
    try:
        async with asyncio.timeout(OVERALL_TIMEOUT_S):
            await partial.run(host, port, request, target, nonce, tls, unreachable)
    except _Failed as failed:
        partial.result = replace(partial.result, failure=failed.failure)
    except TimeoutError:
        partial.result = replace(partial.result, failure=Failure.OVERALL_TIMEOUT)
    finally:
        partial.close()
    return Seen(partial.result, partial.exit_ip)


class _Probe:
    def __init__(self, result: ProbeResult) -> None:
        self.result = result
        self.exit_ip = ""
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def run(
        self,
        host: str,
        port: int,
        request: bytes,
        target: Target,
        nonce: str,
        tls: ssl.SSLContext,
        unreachable: Failure,
    ) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, self._writer = await asyncio.open_connection(host, port)
                self._writer.write(request)
                head = await _head(reader)
        except TimeoutError:
            raise _Failed(Failure.CONNECT_TIMEOUT) from None
        except (OSError, HeadError, EOFError):
            raise _Failed(unreachable) from None
        if head.status // 100 != 2:
            raise _Failed(Failure.PEER_OFFLINE if head.status == 404 else Failure.CONNECT_REFUSED)
        self.result = replace(self.result, connect_ms=_since(began))
        await self._handshake(target, tls)
        await self._fetch(reader, target, nonce)

    async def _handshake(self, target: Target, tls: ssl.SSLContext) -> None:
        assert self._writer is not None  # noqa: S101 - connected before
        began = time.monotonic()
        try:
            async with asyncio.timeout(TLS_TIMEOUT_S):
                await self._writer.start_tls(tls, server_hostname=target.name)
        except TimeoutError:
            raise _Failed(Failure.TLS_TIMEOUT) from None
        except ssl.SSLCertVerificationError:
            raise _Failed(Failure.TLS_UNTRUSTED) from None
        except OSError:  # ssl.SSLError is one
            raise _Failed(Failure.TLS_DROPPED) from None
        self.result = replace(self.result, tls_handshake_ms=_since(began))

    async def _fetch(self, reader: asyncio.StreamReader, target: Target, nonce: str) -> None:
        assert self._writer is not None  # noqa: S101 - connected before
        began = time.monotonic()
        path = f"/probe?nonce={nonce}&size={target.size_bytes}"
        self._writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {target.name}\r\nConnection: close\r\n\r\n".encode()
        )
        try:
            head = await _head(reader)
            self.result = replace(self.result, ttfb_ms=_since(began))
            first = time.monotonic()
            body = await _body(reader, target.size_bytes)
        except (
            HeadError,
            ssl.SSLError,
        ):  # not HTTP, or records whose integrity check fails: somebody altered them
            raise _Failed(Failure.BODY_MISMATCH) from None
        except (OSError, EOFError):
            raise _Failed(Failure.BODY_SHORT) from None
        if head.status != 200:
            raise _Failed(Failure.HTTP_STATUS)
        wrong = compare_body(body, nonce, target.size_bytes)
        if wrong is not None:
            raise _Failed(wrong)
        self.result = replace(self.result, throughput_kbps=throughput_kbps(len(body), _since(first)))
        self.exit_ip = _exit_ip(head)
        if not self.exit_ip:
            raise _Failed(Failure.NO_EXIT_IP)


async def _head(reader: asyncio.StreamReader) -> ResponseHead:
    raw = await reader.readuntil(b"\r\n\r\n")
    head = take_response_head(bytearray(raw), HEAD_MAX_BYTES)
    if head is None:
        raise EOFError
    return head


async def _body(reader: asyncio.StreamReader, size: int) -> bytes:
    parts: list[bytes] = []
    got = 0
    while got < size:
        part = await reader.read(min(READ_BYTES, size - got))
        if not part:
            break
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def _exit_ip(head: ResponseHead) -> str:
    with contextlib.suppress(ValueError):
        seen = json.loads(head.header("x-psx-seen") or "{}")
        return str(seen.get("ip", ""))
    return ""


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
