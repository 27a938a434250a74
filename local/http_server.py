"""A small HTTP/1.1 server on asyncio and h11, for the emulated AWS endpoints. One handler, whole bodies, bounded."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import h11

BODY_MAX_BYTES: Final = 8 * 1024 * 1024
READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request; header names are lower-case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    address: str

    def header(self, name: str) -> str:
        """The first value of a header, or ""."""
        return next((v for k, v in self.headers if k == name), "")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Handler = Callable[[HttpRequest], Awaitable[HttpAnswer]]


async def serve_http(host: str, port: int, handler: Handler) -> asyncio.Server:
    """Listen; each connection serves requests until it is closed."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state = h11.Connection(h11.SERVER)
        address = str(writer.get_extra_info("peername")[0])
        # A cancelled connection ends like a closed one: the loop is going away, and nobody waits for this task.
        with contextlib.suppress(OSError, h11.RemoteProtocolError, ValueError, asyncio.CancelledError):
            while True:
                request = await _request(state, reader, address)
                if request is None:
                    break
                answer = await handler(request)
                writer.write(_encode(state, answer, request.method))
                await writer.drain()
                if state.our_state is h11.MUST_CLOSE:
                    break
                state.start_next_cycle()
        writer.close()

    return await asyncio.start_server(connection, host, port)


async def _request(state: h11.Connection, reader: asyncio.StreamReader, address: str) -> HttpRequest | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = state.next_event()
        if event is h11.NEED_DATA:
            state.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_MAX_BYTES:
                raise ValueError("body too large")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = tuple((k.decode().lower(), v.decode("latin-1")) for k, v in head.headers)
            return HttpRequest(
                head.method.decode(), head.target.decode("latin-1"), headers, bytes(body), address
            )
        else:
            return None


def _encode(state: h11.Connection, answer: HttpAnswer, method: str) -> bytes:
    headers = [(k, v) for k, v in answer.headers if k.lower() not in {"content-length", "transfer-encoding"}]
    headers.append(("Content-Length", str(len(answer.body))))
    out = state.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if answer.body and method != "HEAD":
        out += state.send(h11.Data(data=answer.body)) or b""
    return out + (state.send(h11.EndOfMessage()) or b"")
