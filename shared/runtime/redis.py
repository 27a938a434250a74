"""Redis calls as values, and the two executors that run them.

A room builds a `RedisCall[T]`: either one command, or one Lua script with all its keys declared (a Cluster refuses
undeclared ones). `SyncRedis` runs it in Lambda, `AsyncRedis` in the nodes. What goes wrong raises `StoreUnavailable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Generic, TypeVar

from shared.runtime.dynamo import StoreUnavailable

T = TypeVar("T")

SOCKET_TIMEOUT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 2
POOL_MAX_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its name (for messages), text, and the SHA-1 that EVALSHA names it by."""

    name: str
    text: str
    sha1: str

    @staticmethod
    def load(package: str, name: str) -> Script:
        """Read `lua/<name>.lua` of a room."""
        text = resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


Argument = str | int | bytes


@dataclass(frozen=True, slots=True)
class RedisCall(Generic[T]):
    """One command (`command` set, arguments whole) or one script (`script` set, `keys` and `args`).

    Answers reach `parse` as redis-py gives them: bytes, int, None, lists, dicts (RESP3 maps).
    """

    parse: Callable[[Any], T]
    command: tuple[Argument, ...] = ()
    script: Script | None = None
    keys: Sequence[str] = ()
    args: Sequence[Argument] = ()


def _arguments(call: RedisCall[Any]) -> tuple[Argument, ...]:
    return (len(call.keys), *call.keys, *call.args)


class SyncRedis:
    """Runs calls with redis-py; made once per Lambda container."""

    def __init__(self, url: str) -> None:
        import redis  # noqa: PLC0415 - the nodes use redis.asyncio

        self._errors = (redis.RedisError, OSError)
        self._missing = redis.exceptions.NoScriptError
        self._client = redis.Redis.from_url(
            url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
        )

    def run(self, call: RedisCall[T]) -> T:
        """Run one call. Raises StoreUnavailable when nothing is known of its outcome."""
        try:
            return call.parse(self._answer(call))
        except self._errors as error:
            raise StoreUnavailable(f"redis: {type(error).__name__}") from error

    def _answer(self, call: RedisCall[Any]) -> Any:
        if call.script is None:
            return self._client.execute_command(*call.command)  # type: ignore[no-untyped-call]  # redis-py
        arguments = _arguments(call)
        try:
            return self._client.execute_command("EVALSHA", call.script.sha1, *arguments)  # type: ignore[no-untyped-call]  # redis-py
        except self._missing:
            return self._client.execute_command("EVAL", call.script.text, *arguments)  # type: ignore[no-untyped-call]  # redis-py

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


class AsyncRedis:
    """Runs calls on an asyncio loop; waits for a free connection instead of failing when all are busy."""

    def __init__(self, url: str) -> None:
        import redis.asyncio as aio  # noqa: PLC0415 - Lambda does not need it
        from redis import RedisError  # noqa: PLC0415
        from redis.exceptions import NoScriptError  # noqa: PLC0415

        self._errors = (RedisError, OSError, TimeoutError)
        self._missing = NoScriptError
        pool = aio.BlockingConnectionPool.from_url(
            url,
            max_connections=POOL_MAX_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
        )
        self._client = aio.Redis.from_pool(pool)
        self._url = url

    async def run(self, call: RedisCall[T]) -> T:
        """Run one call. Raises StoreUnavailable when nothing is known of its outcome."""
        try:
            return call.parse(await self._answer(call))
        except self._errors as error:
            raise StoreUnavailable(f"redis: {type(error).__name__}") from error

    async def _answer(self, call: RedisCall[Any]) -> Any:
        if call.script is None:
            return await self._client.execute_command(*call.command)  # type: ignore[no-untyped-call]  # redis-py
        arguments = _arguments(call)
        try:
            return await self._client.execute_command("EVALSHA", call.script.sha1, *arguments)  # type: ignore[no-untyped-call]  # redis-py
        except self._missing:
            return await self._client.execute_command("EVAL", call.script.text, *arguments)  # type: ignore[no-untyped-call]  # redis-py

    async def messages(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """(channel, text) as they are published; ends by raising StoreUnavailable when the connection is lost.

        A first pair `("", "")` says that the subscription stands: whatever was missed before it must be swept.
        """
        import redis.asyncio as aio  # noqa: PLC0415

        # No read timeout here: a quiet channel is not a broken one; health_check_interval finds a dead connection.
        client = aio.Redis.from_url(
            self._url, socket_connect_timeout=CONNECT_TIMEOUT_S, health_check_interval=10
        )
        subscription = client.pubsub()
        try:
            await subscription.subscribe(*channels)
            yield "", ""
            async for message in subscription.listen():
                if message["type"] == "message":
                    yield message["channel"].decode(), message["data"].decode()
        except self._errors as error:
            raise StoreUnavailable(f"redis: {type(error).__name__}") from error
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py
            await client.aclose()

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()


def command(*parts: Argument, parse: Callable[[Any], T]) -> RedisCall[T]:
    """One plain command."""
    return RedisCall(parse, command=parts)


def ok(_: object) -> None:
    """Parser of an answer nobody needs."""
