"""Plain HTTP through the gateway: both connections kept, bodies framed, nothing that names anybody sent on."""

import asyncio
import base64
import contextlib
from collections.abc import Callable

import pytest

from gateway_node import http_front
from gateway_node.tunnel import AFTER_CUSTOMER_ENDED_MAX_S
from tests.support.dataplane import ACCOUNT, SECRET, Plane, pattern, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
AUTH = "Basic " + base64.b64encode(f"{ACCOUNT}-peer-us:{SECRET}".encode()).decode()
Answer = Callable[[str, bytes], bytes | None]


class Site:
    """A target that reads requests whole and answers what the test says; None hangs up without an answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if "expect: 100-continue" in head.lower():
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await self._body(head.lower(), reader)
                self.heads.append(head)
                self.bodies.append(body)
                answer = self.answer(head, body)
                if answer is None:
                    break
                writer.write(answer)
                if b"connection: close" in answer.lower() or b"content-length" not in answer.lower():
                    break
        writer.close()

    async def _body(self, head: str, reader: asyncio.StreamReader) -> bytes:
        if "transfer-encoding: chunked" in head:
            return await reader.readuntil(b"0\r\n\r\n")
        length = next((h.split(":")[1] for h in head.split("\r\n") if h.startswith("content-length:")), "0")
        return await reader.readexactly(int(length))


def ok(body: bytes = b"hello", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Client:
    """One connection to the gateway."""

    def __init__(self, plane: Plane, port: int) -> None:
        self.plane, self.port = plane, port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.plane.http_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(
        self, method: str = "GET", path: str = "/", *headers: str, body: bytes = b"", auth: str = AUTH
    ) -> None:
        lines = [
            f"{method} http://127.0.0.1:{self.port}{path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            *([f"Proxy-Authorization: {auth}"] if auth else []),
            *headers,
            "",
            "",
        ]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def head(self) -> str:
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()

    async def get(self, *args: str, **more: str) -> tuple[str, bytes]:
        self.send(*args, **more)  # type: ignore[arg-type]  # as send has them
        head = await self.head()
        length = next(
            (h.split(":")[1] for h in head.lower().split("\r\n") if h.startswith("content-length:")), "0"
        )
        return head, await asyncio.wait_for(self.reader.readexactly(int(length)), 10)


async def site(plane: Plane, answer: Answer) -> tuple[Site, int]:
    made = Site(answer)
    await plane.add_peer("p1")
    return made, await plane.target(made)


async def test_both_connections_are_kept_for_the_next_request(plane: Plane) -> None:
    made, port = await site(plane, lambda head, body: ok(head.split()[1].encode()))
    async with Client(plane, port) as client:
        for number in range(5):
            _, body = await client.get("GET", f"/page/{number}?q=1")
            assert body == f"/page/{number}?q=1".encode()
    assert made.connections == 1
    await until(lambda: not plane.meter.all_tunnels())


async def test_pipelined_requests_are_answered_in_order(plane: Plane) -> None:
    _made, port = await site(plane, lambda head, body: ok(head.split()[1].encode()))
    async with Client(plane, port) as client:
        for number in range(4):
            client.send("GET", f"/{number}")
        for number in range(4):
            await client.head()
            assert await client.reader.readexactly(2) == f"/{number}".encode()


async def test_nothing_that_names_customer_or_proxy_reaches_the_target(plane: Plane) -> None:
    made, port = await site(plane, lambda head, body: ok())
    async with Client(plane, port) as client:
        await client.get(
            "GET", "/", "User-Agent: Mozilla/5.0", "X-Forwarded-For: 203.0.113.9", "Via: 1.1 me", "Forwarded: for=me",
            "X-Real-IP: 203.0.113.9", "Proxy-Connection: keep-alive", "Proxy-Foo: x", "Connection: X-Hop", "X-Hop: y",
            "Accept-Language: de", "TE: trailers",
        )  # fmt: skip
    lines = made.heads[0].split("\r\n")
    assert lines == [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "User-Agent: Mozilla/5.0",
        "Connection: keep-alive",
        "Accept-Language: de",
        "",
        "",
    ]


async def test_bodies_of_a_length_and_in_chunks_pass_both_ways(plane: Plane) -> None:
    big = pattern(300_000)
    made, port = await site(
        plane, lambda head, body: ok(big) if "/down" in head else ok(str(len(body)).encode())
    )
    async with Client(plane, port) as client:
        client.send("POST", "/up", f"Content-Length: {len(big)}", body=big)
        await client.head()
        assert await client.reader.readexactly(6) == b"300000"
        client.send("POST", "/up", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
        await client.head()
        assert await client.reader.readexactly(2) == b"15"
        assert (await client.get("GET", "/down"))[1] == big
    assert made.bodies[0] == big
    assert made.connections == 1


async def test_a_chunked_answer_ends_where_its_chunks_end(plane: Plane) -> None:
    chunks = b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Not: content-length\r\n\r\n" + chunks
    made, port = await site(plane, lambda head, body: answer)
    async with Client(plane, port) as client:
        for _ in range(2):
            client.send()
            await client.head()
            assert await client.reader.readexactly(len(chunks)) == chunks
    assert made.connections == 1


async def test_head_and_not_modified_have_no_body(plane: Plane) -> None:
    bare = {
        "HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        "GET": b"HTTP/1.1 304 N\r\nContent-Length: 10\r\n\r\n",
    }
    made, port = await site(plane, lambda head, body: bare[head.split()[0]])
    async with Client(plane, port) as client:
        for method, status in (("HEAD", "200"), ("GET", "304"), ("HEAD", "200")):
            client.send(method)
            assert (await client.head()).startswith(f"HTTP/1.1 {status} ")
    assert made.connections == 1


async def test_expect_continue_is_passed_on(plane: Plane) -> None:
    _made, port = await site(plane, lambda head, body: ok(body))
    async with Client(plane, port) as client:
        client.send("PUT", "/", "Expect: 100-continue", "Content-Length: 4")
        assert (await client.head()).startswith("HTTP/1.1 100 ")
        client.writer.write(b"body")
        await client.head()
        assert await client.reader.readexactly(4) == b"body"


async def test_an_upgrade_turns_the_connection_into_a_tunnel(plane: Plane) -> None:
    async def upgrades(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Upgrade: websocket\r\n" in head
        assert b"Connection: Upgrade\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
        writer.write(b"<" + await reader.readexactly(5) + b">")
        writer.close()

    await plane.add_peer("p1")
    port = await plane.target(upgrades)
    async with Client(plane, port) as client:
        client.send("GET", "/", "Connection: Upgrade", "Upgrade: websocket")
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        client.writer.write(b"bytes")
        assert await client.reader.read() == b"hi<bytes>"


async def test_an_answer_until_close_ends_the_customers_connection(plane: Plane) -> None:
    _made, port = await site(plane, lambda head, body: b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    async with Client(plane, port) as client:
        client.send()
        assert "Connection: close" in await client.head()
        assert await client.reader.read() == b"until the end"


async def test_a_kept_connection_that_the_target_closed_is_opened_again(plane: Plane) -> None:
    made, port = await site(plane, lambda head, body: ok(b"once", "Connection: close"))
    async with Client(plane, port) as client:
        for _ in range(3):
            head, body = await client.get()
            assert body == b"once"
            assert "Connection: keep-alive" in head
    assert made.connections == 3


async def test_a_target_that_hangs_up_without_an_answer_is_told_as_such(plane: Plane) -> None:
    made, port = await site(plane, lambda head, body: None)
    async with Client(plane, port) as client:
        client.send("POST", "/", "Content-Length: 1", body=b"x")
        assert (await client.head()).startswith("HTTP/1.1 502 ")
    assert made.connections == 1, "a POST is not sent twice"


async def test_who_hangs_up_before_the_answer_holds_its_exit_for_the_bound_and_no_longer(
    plane: Plane,
) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()
        writer.close()

    await plane.add_peer("p1")
    port = await plane.target(silent)
    async with Client(plane, port) as client:
        client.send()
        await asyncio.wait_for(asked.wait(), 10)
        (tunnel,) = plane.meter.all_tunnels()
    tunnel.sweep(0)  # what was carried is no news
    await until(lambda: tunnel.silence_max_s == AFTER_CUSTOMER_ENDED_MAX_S)
    tunnel.sweep(AFTER_CUSTOMER_ENDED_MAX_S)
    assert not plane.meter.all_tunnels()


async def test_a_request_that_was_never_finished_ends_with_its_customer(plane: Plane) -> None:
    made, port = await site(plane, lambda head, body: ok())
    async with Client(plane, port) as client:
        client.send("POST", "/", "Content-Length: 1000", body=b"only so much")
        await until(lambda: bool(plane.meter.all_tunnels()))
    await until(lambda: not plane.meter.all_tunnels())
    assert not made.bodies


async def test_a_half_closed_customer_still_gets_its_answer(plane: Plane) -> None:
    _, port = await site(plane, lambda head, body: ok(b"late but whole"))
    async with Client(plane, port) as client:
        client.send()
        client.writer.write_eof()
        assert (await asyncio.wait_for(client.reader.read(), 10)).endswith(b"late but whole")


async def test_an_idle_kept_connection_ends_and_is_not_reset(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_front, "KEEP_ALIVE_IDLE_S", 0.1)
    _, port = await site(plane, lambda head, body: ok())
    async with Client(plane, port) as client:
        await client.get()
        assert await asyncio.wait_for(client.reader.read(), 10) == b""


async def test_a_407_keeps_the_connection_for_another_try(plane: Plane) -> None:
    _made, port = await site(plane, lambda head, body: ok())
    async with Client(plane, port) as client:
        for auth in ("", "Basic " + base64.b64encode(b"psx_buyer:pak_wrong").decode()):
            head, _ = await client.get(auth=auth)
            assert head.startswith("HTTP/1.1 407 ")
            assert "Proxy-Authenticate: Basic " in head
        head, body = await client.get()
        assert body == b"hello"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET https://a.example/ HTTP/1.1\r\n\r\n",
        b"GET http://u:p@a.example/ HTTP/1.1\r\n\r\n",
        b"POST http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT a.example HTTP/1.1\r\n\r\n",
        b"CONNECT a.example:99999 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_requests_that_are_none_get_a_400_and_the_door(plane: Plane, request_: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
    writer.write(request_)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
    writer.close()
