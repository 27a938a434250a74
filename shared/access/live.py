"""Rate limits in Redis: one atomic count per window, over all instances."""

from dataclasses import dataclass
from typing import Final

from shared.runtime.redis import RedisCall, Script, command

_HIT: Final = Script.load("shared.access", "hit")


@dataclass(frozen=True, slots=True)
class Limit:
    """So many hits within a window."""

    name: str
    hits_max: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Hits:
    """What is left of a limit after a hit; `over` when there was nothing left for it."""

    over: bool
    left: int
    reset_s: int


def hit(limit: Limit, who: str) -> RedisCall[Hits]:
    """Count one hit of somebody."""

    def parse(answer: list[int]) -> Hits:
        count, reset_s = int(answer[0]), max(int(answer[1]), 1)
        return Hits(count > limit.hits_max, max(limit.hits_max - count, 0), reset_s)

    return RedisCall(parse, script=_HIT, keys=[f"limit:{limit.name}:{who}"], args=[limit.window_s])


def first_in(what: str, window_s: int) -> RedisCall[bool]:
    """Whether this is the first time within a window that anybody says so."""
    return command("SET", f"told:{what}", 1, "NX", "EX", window_s, parse=bool)
