"""Live counters in Redis: a flush is applied once by (gateway, sequence) and answers what every key has used."""

from collections.abc import Mapping
from typing import Any, Final

from shared.kernel.ids import GatewayId, PakId
from shared.metering.model import Meter
from shared.runtime.redis import RedisCall, Script, command

_USED: Final = "{meter}:used"
_CAP: Final = "{meter}:cap"
_SEQUENCES: Final = "{meter}:seq"
_FLUSH: Final = Script.load("shared.metering", "flush")
_OPEN: Final = Script.load("shared.metering", "open")


def _cap(raw: bytes) -> int | None:
    return int(raw) if raw else None


def flush(
    gateway_id: GatewayId, sequence: int, totals: Mapping[PakId, int]
) -> RedisCall[Mapping[PakId, Meter]]:
    """Add a batch's totals; the same sequence again adds nothing and answers the same."""
    paks = list(totals)
    args: list[str | int] = [gateway_id, sequence]
    for pak_id in paks:
        args += [pak_id, totals[pak_id]]

    def parse(answer: Any) -> Mapping[PakId, Meter]:
        return {p: Meter(int(answer[2 * i]), _cap(answer[2 * i + 1])) for i, p in enumerate(paks)}

    return RedisCall(parse, script=_FLUSH, keys=[_USED, _CAP, _SEQUENCES], args=args)


def open_meter(pak_id: PakId, used_bytes: int, cap_bytes: int | None) -> RedisCall[Meter]:
    """Bring the live meter to at least what DynamoDB knows; heals a lost Redis and carries a changed cap."""
    args: list[str | int] = [pak_id, used_bytes, "" if cap_bytes is None else cap_bytes]
    return RedisCall(lambda used: Meter(int(used), cap_bytes), script=_OPEN, keys=[_USED, _CAP], args=args)


def read_used(pak_id: PakId) -> RedisCall[int | None]:
    """Bytes used, live; None when no gateway has met this key since Redis was last lost."""
    return command("HGET", _USED, pak_id, parse=lambda raw: None if raw is None else int(raw))
