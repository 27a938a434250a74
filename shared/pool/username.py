"""The proxy username as a routing request: `psx_<account>-<pool>-<country>[-token-value ...]`.

The parser heals instead of failing; what it healed is returned as corrections. Only a missing username, or one that is
longer than 256 characters, is refused. A filter that must hold and says nothing usable is kept as one that no exit meets:
dropped, it would sell what was not asked for.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country
from shared.pool.model import Failover, Rotation, Route

MAX_USERNAME_CHARS: Final = 256
PARSED_KEPT: Final = 4096
TTL_MIN_S: Final = 60
TTL_MAX_S: Final = 2_592_000
TTL_DEFAULT_S: Final = 3600

_POOLS: Final = {
    **dict.fromkeys(("mbl", "mobile", "modem", "lte", "4g", "5g"), (Pool.MBL,)),
    **dict.fromkeys(("peer", "residential", "resi", "home"), (Pool.PEER,)),
    **dict.fromkeys(("any", "best"), (Pool.MBL, Pool.PEER)),
}
_COUNTRY_ALIASES: Final = {
    "usa": "us",
    "america": "us",
    "uk": "gb",
    "britain": "gb",
    "england": "gb",
    "georgia": "ge",
}
_COUNTRY: Final = re.compile(r"[a-z]{2}")
_SESSION: Final = re.compile(r"[a-z0-9_]{1,64}")
_SLUG: Final = re.compile(r"[a-z0-9_.]{1,64}")
_FILTERS: Final = frozenset({"iptype", "isp", "asn"})
_PIN_KINDS: Final = frozenset({"lease", "device", "port"})


class UsernameMissing(ValueError):
    """There is no username, or it is too long to be one."""


@dataclass
class _Draft:
    found: dict[str, Any] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    corrections: list[str] = field(default_factory=list)

    def correct(self, what: str) -> None:
        self.corrections.append(what)


@lru_cache(maxsize=PARSED_KEPT)
def parse_username(text: str) -> Route:
    """What a username asks for. Raises UsernameMissing; everything else is healed and told in `corrections`."""
    if not text or len(text) > MAX_USERNAME_CHARS:
        raise UsernameMissing
    account, *parts = text.lower().split("-")
    draft = _Draft()
    pools = _pool(parts[0] if parts else "any", draft)
    country = _country(parts[1] if len(parts) > 1 else "any", draft)
    tokens = iter(parts[2:])
    for token in tokens:
        _token(token, tokens, draft)
    found = draft.found
    return Route(
        account_id=AccountId(account),
        pools=pools,
        country=country,
        rotation=found.get("rot", Rotation.AUTO10),
        session_id=found.get("sid"),
        ttl_s=found.get("ttl", TTL_DEFAULT_S),
        carrier=found.get("carrier"),
        city=found.get("city"),
        ip_type=found.get("iptype"),
        isp=found.get("isp"),
        asn=found.get("asn"),
        failover=found.get("failover", Failover.SAME_COUNTRY),
        strict=found.get("strict", False),
        pin=found.get("pin"),
        unusable=tuple(sorted(draft.unusable)),
        corrections=tuple(draft.corrections),
    )


def _pool(text: str, draft: _Draft) -> tuple[Pool, ...]:
    if text not in _POOLS:
        draft.correct("pool=any")
    return _POOLS.get(text, _POOLS["any"])


def _country(text: str, draft: _Draft) -> Country | None:
    try:
        return read_country(text)
    except ValueError:
        draft.correct("country=any")
        return None


def read_country(text: str) -> Country | None:
    """The country that a word names; None for any. Raises ValueError for what is no code and no alias of one."""
    if text in {"any", ""}:
        return None
    code = _COUNTRY_ALIASES.get(text, text)
    if not _COUNTRY.fullmatch(code):
        raise ValueError("not a country code")
    return Country("gb" if code == "uk" else code)


def _token(name: str, rest: Iterator[str], draft: _Draft) -> None:
    if name == "strict":
        draft.found["strict"] = True
        return
    if name == "pin":
        kind, ident = next(rest, ""), next(rest, "")
        if kind in _PIN_KINDS and ident:
            draft.found["pin"] = (kind, ident)
        else:
            draft.correct("pin=dropped")
        return
    reader = _READERS.get(name)
    if reader is None:
        draft.correct(f"{_printable(name)}=unknown")
        return
    value = next(rest, "")
    read = reader(value)
    if read is None and name in _FILTERS:
        draft.unusable.add(name)
        draft.correct(f"{name}=unusable")
        return
    if read is None:
        draft.correct(f"{name}=dropped")
        return
    draft.found[name] = read
    draft.unusable.discard(name)
    if name == "ttl" and str(read) != value:
        draft.correct(f"ttl={read}")


def _printable(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "?", name)[:32] or "empty"


def _rotation(value: str) -> Rotation | None:
    if value == "hard":
        return Rotation.STICKY
    return Rotation(value) if value in set(Rotation) else None


def _ttl(value: str) -> int | None:
    if not (value.isascii() and value.isdecimal()) or len(value) > 12:
        return None
    return min(max(int(value), TTL_MIN_S), TTL_MAX_S)


def _slug(value: str) -> str | None:
    return value if _SLUG.fullmatch(value) else None


def _isp(value: str) -> str | None:
    return value if _SLUG.fullmatch(value) and value.strip("_.") else None


def _session(value: str) -> str | None:
    return value if _SESSION.fullmatch(value) else None


def _ip_type(value: str) -> IpType | None:
    return IpType(value) if value in {IpType.MOBILE, IpType.RESIDENTIAL, IpType.DATACENTER} else None


def _asn(value: str) -> int | None:
    digits = value.removeprefix("as")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 7 else None


def _failover(value: str) -> Failover | None:
    return Failover(value) if value in set(Failover) else None


_READERS: Final[dict[str, Callable[[str], object]]] = {
    "rot": _rotation,
    "sid": _session,
    "ttl": _ttl,
    "carrier": _slug,
    "city": _slug,
    "iptype": _ip_type,
    "isp": _isp,
    "asn": _asn,
    "failover": _failover,
}
