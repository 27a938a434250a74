"""What supply tells the live network through Redis: where relays stand, and which home networks hold too many devices.

Both are derived from DynamoDB, written whenever that changes and by the list job every minute, so a lost Redis heals.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shared.runtime.redis import RedisCall, command, ok

CROWDED_TTL_S: Final = 600
_REGIONS: Final = "supply:regions"
_CROWDED: Final = "supply:crowded"


def put_regions(value: Mapping[str, Any]) -> RedisCall[None]:
    """The setting `relays`, as relays follow it."""
    return command("SET", _REGIONS, json.dumps(value), parse=ok)


def read_regions() -> RedisCall[dict[str, Any]]:
    """The setting `relays`; empty while nobody wrote it. Raises ValueError for what is none."""

    def parse(raw: Any) -> dict[str, Any]:
        found = json.loads(raw) if raw else {}
        if not isinstance(found, dict):
            raise ValueError("regions are an object")
        return found

    return command("GET", _REGIONS, parse=parse)


def put_crowded(networks: Iterable[str]) -> RedisCall[None]:
    """The networks that are crowded now."""
    return command("SET", _CROWDED, json.dumps(sorted(networks)), "EX", CROWDED_TTL_S, parse=ok)


def read_crowded() -> RedisCall[frozenset[str]]:
    """The networks that the last listing run found crowded."""
    return command("GET", _CROWDED, parse=lambda raw: frozenset(json.loads(raw)) if raw else frozenset())
