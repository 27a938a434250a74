"""Probes on real sockets: every way in which an exit fails has its own name."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway_node.prober import target as target_service
from gateway_node.prober.target import TargetService
from local import lab
from shared.grading.dialer import PATIENT, Exit, Seen, Timeouts, Trust, probe
from shared.grading.model import PROOF_HEADER, Failure, ProbePlan, Target
from shared.grading.proof import Sight, prove
from shared.grading.rules import plain_page, probe_body
from shared.wire.http1 import connect_head
from tests.support.lab import pem_keys

pytestmark = pytest.mark.slow
SIZE = 100_000
PRIVATE, PUBLIC = pem_keys()
ASKING = "probers and targets know it"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer = Callable[[str], tuple[bytes, str]]


def proof(nonce: str, body: bytes, ip: str = "127.10.1.1", key: str = PRIVATE) -> str:
    return prove(key, nonce, Sight(ip, "eu"), body, int(time.time()))


def good(nonce: str) -> tuple[bytes, str]:
    body = probe_body(nonce, SIZE)
    return body, proof(nonce, body)


def altered(nonce: str) -> tuple[bytes, str]:
    return b"x" * SIZE, proof(nonce, probe_body(nonce, SIZE))


def short(nonce: str) -> tuple[bytes, str]:
    body = probe_body(nonce, SIZE)
    return body[:-1], proof(nonce, body)


def nowhere(nonce: str) -> tuple[bytes, str]:
    body = probe_body(nonce, SIZE)
    return body, proof(nonce, body, ip="")


def forged(nonce: str) -> tuple[bytes, str]:
    """A body that anybody can make from the nonce, signed by a key that is not ours."""
    body = probe_body(nonce, SIZE)
    return body, proof(nonce, body, key=pem_keys()[0])


def replayed(nonce: str) -> tuple[bytes, str]:
    body = probe_body(nonce, SIZE)
    return body, proof("another question", body)


def page(nonce: str) -> tuple[bytes, str]:
    body = plain_page(nonce)
    return body, proof(nonce, body)


def injected(nonce: str) -> tuple[bytes, str]:
    body = plain_page(nonce)
    return body.replace(b"</body>", b"<script src=//ads.example></script></body>"), proof(nonce, body)


def forged_page(nonce: str) -> tuple[bytes, str]:
    body = plain_page(nonce)
    return body, "not a proof"


@pytest.fixture
async def served() -> AsyncIterator[Callable[..., Awaitable[int]]]:
    servers: list[asyncio.Server] = []
    talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> int:
        async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            talks[task] = writer
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await handler(reader, writer)
            writer.close()

        server = await asyncio.start_server(tracked, "127.0.0.1", 0, ssl=tls)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield serve
    for server in servers:
        server.close()
    for task, writer in talks.items():
        task.cancel()
        writer.transport.abort()
    await asyncio.gather(*talks, return_exceptions=True)
    await asyncio.sleep(0)


def target_of(answer: Answer) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        nonce = line.split("nonce=")[1].split("&")[0]
        body, signed = answer(nonce)
        head = f"HTTP/1.1 200 OK\r\n{PROOF_HEADER}: {signed}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    return handle


def exit_to(port: int, *, status: str = "200 OK", drop: bool = False, hang: bool = False) -> Handler:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].rpartition(b":")[2])
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if hang:
            await reader.read()
        elif drop:
            await reader.read(1)
        elif status.startswith("200"):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port if asked == 1 else asked)
            try:
                await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
            finally:
                far_writer.transport.abort()
        writer.close()

    return handle


async def run(
    files: lab.LabFiles,
    port: int,
    *,
    trusted: bool = True,
    plain_port: int = 0,
    timeouts: Timeouts = PATIENT,
    unreachable: Failure = Failure.RELAY_UNREACHABLE,
) -> Seen:
    tls = ssl.create_default_context(cafile=str(files.ca) if trusted else None)
    target = Target("eu", lab.TARGET_NAME, "127.0.0.1", 1, plain_port)
    exit_ = Exit("127.0.0.1", port, lambda host, at: connect_head(host, at, []), unreachable)
    plan = ProbePlan(SIZE, plain=plain_port > 0)
    return await probe(exit_, target, plan, "n1", Trust(tls, PUBLIC, ASKING), 5, timeouts)


def server_tls(files: lab.LabFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.target_cert)
    return context


async def through(
    served: Any, files: lab.LabFiles, answer: Answer, timeouts: Timeouts = PATIENT, **fault: Any
) -> Seen:
    target = await served(target_of(answer), server_tls(files))
    return await run(files, await served(exit_to(target, **fault)), timeouts=timeouts)


async def test_a_good_exit_is_measured_and_its_address_seen(served: Any, lab_files: lab.LabFiles) -> None:
    seen = await through(served, lab_files, good)
    result = seen.result
    assert result.passed
    assert seen.exit_ip == "127.10.1.1"
    assert None not in (result.connect_ms, result.tls_handshake_ms, result.ttfb_ms, result.throughput_kbps)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (altered, Failure.BODY_MISMATCH),
        (short, Failure.BODY_SHORT),
        (nowhere, Failure.NO_EXIT_IP),
        (forged, Failure.BODY_UNSIGNED),
        (replayed, Failure.BODY_UNSIGNED),
    ],
)
async def test_wrong_answers_are_told_apart(
    served: Any, lab_files: lab.LabFiles, answer: Answer, failure: Failure
) -> None:
    assert (await through(served, lab_files, answer)).result.failure is failure


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ({"drop": True}, Failure.TLS_DROPPED),
        ({"status": "502 Bad Gateway"}, Failure.CONNECT_REFUSED),
        ({"status": "404 Not Found"}, Failure.PEER_OFFLINE),
        ({"status": "503 Draining"}, Failure.RELAY_DRAINING),
    ],
)
async def test_exits_that_fail_before_the_body(
    served: Any, lab_files: lab.LabFiles, fault: dict[str, Any], failure: Failure
) -> None:
    assert (await through(served, lab_files, good, **fault)).result.failure is failure


async def test_an_exit_that_is_not_there(lab_files: lab.LabFiles) -> None:
    assert (await run(lab_files, 9)).result.failure is Failure.RELAY_UNREACHABLE


async def test_a_certificate_nobody_trusts_is_altered_content(served: Any, lab_files: lab.LabFiles) -> None:
    target = await served(target_of(good), server_tls(lab_files))
    seen = await run(lab_files, await served(exit_to(target)), trusted=False)
    assert seen.result.failure is Failure.TLS_UNTRUSTED


async def test_a_modem_that_refuses_its_credentials_is_told_apart(
    served: Any, lab_files: lab.LabFiles
) -> None:
    port = await served(exit_to(0, status="407 Proxy Authentication Required"))
    seen = await run(lab_files, port, unreachable=Failure.MODEM_UNREACHABLE)
    assert seen.result.failure is Failure.MODEM_CREDENTIALS


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(page, None), (injected, Failure.PLAIN_ALTERED), (forged_page, Failure.PLAIN_ALTERED)],
)
async def test_an_unencrypted_page_shows_who_alters_content(
    served: Any, lab_files: lab.LabFiles, answer: Answer, failure: Failure | None
) -> None:
    target = await served(target_of(good), server_tls(lab_files))
    plain_port = await served(target_of(answer))
    seen = await run(lab_files, await served(exit_to(target)), plain_port=plain_port)
    assert (seen.result.failure, seen.result.plain) == (failure, failure is None)
    assert seen.exit_ip == "127.10.1.1"


async def test_a_filter_on_unencrypted_pages_is_a_failure_and_no_alteration(
    served: Any, lab_files: lab.LabFiles
) -> None:
    target = await served(target_of(good), server_tls(lab_files))
    seen = await run(lab_files, await served(exit_to(target)), plain_port=9)
    assert seen.result.failure is Failure.PLAIN_FAILED


SHORT = Timeouts(connect_s=0.2, tls_s=0.2, overall_s=5.0)


async def test_an_exit_that_hangs_in_the_handshake(served: Any, lab_files: lab.LabFiles) -> None:
    assert (await through(served, lab_files, good, SHORT, hang=True)).result.failure is Failure.TLS_TIMEOUT


async def test_a_relay_that_says_nothing(served: Any, lab_files: lab.LabFiles) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = await served(silent)
    assert (await run(lab_files, port, timeouts=SHORT)).result.failure is Failure.CONNECT_TIMEOUT


async def test_a_probe_ends_within_its_bound(served: Any, lab_files: lab.LabFiles) -> None:
    bound = Timeouts(overall_s=0.2)
    assert (
        await through(served, lab_files, good, bound, hang=True)
    ).result.failure is Failure.OVERALL_TIMEOUT


# The target service itself


async def test_who_holds_connections_to_a_target_and_says_nothing_keeps_nobody_out(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway_node.prober.target.CONNECTIONS_MAX", 2)
    service = TargetService("us", PRIVATE, ASKING, lambda: int(time.time()))
    port = await served(service.serve)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /page?nonce=a HTTP/1.1\r\n\r\n")
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 200")
    with contextlib.suppress(ConnectionError):
        assert await silent[0][0].read(1) == b"", "the first of them is gone"
    for _, other in (*silent, (reader, writer)):
        other.close()


async def test_the_target_service_answers_probes_and_nothing_else(
    served: Any, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = TargetService("us", PRIVATE, f"new,{ASKING}", lambda: int(time.time()))
    port = await served(service.serve, server_tls(lab_files))
    plain_port = await served(service.serve)
    tls = ssl.create_default_context(cafile=str(lab_files.ca))
    target = Target("us", lab.TARGET_NAME, "127.0.0.1", port, plain_port)
    seen = await probe(None, target, ProbePlan(SIZE, plain=True), "n2", Trust(tls, PUBLIC, ASKING), 5)
    assert (seen.result.failure, seen.exit_ip, seen.result.vantage) == (None, "127.0.0.1", "us")
    assert seen.body_bytes == SIZE + len(plain_page("n2"))
    for path in ("/", "/probe?nonce=a&size=9", "/page", "/page?nonce=" + "n" * 65):
        reader, writer = await asyncio.open_connection("127.0.0.1", plain_port)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.read(1000)).startswith(b"HTTP/1.1 404")
        writer.close()
    monkeypatch.setattr(target_service, "REQUEST_TIMEOUT_S", 0.5)
    for rubbish in (b"\x16\x03\x01" + b"x" * 5000, b"POST /page?nonce=a HTTP/1.1\r\n\r\n", b"GET\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", plain_port)
        writer.write(rubbish)
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1000) == b""
        writer.close()
