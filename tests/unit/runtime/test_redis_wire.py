"""What a node does with a Redis server that answers and is not the primary any more."""

import asyncio

import pytest

from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, command


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
