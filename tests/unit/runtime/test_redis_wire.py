"""What a node does with a Redis server that answers and is not the primary any more."""

import asyncio
from typing import cast

import pytest

from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, command
from shared.runtime.redis_wire import Address, Connection, Server, pack


@pytest.mark.parametrize("answer", [b"-READONLY no\r\n", b"-LOADING no\r\n", b"-MASTERDOWN no\r\n"])
async def test_a_server_that_is_no_primary_is_left_and_its_name_asked_again(answer: bytes) -> None:
    answers = [answer, b":7\r\n"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = answers.pop(0)
        while await reader.read(4096):
            writer.write(mine)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    redis = AsyncRedis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(StoreUnavailable):
        await redis.run(command("INCR", "n", parse=int))
    await asyncio.sleep(0.01)
    assert await redis.run(command("INCR", "n", parse=int)) == 7
    await redis.close()
    server.close()
    await asyncio.sleep(0.01)


class Wire:
    """A transport that takes what is written."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...


@pytest.mark.parametrize("when", ["before the answer", "before it was heard"])
async def test_an_answer_to_one_who_was_cancelled_is_told_once(when: str) -> None:
    connection, server, told = Connection(), Server(Address("redis://r"), "r", 1), list[int]()
    connection.connection_made(cast(asyncio.Transport, Wire()))
    server._connection = connection

    async def ask() -> int:
        return int(await server.send(pack("INCR", "n"), told.append))

    asking, again = asyncio.create_task(ask()), asyncio.create_task(ask())
    await asyncio.sleep(0)
    if when == "before the answer":
        asking.cancel()
        await asyncio.sleep(0)
        connection.data_received(b":7\r\n")
    else:
        connection.data_received(b":7\r\n")
        asking.cancel()
    connection.data_received(b":8\r\n")
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await again == 8
    assert told == [7]
    connection.connection_lost(None)
