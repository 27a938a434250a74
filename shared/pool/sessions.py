"""Named sessions as their owner sees them: list, and close. Synthetic sessions have no row and are never listed.

Closing forgets the session's device and cuts its open tunnels at every gateway: a push on the channel `closed`, and a word
in Redis for gateways that did not hear it. Closing all of a key or an account cuts synthetic sessions' tunnels as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.runtime.redis import RedisCall, Script, command, ok

SESSIONS_LISTED_MAX: Final = 250
CLOSED: Final = "closed"
"""The channel of closings; a message is a name of `closings_of`."""
CLOSED_WORD_KEPT_S: Final = 3600
_FIELDS: Final = 13
_LIST: Final = Script.load("shared.pool", "sessions", reads=True)
_CLOSE: Final = Script.load("shared.pool", "close_session")
_TELL: Final = Script.load("shared.pool", "tell_sessions")


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
    requests: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    rotation: str = ""

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
            int(requests or 0),
            int(up or 0),
            int(down or 0),
            rotation,
        )
        for pak, sid, ends, endpoint, created, seen, country, carrier, address, requests, up, down, rotation in rows
    )


# What sessions carried


@dataclass(slots=True)
class SessionFacts:
    """What a session carried since it was last told."""

    pool: Pool
    pak_id: PakId
    session_id: str
    rotation: str
    requests: int = 0
    up_bytes: int = 0
    down_bytes: int = 0

    @property
    def anything(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.requests or self.up_bytes or self.down_bytes)

    def copy(self) -> "SessionFacts":
        """The same, at rest."""
        return replace(self)

    def less(self, told: "SessionFacts") -> None:
        """So much of it was told."""
        self.requests -= told.requests
        self.up_bytes -= told.up_bytes
        self.down_bytes -= told.down_bytes


def tell_sessions(pool: Pool, facts: Sequence[SessionFacts], now_ms: int) -> RedisCall[None]:
    """Add what sessions carried to their rows, where those still stand."""
    args: list[str | int] = [now_ms]
    for one in facts:
        args += [one.requests, one.up_bytes, one.down_bytes, one.rotation]
    keys = [_row(pool, one.pak_id, one.session_id) for one in facts]
    return RedisCall(ok, script=_TELL, keys=keys, args=args)


def has_session(pool: Pool, pak_id: PakId, session_id: str) -> RedisCall[bool]:
    """Whether a session stands in a pool."""
    return command("EXISTS", _row(pool, pak_id, session_id), parse=bool)


def count_sessions(pool: Pool, owner: AccountId, now_ms: int) -> RedisCall[int]:
    """How many named sessions an owner has in a pool."""
    return command("ZCOUNT", _index(pool, owner), f"({now_ms}", "+inf", parse=int)


# Closing


def _row(pool: Pool, pak_id: PakId, session_id: str) -> str:
    return f"{{{pool.value}}}:sess:{pak_id}:{session_id}"


def _word(pool: Pool, name: str) -> str:
    return f"{{{pool.value}}}:closed:{name}"


def closings_of(
    pool: Pool, account_id: AccountId, pak_id: PakId, session_id: str | None, lease_id: str = ""
) -> list[str]:
    """Under which names a tunnel may be closed: its account, its key, its lease, its named session."""
    names = [f"account:{account_id}", f"key:{pak_id}", *([f"lease:{lease_id}"] if lease_id else [])]
    return names if session_id is None else [*names, f"session:{pool.value}:{pak_id}:{session_id}"]


def close_session(
    pool: Pool, owner: AccountId, pak_id: PakId, session_id: str, now_ms: int
) -> RedisCall[bool]:
    """Forget a session of an account; False when there is none. `publish_closed` tells the gateways."""
    name = f"session:{pool.value}:{pak_id}:{session_id}"
    keys = [_index(pool, owner), _row(pool, pak_id, session_id), _word(pool, name)]
    args: list[str | int] = [f"{pak_id}:{session_id}", CLOSED_WORD_KEPT_S, now_ms]
    return RedisCall(bool, script=_CLOSE, keys=keys, args=args)


def leave_word(pool: Pool, name: str, now_ms: int) -> RedisCall[None]:
    """For gateways that miss the push: everything under a name that began before now is closed."""
    return command("SET", _word(pool, name), now_ms, "EX", CLOSED_WORD_KEPT_S, parse=ok)


def publish_closed(name: str) -> RedisCall[None]:
    """Tell every gateway to cut the tunnels under a name."""
    return command("PUBLISH", CLOSED, name, parse=ok)


def closings(pool: Pool, names: Sequence[str]) -> RedisCall[Mapping[str, int]]:
    """Name -> when it was closed (ms), of those names that were."""

    def parse(answer: Any) -> Mapping[str, int]:
        return {name: int(at) for name, at in zip(names, answer, strict=True) if at is not None}

    return command("MGET", *(_word(pool, name) for name in names), parse=parse)
