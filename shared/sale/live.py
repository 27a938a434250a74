"""When a requester first asked for terms, and how often: tells a buyer from who watches the chain, or floods us.

Both live in Redis; losing it forgets open quotes (their buyers sign) and counts (they begin anew).
"""

from typing import Final

from shared.access.live import Limit
from shared.runtime.redis import RedisCall, command
from shared.sale.rules import QUOTE_TTL_S

_PREFIX: Final = "quote:"


def open_quote(quote: str, now_ms: int) -> RedisCall[bool]:
    """Remember the first time these terms were asked for; later times change nothing."""
    return command("SET", _PREFIX + quote, now_ms, "NX", "EX", QUOTE_TTL_S, parse=bool)


def keep_quote(quote: str) -> RedisCall[bool]:
    """Whoever asks once more is told the whole life again; when they first asked stays what it is."""
    return command("EXPIRE", _PREFIX + quote, QUOTE_TTL_S, parse=bool)


def quoted_at(quote: str) -> RedisCall[int | None]:
    """When these terms were first asked for, or None."""
    return command("GET", _PREFIX + quote, parse=lambda raw: None if raw is None else int(raw))


# Rate limits

BUY_LIMIT: Final = Limit("buy", 10, 60)
LOOK_LIMIT: Final = Limit("look", 6000, 60)
"""For whatever reads a session: tokens and ids are looked up for anybody."""
TOP_UP_LIMIT: Final = Limit("topup", 5, 60)
REGENERATE_LIMIT: Final = Limit("regenerate", 3, 3600)
NAMED_LIMIT: Final = Limit("named", 60, 60)
"""For writes under an Idempotency-Key: each keeps a row for a day."""
PAID_LIMIT: Final = Limit("paid", 60, 60)
"""For requests that show a payment: its buyer is told to ask again every two seconds, and must be able to."""
