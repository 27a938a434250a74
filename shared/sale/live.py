"""When a requester first asked for terms, in Redis: what tells a buyer from somebody who only watches the chain."""

from typing import Final

from shared.runtime.redis import RedisCall, command
from shared.sale.rules import QUOTE_TTL_S

_PREFIX: Final = "quote:"


def open_quote(quote: str, now_ms: int) -> RedisCall[bool]:
    """Remember the first time these terms were asked for; later times change nothing."""
    return command("SET", _PREFIX + quote, now_ms, "NX", "EX", QUOTE_TTL_S, parse=bool)


def quoted_at(quote: str) -> RedisCall[int | None]:
    """When these terms were first asked for, or None."""
    return command("GET", _PREFIX + quote, parse=lambda raw: None if raw is None else int(raw))
