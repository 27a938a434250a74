"""Probes on real sockets: every way in which an exit fails has its own name."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from local import lab
from shared.grading import dialer
from shared.grading.dialer import Seen, Target, probe
from shared.grading.model import Failure
from shared.grading.rules import probe_body

pytestmark = pytest.mark.slow
SIZE = 100_000
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer = Callable[[str], tuple[str, bytes]]


def good(nonce: str) -> tuple[str, bytes]:
    return json.dumps({"ip": "127.10.1.1"}), probe_body(nonce, SIZE)


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
        seen, body = answer(nonce)
        head = f"HTTP/1.1 200 OK\r\nX-PSX-Seen: {seen}\r\nContent-Length: {len(body)}\r\n\r\n"
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
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if hang:
            await reader.read()
        elif drop:
            await reader.read(1)
        elif status.startswith("200"):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
            finally:
                far_writer.transport.abort()
        writer.close()

    return handle


async def run(files: lab.LabFiles, port: int, *, trusted: bool = True) -> Seen:
    tls = ssl.create_default_context(cafile=str(files.ca) if trusted else None)
    target = Target(lab.TARGET_NAME, "127.0.0.1", 1, SIZE)
    return await probe(
        "127.0.0.1", port, b"CONNECT x:1 HTTP/1.1\r\n\r\n", target, "n1", tls, 5, Failure.RELAY_UNREACHABLE
    )


def server_tls(files: lab.LabFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.target_cert)
    return context


async def through(served: Any, files: lab.LabFiles, answer: Answer, **fault: Any) -> Seen:
    target = await served(target_of(answer), server_tls(files))
    return await run(files, await served(exit_to(target, **fault)))


async def test_a_good_exit_is_measured_and_its_address_seen(served: Any, lab_files: lab.LabFiles) -> None:
    seen = await through(served, lab_files, good)
    result = seen.result
    assert result.passed
    assert seen.exit_ip == "127.10.1.1"
    assert None not in (result.connect_ms, result.tls_handshake_ms, result.ttfb_ms, result.throughput_kbps)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda _: ('{"ip":"1"}', b"x" * SIZE), Failure.BODY_MISMATCH),
        (lambda n: ('{"ip":"1"}', probe_body(n, SIZE)[:-1]), Failure.BODY_SHORT),
        (lambda n: ("{}", probe_body(n, SIZE)), Failure.NO_EXIT_IP),
        (lambda n: ("not json", probe_body(n, SIZE)), Failure.NO_EXIT_IP),
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


async def test_an_exit_that_hangs_in_the_handshake(
    served: Any, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "TLS_TIMEOUT_S", 0.2)
    assert (await through(served, lab_files, good, hang=True)).result.failure is Failure.TLS_TIMEOUT


async def test_a_relay_that_says_nothing(
    served: Any, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(dialer, "CONNECT_TIMEOUT_S", 0.2)
    assert (await run(lab_files, await served(silent))).result.failure is Failure.CONNECT_TIMEOUT


async def test_a_probe_ends_within_its_bound(
    served: Any, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "OVERALL_TIMEOUT_S", 0.2)
    assert (await through(served, lab_files, good, hang=True)).result.failure is Failure.OVERALL_TIMEOUT
