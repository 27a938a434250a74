"""Both Redis executors run the same calls alike, on a real server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, RedisCall, Script, SyncRedis, command, ok

pytestmark = pytest.mark.slow

ADD = Script(
    "add", "return redis.call('INCRBY', KEYS[1], ARGV[1])", "ed5ab9e0c31bd6a2e2a9d9ad7e9e0d4ee6c9f5ae"
)
Run = Callable[[RedisCall[Any]], Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
async def run(request: pytest.FixtureRequest, any_valkey_url: str) -> Any:
    if request.param == "async":
        executor = AsyncRedis(any_valkey_url)
        yield executor.run
        await executor.close()
        return
    sync = SyncRedis(any_valkey_url)

    async def run_sync(call: RedisCall[Any]) -> Any:
        return sync.run(call)

    yield run_sync
    sync.close()


async def test_a_script_the_server_does_not_know_is_sent_whole(run: Run) -> None:
    call = RedisCall(int, script=ADD, keys=["n"], args=[3])
    assert [await run(call), await run(call)] == [3, 6]


async def test_a_command_answers_through_its_parser(run: Run) -> None:
    await run(command("SET", "k", "v", parse=ok))
    assert await run(command("GET", "k", parse=lambda v: v.decode())) == "v"


async def test_a_refused_command_is_unavailable_without_the_servers_words(run: Run) -> None:
    with pytest.raises(StoreUnavailable, match=r"^redis: ResponseError$"):
        await run(command("SET", "k", parse=ok))


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    redis = AsyncRedis("redis://127.0.0.1:9/0")
    with pytest.raises(StoreUnavailable):
        await redis.run(command("PING", parse=ok))
    await redis.close()


async def test_messages_begin_by_saying_that_the_subscription_stands(any_valkey_url: str) -> None:
    redis = AsyncRedis(any_valkey_url)
    messages = redis.messages("a", "b")
    assert await anext(messages) == ("", "")
    await redis.run(command("PUBLISH", "b", "hello", parse=ok))
    assert await asyncio.wait_for(anext(messages), 5) == ("b", "hello")
    await messages.aclose()  # type: ignore[attr-defined]  # an async generator
    await redis.close()


async def test_messages_arrive_all_and_in_order(valkey_url: str) -> None:
    redis = AsyncRedis(valkey_url)
    messages = redis.messages("a")
    await anext(messages)
    texts = [f"{n}" * (n % 50) for n in range(5000)]
    await asyncio.gather(*(redis.run(command("PUBLISH", "a", text, parse=ok)) for text in texts))
    async with asyncio.timeout(10):
        assert [await anext(messages) for _ in texts] == [("a", text) for text in texts]
    await messages.aclose()  # type: ignore[attr-defined]  # an async generator
    await redis.close()


@pytest.mark.parametrize("turns", range(12))
async def test_who_listens_can_be_cancelled_at_any_moment(valkey_url: str, turns: int) -> None:
    redis = AsyncRedis(valkey_url)

    async def listen() -> None:
        async for _ in redis.messages("a"):
            await redis.run(command("PUBLISH", "a", "again", parse=ok))

    listening = asyncio.create_task(listen())
    for _ in range(turns):
        await asyncio.sleep(0 if turns < 9 else 0.002)
    listening.cancel()
    done, _ = await asyncio.wait([listening], timeout=5)
    assert done == {listening}
    assert listening.cancelled()
    await redis.close()


async def test_a_lost_subscription_is_told(valkey_url: str) -> None:
    redis = AsyncRedis(valkey_url)
    messages = redis.messages("a")
    await anext(messages)
    await redis.run(command("CLIENT", "KILL", "TYPE", "pubsub", parse=ok))
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(anext(messages), 5)
    await redis.close()


async def test_a_part_of_a_cluster_whose_server_died_is_looked_up_again(valkey_cluster: str) -> None:
    from shared.runtime.redis_wire import SLOTS, Address, Server, Servers, pack

    servers = Servers(valkey_cluster)
    servers._slots = [(0, SLOTS - 1, Server(Address("redis://127.0.0.1:9"), "127.0.0.1", 9))]
    with pytest.raises(ConnectionRefusedError):
        await servers.send("n", pack("SET", "n", "1"))
    assert await servers.send("n", pack("SET", "n", "1")) == b"OK"
    await servers.close()
