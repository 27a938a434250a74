"""Named sessions as their owner sees them: list, and close. Synthetic sessions have no row and are never listed.

A closed session's next connection draws a device anew; a connection that is open stays on its device to its end.
"""

from dataclasses import dataclass
from typing import Any, Final

from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.runtime.redis import RedisCall, Script

SESSIONS_LISTED_MAX: Final = 250
_FIELDS: Final = 9
_LIST: Final = Script.load("shared.pool", "sessions")
_CLOSE: Final = Script.load("shared.pool", "close_session")


@dataclass(frozen=True, slots=True)
class LiveSession:
    """One named session. `address` is the exit's now; empty when the device is away, or is a modem."""

    pool: Pool
    pak_id: PakId
    session_id: str
    endpoint_id: EndpointId
    country: Country
    carrier: str
    address: str
    created_at_ms: int
    seen_at_ms: int
    ends_at_ms: int

    @property
    def key(self) -> str:
        """What the session is closed by."""
        return f"{self.pool.value}:{self.pak_id}:{self.session_id}"


def parse_session_key(text: str) -> tuple[Pool, PakId, str] | None:
    """(pool, key, sid) of a `LiveSession.key`; None for anything else."""
    parts = text.split(":")
    if len(parts) != 3 or parts[0] not in set(Pool) or not parts[1] or not parts[2]:
        return None
    return Pool(parts[0]), PakId(parts[1]), parts[2]


def _index(pool: Pool, owner: AccountId) -> str:
    return f"{{{pool.value}}}:sessions:{owner}"


def sessions_of(
    pool: Pool, owner: AccountId, now_ms: int, pak_id: PakId | None = None
) -> RedisCall[tuple[LiveSession, ...]]:
    """Up to `SESSIONS_LISTED_MAX` sessions of an account in one pool, of one key if asked."""
    prefix = f"{{{pool.value}}}:"
    args: list[str | int] = [prefix, now_ms, SESSIONS_LISTED_MAX, pak_id or ""]
    return RedisCall(lambda answer: _parse(pool, answer), script=_LIST, keys=[_index(pool, owner)], args=args)


def _parse(pool: Pool, answer: Any) -> tuple[LiveSession, ...]:
    texts = [part.decode() for part in answer]
    rows = (texts[i : i + _FIELDS] for i in range(0, len(texts), _FIELDS))
    return tuple(
        LiveSession(
            pool,
            PakId(pak),
            sid,
            EndpointId(endpoint),
            Country(country),
            carrier,
            address,
            int(created or 0),
            int(seen or 0),
            int(float(ends)),
        )
        for pak, sid, ends, endpoint, created, seen, country, carrier, address in rows
    )


def close_session(pool: Pool, owner: AccountId, pak_id: PakId, session_id: str) -> RedisCall[bool]:
    """Forget a session of an account; False when there is none."""
    keys = [_index(pool, owner), f"{{{pool.value}}}:sess:{pak_id}:{session_id}"]
    return RedisCall(bool, script=_CLOSE, keys=keys, args=[f"{pak_id}:{session_id}"])
