"""The queue of due probes in Redis: stalest first, leased, with a debounced way to the front for reported faults."""

from collections.abc import Sequence
from typing import Any, Final

from shared.kernel.ids import DeviceId
from shared.runtime.redis import RedisCall, Script, command, ok

FAULT_DEBOUNCE_S: Final = 10
_QUEUE: Final = "{probe}:due"
_TAKE: Final = Script.load("shared.grading", "take_due")
_REPORT: Final = Script.load("shared.grading", "report_fault")


def enqueue_probe(device_id: DeviceId, due_ms: int) -> RedisCall[None]:
    """Probe a device at a time, replacing the time that stood there."""
    return command("ZADD", _QUEUE, due_ms, device_id, parse=ok)


def take_due(now_ms: int, lease_ms: int, limit: int) -> RedisCall[Sequence[DeviceId]]:
    """Up to `limit` devices that are due; they come back after `lease_ms` unless they are enqueued again."""

    def parse(answer: Any) -> Sequence[DeviceId]:
        return tuple(DeviceId(i.decode()) for i in answer or ())

    return RedisCall(parse, script=_TAKE, keys=[_QUEUE], args=[now_ms, lease_ms, limit])


def forget_probe(device_id: DeviceId) -> RedisCall[None]:
    """Probe a device no more, until it is enqueued again."""
    return command("ZREM", _QUEUE, device_id, parse=ok)


def report_fault(device_id: DeviceId, now_ms: int) -> RedisCall[bool]:
    """A live tunnel failed at this exit. True when that put it to the front; False within the debounce."""
    keys = [_QUEUE, f"{{probe}}:soon:{device_id}"]
    return RedisCall(bool, script=_REPORT, keys=keys, args=[device_id, now_ms, FAULT_DEBOUNCE_S])
