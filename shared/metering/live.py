"""Live counters in Redis: a flush is applied once by (gateway, sequence), and leases keep all gateways within a cap."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from shared.kernel.ids import GatewayId, PakId
from shared.metering.model import LEASE_LEAST_BYTES, LEASE_LIFE_MS, Ask, Meter
from shared.runtime.redis import RedisCall, Script, command

_USED: Final = "{meter}:used"
_CAP: Final = "{meter}:cap"
_SEQUENCES: Final = "{meter}:seq"
_FLUSH: Final = Script.load("shared.metering", "flush")
_OPEN: Final = Script.load("shared.metering", "open")
_LEASE_ONLY: Final = -1
_NO_ASK: Final = Ask(0, -1)


def _cap(raw: bytes) -> int | None:
    return int(raw) if raw else None


def flush(
    gateway_id: GatewayId,
    sequence: int,
    totals: Mapping[PakId, int],
    asks: Mapping[PakId, Ask] = MappingProxyType({}),
) -> RedisCall[Mapping[PakId, Meter]]:
    """Add a cut's totals; the same sequence again adds nothing. Leases are renewed for the keys in `asks`."""
    paks = list(dict.fromkeys((*totals, *asks)))
    args: list[str | int] = [gateway_id, sequence, LEASE_LEAST_BYTES, LEASE_LIFE_MS]
    for pak_id in paks:
        ask = asks.get(pak_id, _NO_ASK)
        args += [pak_id, totals.get(pak_id, 0), ask.unreported_bytes, ask.want_bytes]

    def parse(answer: Any) -> Mapping[PakId, Meter]:
        rows = zip(paks, answer[::3], answer[1::3], answer[2::3], strict=True)
        return {pak: Meter(int(used), _cap(cap), int(lease)) for pak, used, cap, lease in rows}

    keys = [_USED, _CAP, _SEQUENCES, *(f"{{meter}}:lease:{pak_id}" for pak_id in paks)]
    return RedisCall(parse, script=_FLUSH, keys=keys, args=args)


def lease(gateway_id: GatewayId, asks: Mapping[PakId, Ask]) -> RedisCall[Mapping[PakId, Meter]]:
    """Lease the next bytes of keys, between two flushes."""
    return flush(gateway_id, _LEASE_ONLY, {}, asks)


def open_meter(pak_id: PakId, used_bytes: int, cap_bytes: int | None) -> RedisCall[Meter]:
    """Bring the live meter to at least what DynamoDB knows; heals a lost Redis and carries a changed cap."""
    args: list[str | int] = [pak_id, used_bytes, "" if cap_bytes is None else cap_bytes]
    return RedisCall(lambda used: Meter(int(used), cap_bytes), script=_OPEN, keys=[_USED, _CAP], args=args)


def read_used(pak_id: PakId) -> RedisCall[int | None]:
    """Bytes used, live; None when no gateway has met this key since Redis was last lost."""
    return command("HGET", _USED, pak_id, parse=lambda raw: None if raw is None else int(raw))


def read_traffic() -> RedisCall[int]:
    """Bytes that all gateways flushed, of all keys, since Redis was last lost."""
    return command("HGET", _USED, "#", parse=lambda raw: int(raw or 0))
