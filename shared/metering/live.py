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
_CLOSE: Final = Script.load("shared.metering", "close")
_OPEN: Final = Script.load("shared.metering", "open")
_LEASE_ONLY: Final = -1
KEYS_PER_CALL: Final = 500
SLICES_MAX: Final = 1024
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


def flushes(
    gateway_id: GatewayId, sequence: int, totals: Mapping[PakId, int], asks: Mapping[PakId, Ask]
) -> list[RedisCall[Mapping[PakId, Meter]]]:
    """A cut's totals in slices, so that no call holds Redis for longer than some milliseconds; run them in this order.

    The same cut is cut alike every time, and each slice has a number of its own: a repeat after any of them adds nothing
    twice and leaves nothing out. A gateway that flushes so never calls `flush` itself.
    """
    names = sorted(totals)
    size = max(KEYS_PER_CALL, -(-len(names) // SLICES_MAX))
    slices = [names[start : start + size] for start in range(0, len(names), size)] or [[]]
    return [
        flush(
            gateway_id,
            sequence * SLICES_MAX + number,
            {pak_id: totals[pak_id] for pak_id in some},
            {pak_id: asks[pak_id] for pak_id in some if pak_id in asks},
        )
        for number, some in enumerate(slices)
    ]


def lease(gateway_id: GatewayId, asks: Mapping[PakId, Ask]) -> RedisCall[Mapping[PakId, Meter]]:
    """Lease the next bytes of keys, between two flushes."""
    return flush(gateway_id, _LEASE_ONLY, {}, asks)


def open_meter(pak_id: PakId, used_bytes: int, cap_bytes: int | None) -> RedisCall[Meter]:
    """Bring the live meter to at least what DynamoDB knows; heals a lost Redis and carries a changed cap."""
    args: list[str | int] = [pak_id, used_bytes, "" if cap_bytes is None else cap_bytes]
    return RedisCall(lambda used: Meter(int(used), cap_bytes), script=_OPEN, keys=[_USED, _CAP], args=args)


def close_meter(pak_id: PakId, used_bytes: int) -> RedisCall[bool]:
    """Forget the live meter of a key that ended; False while it counts more than is known, or somebody carries for it.

    A key that was given more time in the same moment must be opened again: without its cap it has none here.
    """
    keys = [_USED, _CAP, f"{{meter}}:lease:{pak_id}"]
    return RedisCall(bool, script=_CLOSE, keys=keys, args=[pak_id, used_bytes])


def read_used(pak_id: PakId) -> RedisCall[int | None]:
    """Bytes used, live; None when no gateway has met this key since Redis was last lost."""
    return command("HGET", _USED, pak_id, parse=lambda raw: None if raw is None else int(raw))


def read_leased(pak_id: PakId, now_ms: int) -> RedisCall[int]:
    """Bytes that gateways may have carried for a key and not told yet: the leases that they hold."""

    def parse(answer: Any) -> int:
        rows = answer.values() if isinstance(answer, Mapping) else (answer or ())[1::2]
        held = (row.decode().partition(":") for row in rows)
        return sum(int(size) for size, _, until_ms in held if int(until_ms) > now_ms)

    return command("HGETALL", f"{{meter}}:lease:{pak_id}", parse=parse)


def read_traffic() -> RedisCall[int]:
    """Bytes that all gateways flushed, of all keys, since Redis was last lost."""
    return command("HGET", _USED, "#", parse=lambda raw: int(raw or 0))
