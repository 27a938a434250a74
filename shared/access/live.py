"""Rate limits in Redis, over all instances: one atomic script counts a call against every limit it falls under, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.runtime.redis import RedisCall, Script, command

_LIMIT: Final = Script.load("shared.access", "limit")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `calls` in any `window_s`, estimated from two fixed windows."""

    name: str
    calls: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """Where a caller stands under one limit. `wait_ms` is 0 when there was room for the call."""

    limit: Limit
    wait_ms: int
    left: int
    reset_ms: int


def count_calls(limits: Sequence[Limit], who: str, now_ms: int) -> RedisCall[tuple[Allowance, ...]]:
    """Count a call of `who` (a hash or an opaque id) under all of `limits`; under none when one of them is reached."""
    keys: list[str] = []
    args: list[str | int] = [now_ms]
    for limit in limits:
        window_ms = limit.window_s * 1000
        window = now_ms // window_ms
        keys += [f"{{limit:{who}}}:{limit.name}:{number}" for number in (window, window - 1)]
        args += [limit.calls, window_ms]

    def parse(answer: Any) -> tuple[Allowance, ...]:
        rows = zip(limits, answer[::3], answer[1::3], answer[2::3], strict=True)
        return tuple(Allowance(limit, int(wait), int(left), int(reset)) for limit, wait, left, reset in rows)

    return RedisCall(parse, script=_LIMIT, keys=keys, args=args)


def first_in(what: str, window_s: int) -> RedisCall[bool]:
    """Whether this is the first time within a window that anybody says so."""
    return command("SET", f"told:{what}", 1, "NX", "EX", window_s, parse=bool)
