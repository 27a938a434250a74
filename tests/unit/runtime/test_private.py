"""What a node tells of itself on its private port."""

import asyncio

import pytest

from shared.runtime.private import serve_private


@pytest.mark.parametrize(
    ("path", "fault", "status"),
    [
        ("/health", None, b"200"),
        ("/health", "redis: away", b"200"),
        ("/ready", None, b"200"),
        ("/ready", "redis: away", b"503"),
        ("/metrics", "redis: away", b"200"),
        ("/other", None, b"404"),
    ],
)
async def test_a_store_that_is_away_is_told_and_is_no_reason_to_end_a_node(
    path: str, fault: str | None, status: bytes
) -> None:
    server = await serve_private("127.0.0.1", 0, lambda: fault)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.read()
    assert answer.split(b" ", 2)[1] == status
    assert (fault is not None and fault.encode() in answer) == (status == b"503")
    writer.close()
    server.close()
