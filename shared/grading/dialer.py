"""One probe: CONNECT through the exit, TLS handshake in the tunnel, a real body, its hash and speed, an unencrypted page.

Used by the prober and by whoever checks the network as a customer. The tunnel is opened by the caller's request bytes, so a
relay's mesh listener and a modem's own port are the same to it. Leaves out scheduling and verdicts on exits.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from shared.grading.asking import question
from shared.grading.model import PROOF_HEADER, Failure, ProbePlan, ProbeResult, Target
from shared.grading.proof import Sight, check, mark_of
from shared.grading.rules import compare_body, plain_page, throughput_kbps
from shared.wire.http1 import HeadError, ResponseHead, take_response_head

READ_BYTES: Final = 64 * 1024
HEAD_MAX_BYTES: Final = 16 * 1024
PAGE_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds of the phases, in seconds."""

    connect_s: float = 12.0
    tls_s: float = 8.0
    overall_s: float = 30.0


PATIENT: Final = Timeouts()
URGENT: Final = Timeouts(connect_s=3.0, tls_s=3.0, overall_s=6.0)
"""After a customer's tunnel failed: an exit that needs longer is broken for customers, whatever it is."""
URGENT_LONG: Final = replace(URGENT, overall_s=PATIENT.overall_s)
"""The same with a body that takes a slow line its time."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How an exit is reached: where to connect, what to say to be put through, and what to call its absence."""

    host: str
    port: int
    request: Callable[[str, int], bytes]
    unreachable: Failure


@dataclass(frozen=True, slots=True)
class Trust:
    """What answers are held against: certificates, and the targets' public keys (PEM); and the key that lets us ask."""

    tls: ssl.SSLContext
    keys: str
    asking_keys: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe saw. `exit_ip` is the address that the target saw, or empty; `body_bytes` what came through."""

    result: ProbeResult
    exit_ip: str
    body_bytes: int = 0


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


async def probe(
    exit_: Exit | None,
    target: Target,
    plan: ProbePlan,
    nonce: str,
    trust: Trust,
    at_ms: int,
    timeouts: Timeouts = PATIENT,
) -> Seen:
    """Probe through an exit, or straight to the target without one. Never raises for anything that an exit can do."""
    partial = _Probe(ProbeResult(at_ms, vantage=target.place), exit_, target, nonce, trust, timeouts)
    try:
        async with asyncio.timeout(timeouts.overall_s):
            await partial.run(plan)
    except _Failed as failed:
        partial.result = replace(partial.result, failure=failed.failure)
    except TimeoutError:
        partial.result = replace(partial.result, failure=Failure.OVERALL_TIMEOUT)
    finally:
        partial.close()
    result = replace(partial.result, exit_mark=mark_of(partial.exit_ip))
    return Seen(result, partial.exit_ip, partial.body_bytes)


class _Probe:
    def __init__(
        self,
        result: ProbeResult,
        exit_: Exit | None,
        target: Target,
        nonce: str,
        trust: Trust,
        timeouts: Timeouts,
    ) -> None:
        self.result = result
        self.exit_ip = ""
        self.body_bytes = 0
        self._exit = exit_
        self._target = target
        self._nonce = nonce
        self._trust = trust
        self._timeouts = timeouts
        self._writers: list[asyncio.StreamWriter] = []

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def run(self, plan: ProbePlan) -> None:
        began = time.monotonic()
        reader, writer = await self._connect(self._target.port)
        self.result = replace(self.result, connect_ms=_since(began))
        await self._handshake(writer)
        await self._fetch(reader, writer, plan.size_bytes)
        if plan.plain:
            await self._fetch_plain()

    async def _connect(self, target_port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        exit_, address = self._exit, self._target.address
        host, port = (exit_.host, exit_.port) if exit_ else (address, target_port)
        unreachable = exit_.unreachable if exit_ else Failure.TARGET_DOWN
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                reader, writer = await asyncio.open_connection(host, port)
                self._writers.append(writer)
                if exit_ is None:
                    return reader, writer
                writer.write(exit_.request(address, target_port))
                head = await _head(reader)
        except TimeoutError:
            raise _Failed(Failure.CONNECT_TIMEOUT) from None
        except (OSError, HeadError, EOFError, asyncio.LimitOverrunError):
            raise _Failed(unreachable) from None
        if head.status // 100 != 2:
            raise _Failed(_REFUSALS.get((head.status, unreachable), Failure.CONNECT_REFUSED))
        return reader, writer

    async def _handshake(self, writer: asyncio.StreamWriter) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeouts.tls_s):
                await writer.start_tls(self._trust.tls, server_hostname=self._target.name)
        except TimeoutError:
            raise _Failed(Failure.TLS_TIMEOUT) from None
        except ssl.SSLCertVerificationError:
            raise _Failed(Failure.TLS_UNTRUSTED) from None
        except OSError:  # ssl.SSLError is one
            raise _Failed(Failure.TLS_DROPPED) from None
        self.result = replace(self.result, tls_handshake_ms=_since(began))

    async def _fetch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
        began = time.monotonic()
        self._ask(writer, question(self._trust.asking_keys, self._nonce, size, int(time.time())))
        try:
            head = await _head(reader)
            self.result = replace(self.result, ttfb_ms=_since(began))
            first = time.monotonic()
            body = await self._body(reader, size)
        except (HeadError, ssl.SSLError, asyncio.LimitOverrunError):
            # not HTTP, or records whose integrity check fails: somebody altered them
            raise _Failed(Failure.BODY_MISMATCH) from None
        except (OSError, EOFError):
            raise _Failed(Failure.BODY_SHORT) from None
        if head.status != 200:
            raise _Failed(Failure.HTTP_STATUS)
        wrong = compare_body(body, self._nonce, size)
        if wrong is not None:
            raise _Failed(wrong)
        self.result = replace(self.result, throughput_kbps=throughput_kbps(len(body), _since(first)))
        self.exit_ip = self._sight(head, body, Failure.BODY_UNSIGNED).exit_ip
        if not self.exit_ip:
            raise _Failed(Failure.NO_EXIT_IP)

    async def _fetch_plain(self) -> None:
        """The page that injectors look for. What it carries is signed like the body, so altering it shows."""
        try:
            reader, writer = await self._connect(self._target.plain_port)
            self._ask(writer, f"/page?nonce={self._nonce}")
            head = await _head(reader)
            expected = plain_page(self._nonce)
            body = await self._body(reader, PAGE_MAX_BYTES)
        except (_Failed, OSError, EOFError):
            raise _Failed(Failure.PLAIN_FAILED) from None
        except (HeadError, asyncio.LimitOverrunError):
            raise _Failed(Failure.PLAIN_ALTERED) from None
        if head.status != 200 or body != expected:
            raise _Failed(Failure.PLAIN_ALTERED)
        self._sight(head, body, Failure.PLAIN_ALTERED)
        self.result = replace(self.result, plain=True)

    def _sight(self, head: ResponseHead, body: bytes, unsigned: Failure) -> Sight:
        sight = check(head.header(PROOF_HEADER.lower()) or "", self._trust.keys, self._nonce, body)
        if sight is None:
            raise _Failed(unsigned)
        return sight

    def _ask(self, writer: asyncio.StreamWriter, path: str) -> None:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {self._target.name}\r\nConnection: close\r\n\r\n".encode()
        )

    async def _body(self, reader: asyncio.StreamReader, size: int) -> bytes:
        parts: list[bytes] = []
        got = 0
        while got < size:
            part = await reader.read(min(READ_BYTES, size - got))
            if not part:
                break
            parts.append(part)
            got += len(part)
            self.body_bytes += len(part)
        return b"".join(parts)


_REFUSALS: Final = {
    (404, Failure.RELAY_UNREACHABLE): Failure.PEER_OFFLINE,
    (503, Failure.RELAY_UNREACHABLE): Failure.RELAY_DRAINING,
    (403, Failure.RELAY_UNREACHABLE): Failure.RELAY_UNREACHABLE,
    (407, Failure.MODEM_UNREACHABLE): Failure.MODEM_CREDENTIALS,
}
"""What refusals of a CONNECT mean, by their status and what refused; every other one is the exit's."""


async def _head(reader: asyncio.StreamReader) -> ResponseHead:
    raw = await reader.readuntil(b"\r\n\r\n")
    head = take_response_head(bytearray(raw), HEAD_MAX_BYTES)
    if head is None:
        raise EOFError
    return head


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
