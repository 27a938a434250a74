"""Redis calls as values, and the two executors that run them.

A room builds a `RedisCall[T]`: either one command, or one Lua script. A script declares at least one key, which tells a
Cluster where it runs; keys that it computes itself have the same hash tag (`{pool}:`), and so are in the same slot.
`SyncRedis` runs a call in Lambda, `AsyncRedis` in the nodes. What goes wrong raises `StoreUnavailable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Final, Generic, NamedTuple, TypeVar

from shared.runtime.dynamo import StoreUnavailable

T = TypeVar("T")

SOCKET_TIMEOUT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 2
_KEYLESS: Final = frozenset({"PUBLISH", "PING", "CONFIG", "INFO", "KEYS"})


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its name (for messages), text, and the SHA-1 that EVALSHA names it by.

    One that only reads says so: who runs it then needs no right to write its keys.
    """

    name: str
    text: str
    sha1: str
    reads: bool = False

    @staticmethod
    def load(package: str, name: str, *, reads: bool = False) -> Script:
        """Read `lua/<name>.lua` of a room."""
        text = resources.files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), reads)

    def commands(self) -> tuple[str, str]:
        """What runs it by its digest, and what sends it whole."""
        return ("EVALSHA_RO", "EVAL_RO") if self.reads else ("EVALSHA", "EVAL")


Argument = str | int | bytes
Login = tuple[str, str]
"""A user of Redis and its password: what it may do stands in `infra/network.yml`."""


class RedisCall(NamedTuple, Generic[T]):
    """One command (`command` set, arguments whole) or one script (`script` set, `keys` and `args`).

    Answers reach `parse` as redis-py gives them: bytes, int, None, lists, dicts (RESP3 maps). `written` is the same call as
    it goes over the wire, where most of it was written out before (`Opening`).
    """

    parse: Callable[[Any], T]
    command: tuple[Argument, ...] = ()
    script: Script | None = None
    keys: Sequence[str] = ()
    args: Sequence[Argument] = ()
    written: bytes = b""


class Opening:
    """A script with its keys and first arguments, written out once for many calls: to write thirty words takes longer than
    to read the answer. Source: the Redis serialization protocol, "Sending commands to a Redis server".
    """

    __slots__ = ("_count", "_written")

    def __init__(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> None:
        words = (script.commands()[0], script.sha1, len(keys), *keys, *args)
        self._count = len(words)
        self._written = b"".join(map(_word, words))

    def followed_by(self, *args: Argument) -> bytes:
        """The whole call with its last arguments."""
        return b"".join((b"*%d\r\n" % (self._count + len(args)), self._written, *map(_word, args)))


def _word(argument: Argument) -> bytes:
    raw = argument if isinstance(argument, bytes) else str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def _arguments(call: RedisCall[Any]) -> tuple[Argument, ...]:
    return (len(call.keys), *call.keys, *call.args)


class SyncRedis:
    """Runs calls with redis-py; made once per Lambda container."""

    def __init__(self, url: str, login: Login | None = None) -> None:
        import redis  # noqa: PLC0415 - the nodes do without it

        self._errors = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
        self._missing = redis.exceptions.NoScriptError
        named = {} if login is None else {"username": login[0], "password": login[1]}
        self._client: Any = (redis.RedisCluster if "+cluster" in url else redis.Redis).from_url(
            url.replace("+cluster", ""),
            **named,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
        )

    def run(self, call: RedisCall[T]) -> T:
        """Run one call. Raises StoreUnavailable when nothing is known of its outcome."""
        try:
            return call.parse(self._answer(call))
        except self._errors as error:
            raise StoreUnavailable(f"redis: {_named(error)}") from error

    def _answer(self, call: RedisCall[Any]) -> Any:
        if call.script is None:
            return self._client.execute_command(*call.command)
        arguments, (known, whole) = _arguments(call), call.script.commands()
        try:
            return self._client.execute_command(known, call.script.sha1, *arguments)
        except self._missing:
            return self._client.execute_command(whole, call.script.text, *arguments)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


class AsyncRedis:
    """Runs calls on an asyncio loop, pipelined over one connection per server; see `redis_wire.py`."""

    def __init__(self, url: str, login: Login | None = None) -> None:
        from shared.runtime.redis_wire import Servers, pack  # noqa: PLC0415 - Lambda does not need it

        self._servers = Servers(url, login)
        self._pack = pack

    async def run(self, call: RedisCall[T], unheard: Callable[[T], None] | None = None) -> T:
        """Run one call. Raises StoreUnavailable when nothing is known of its outcome; cancelling is safe, and what was
        answered to one who had been cancelled is told to `unheard`."""
        told = None if unheard is None else partial(_tell, call, unheard)
        try:
            if call.script is None:
                key = None if call.command[0] in _KEYLESS else str(call.command[1])
                answer = await self._servers.send(key, self._pack(*call.command), told)
            else:
                key, (known, whole) = call.keys[0], call.script.commands()
                packed = call.written or self._pack(known, call.script.sha1, *_arguments(call))
                answer = await self._servers.send(key, packed, told)
                if isinstance(answer, Exception) and str(answer).startswith("NOSCRIPT"):
                    packed = self._pack(whole, call.script.text, *_arguments(call))
                    answer = await self._servers.send(key, packed, told)
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"redis: {type(error).__name__}") from error
        if isinstance(answer, Exception):
            raise StoreUnavailable(f"redis: {_named(answer)}")
        return call.parse(answer)

    async def messages(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """(channel, text) as they are published; ends by raising StoreUnavailable when the connection is lost.

        A first pair `("", "")` says that the subscription stands: whatever was missed before it must be swept.
        """
        try:
            subscription = await self._servers.subscribe(*channels)
            try:
                yield "", ""
                while True:
                    yield await subscription.next()
            finally:
                subscription.close()
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"redis: {type(error).__name__}") from error

    async def close(self) -> None:
        """Hang up."""
        await self._servers.close()


def _named(error: Exception) -> str:
    """What went wrong, without the server's words; what the user may not do has one name, in a script or outside."""
    text = str(error)
    if text.startswith("NOPERM") or "ACL failure in script" in text:
        return "NoPermissionError"
    return "ResponseError" if type(error).__name__ == "ReplyError" else type(error).__name__


def _tell(call: RedisCall[T], unheard: Callable[[T], None], answer: Any) -> None:
    if not isinstance(answer, Exception):
        unheard(call.parse(answer))


def command(*parts: Argument, parse: Callable[[Any], T]) -> RedisCall[T]:
    """One plain command."""
    return RedisCall(parse, command=parts)


def ok(_: object) -> None:
    """Parser of an answer nobody needs."""


def text_map(answer: Any) -> dict[str, str]:
    """A RESP3 map, or a flat list of names and values, as text."""
    if isinstance(answer, Mapping):
        return {k.decode(): v.decode() for k, v in answer.items()}
    items = [part.decode() for part in answer or ()]
    return dict(zip(items[::2], items[1::2], strict=True))
