"""The live side of grading in Redis: the queue of due probes, and what the next listing run has to look at.

Times are the server's own, so that no prober's clock matters. All keys share one hash slot.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.grading.conduct import CUSTOMERS_MIN, EXCUSED_S, EXCUSES_MAX, PROBED_WITHIN_MS, WINDOW_S
from shared.grading.model import Conduct, Experience, Fared
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.redis import RedisCall, Script, command, ok

FAULT_WAITS_S: Final = (10, 20, 40, 80, 160, 320, 600)
"""Between two probes for which a fault asks, while they pass: what found nothing so often is less and less urgent."""
DOUBT_WAITS_S: Final = (120, 240, 480, 600)
"""The same for faults that may be the target's. Both at their slowest are 288 probes a day."""
FAULTS_KEPT_S: Final = 3600
"""The first probe that fails, and an hour without any, begin again."""
DAY_KEPT_S: Final = 2 * 86_400
EVERYTHING: Final = "*"
"""The mark that makes the listing run look at every device."""
LEFT_AFTER_MS: Final = 30_000
"""A device that left is looked at this much later: most are back by then."""
CUSTOMERS_KEPT_MAX: Final = 600
"""Fields of an exit's conduct: some two hundred customers are sample enough."""
_PREFIX: Final = "{probe}:"
_URGENT: Final = "{probe}:urgent"
_DUE: Final = "{probe}:due"
_LEASES: Final = "{probe}:leases"
_CHANGED: Final = "{probe}:changed"
_QUEUE: Final = (_URGENT, _DUE, _LEASES)
_TAKE: Final = Script.load("shared.grading", "take_due")
_FINISH: Final = Script.load("shared.grading", "finish_probe")
_ASK: Final = Script.load("shared.grading", "ask_probe")
_REPORT: Final = Script.load("shared.grading", "report_fault")
_NEXT: Final = Script.load("shared.grading", "next_probe", reads=True)
_LENGTHS: Final = Script.load("shared.grading", "queue_lengths", reads=True)
_MARK: Final = Script.load("shared.grading", "mark_changed")
_READ_CHANGED: Final = Script.load("shared.grading", "read_changed", reads=True)
_SETTLE: Final = Script.load("shared.grading", "settle_changed")
_COUNT_CONDUCT: Final = Script.load("shared.grading", "count_conduct")
_ACCUSE: Final = Script.load("shared.grading", "accuse")
_FORGET: Final = Script.load("shared.grading", "forget_conduct")
_READ_CONDUCT: Final = Script.load("shared.grading", "read_conduct")


@dataclass(frozen=True, slots=True)
class Leased:
    """Devices that one prober alone may probe until `ends_ms` of the server's clock; the first `urgent` failed somebody."""

    device_ids: tuple[DeviceId, ...]
    ends_ms: int
    urgent: int = 0


def ask_probe(device_id: DeviceId, in_ms: int = 0, *, urgent: bool = False) -> RedisCall[int]:
    """Probe a device no later than in `in_ms`."""
    return _ask([device_id], in_ms, urgent=urgent, only_new=False)


def ask_probes(device_ids: Sequence[DeviceId]) -> RedisCall[int]:
    """Probe devices as soon as somebody can."""
    return _ask(device_ids, 0, urgent=False, only_new=False)


def queue_forgotten(device_ids: Sequence[DeviceId], in_ms: int) -> RedisCall[int]:
    """Put devices into the queue that are not in it, as after a loss of Redis. Answers how many."""
    return _ask(device_ids, in_ms, urgent=False, only_new=True)


def _ask(device_ids: Sequence[DeviceId], in_ms: int, *, urgent: bool, only_new: bool) -> RedisCall[int]:
    keys = [_URGENT if urgent else _DUE, _LEASES, _DUE]
    return RedisCall(int, script=_ASK, keys=keys, args=[in_ms, int(only_new), *device_ids])


def take_due(lease_ms: int, limit: int, day: str, bytes_per_day: int) -> RedisCall[Leased]:
    """Up to `limit` devices that are due, urgent ones first; they come back after `lease_ms` unless they are finished.

    A device that cost its owner `bytes_per_day` on that day is never urgent, and reports of faults wait longest for it.
    """

    def parse(answer: Any) -> Leased:
        return Leased(tuple(DeviceId(i.decode()) for i in answer[2:]), int(answer[0]), int(answer[1]))

    args: list[str | int] = [lease_ms, limit, bytes_per_day, f"{_PREFIX}soon:", FAULTS_KEPT_S]
    args.append(len(FAULT_WAITS_S))
    return RedisCall(parse, script=_TAKE, keys=[*_QUEUE, _spent(day)], args=args)


def finish_probe(
    device_id: DeviceId, lease_ends_ms: int, next_ms: int | None, day: str, spent_bytes: int
) -> RedisCall[bool]:
    """A probe ended. False when its lease had passed to another prober, whose word on the next time counts."""
    args: list[str | int] = [
        device_id,
        lease_ends_ms,
        "" if next_ms is None else next_ms,
        0,
        spent_bytes,
        DAY_KEPT_S,
    ]
    return RedisCall(lambda a: bool(a[0]), script=_FINISH, keys=[*_QUEUE, _spent(day)], args=args)


def spent_bytes(device_id: DeviceId, day: str) -> RedisCall[int]:
    """What probes cost a device on a day (`yyyy-mm-dd`), in bytes."""
    return command("HGET", _spent(day), device_id, parse=lambda raw: int(raw or 0))


def _spent(day: str) -> str:
    return f"{{probe}}:spent:{day}"


def next_probe(device_id: DeviceId) -> RedisCall[int | None]:
    """When a device is probed next, in ms; None while it waits for its return."""
    return RedisCall(
        lambda answer: None if int(answer) < 0 else int(answer),
        script=_NEXT,
        keys=list(_QUEUE),
        args=[device_id],
    )


def report_fault(device_id: DeviceId, *, doubtful: bool = False) -> RedisCall[bool]:
    """A live tunnel failed at this exit. True when that put it to the front; False while it was probed for that just now.

    A doubtful fault may be the target's: customers of dead targets must not have owners' lines probed all the time.
    """
    waits_s = DOUBT_WAITS_S if doubtful else FAULT_WAITS_S
    keys = [_URGENT, _asked(device_id, doubtful=doubtful)]
    return RedisCall(bool, script=_REPORT, keys=keys, args=[device_id, FAULTS_KEPT_S, *waits_s])


def _asked(device_id: DeviceId, *, doubtful: bool) -> str:
    return f"{_PREFIX}{'maybe' if doubtful else 'soon'}:{device_id}"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the queue of probes is. `late_ms` is how late its stalest entry is, `marks` wait for the listing run."""

    urgent: int
    waiting: int
    due: int
    leased: int
    late_ms: int
    marks: int


def queue_lengths() -> RedisCall[Lengths]:
    """What is under way and what waits, as of now."""
    return RedisCall(lambda a: Lengths(*(int(n) for n in a)), script=_LENGTHS, keys=[*_QUEUE, _CHANGED])


# What the next listing run looks at


def account_mark(account_id: AccountId) -> str:
    """The mark for all devices of an account."""
    return f"acct:{account_id}"


def hours_mark(account_id: AccountId) -> str:
    """The mark for all devices of an account whose hours begin or end."""
    return f"hours:{account_id}"


def device_mark(device_id: DeviceId) -> str:
    """The mark for one device."""
    return f"dev:{device_id}"


def mark_left(device_ids: Sequence[DeviceId]) -> RedisCall[int]:
    """Devices left their relay: their listing is looked at in a while, if they are not back by then."""
    return mark_changed([f"left:{device_id}" for device_id in device_ids], LEFT_AFTER_MS)


def marked_device(mark: str) -> DeviceId | None:
    """The one device that a mark is about, if it is about one."""
    kind, _, name = mark.partition(":")
    return DeviceId(name) if kind in {"dev", "left", "let", "bar"} else None


def marked_conduct(mark: str) -> DeviceId | None:
    """The device of which a mark says that it failed several customers."""
    kind, _, name = mark.partition(":")
    return DeviceId(name) if kind == "let" else None


def bar_mark(device_id: DeviceId) -> str:
    """The mark for a device whose bar ends."""
    return f"bar:{device_id}"


def conduct_mark(device_id: DeviceId) -> str:
    """The mark for a device that failed several customers; gateways' count makes it, too."""
    return f"let:{device_id}"


def marked_account(mark: str) -> AccountId | None:
    """The account whose devices a mark is about, if it is about one."""
    kind, _, name = mark.partition(":")
    return AccountId(name) if kind in {"acct", "hours"} else None


def mark_changed(marks: Sequence[str], in_ms: int = 0) -> RedisCall[int]:
    """Something that these listings depend on changed: a grade, a presence, an owner's word, a setting."""
    return RedisCall(int, script=_MARK, keys=[_CHANGED], args=[in_ms, *marks])


def read_changed(limit: int) -> RedisCall[Mapping[str, int]]:
    """Marks and when they were made. They stay until they are settled, so a run that dies loses none."""

    def parse(answer: Any) -> Mapping[str, int]:
        found = list(answer or ())
        return {m.decode(): int(float(at)) for m, at in zip(found[::2], found[1::2], strict=True)}

    return RedisCall(parse, script=_READ_CHANGED, keys=[_CHANGED], args=[limit])


def settle_changed(marks: Iterable[tuple[str, int]]) -> RedisCall[int]:
    """These were looked at. One that was marked again meanwhile stays."""
    args: list[str | int] = []
    for mark, at_ms in marks:
        args += [mark, at_ms]
    return RedisCall(int, script=_SETTLE, keys=[_CHANGED], args=args)


# How customers fare


def count_conduct(told: Sequence[Fared]) -> RedisCall[int]:
    """What a gateway saw since it told last. Answers how many exits the next listing run has to look at."""
    keys: list[str] = [_CHANGED]
    args: list[str | int] = [WINDOW_S, CUSTOMERS_MIN, CUSTOMERS_KEPT_MAX]
    for one in told:
        keys += [conduct_key(one.device_id), f"{_PREFIX}customer:{one.customer}"]
        args += [one.device_id, one.customer, one.served, one.failed, ",".join(one.targets)]
    return RedisCall(int, script=_COUNT_CONDUCT, keys=keys, args=args)


def conduct_key(device_id: DeviceId) -> str:
    """Where an exit's conduct is counted."""
    return f"{_PREFIX}conduct:{device_id}"


def read_conduct(device_ids: Sequence[DeviceId]) -> RedisCall[list[Conduct]]:
    """How exits treated their customers, in their order; an empty one for those that failed nobody lately."""

    def parse(answer: Any) -> list[Conduct]:
        return [_conduct([int(n) for n in row]) for row in answer]

    return RedisCall(parse, script=_READ_CONDUCT, keys=[_CHANGED], args=[_PREFIX, *device_ids])


def _conduct(row: Sequence[int]) -> Conduct:
    """A customer's window may have begun after the exit's: what it has elsewhere is never less than nothing."""
    fours = zip(row[1::4], row[2::4], row[3::4], row[4::4], strict=True)
    return Conduct(
        tuple(Experience(s, f, max(all_s - s, 0), max(all_f - f, 0)) for s, f, all_s, all_f in fours), row[0]
    )


def accuse(device_id: DeviceId) -> RedisCall[bool]:
    """Customers say enough against an exit. True when that has stood for so long that a probe had its chance to fail."""
    return RedisCall(bool, script=_ACCUSE, keys=[conduct_key(device_id)], args=[PROBED_WITHIN_MS])


def forget_conduct(device_id: DeviceId) -> RedisCall[int]:
    """It was judged: what follows is counted afresh, and what was counted makes nobody a worse witness."""
    return RedisCall(int, script=_FORGET, keys=[conduct_key(device_id)], args=[_PREFIX, 0, 0, 0])


def excuse_conduct(device_id: DeviceId) -> RedisCall[None]:
    """A probe failed, too: that is what customers met, and probes see to it. The next fault is probed without delay."""
    keys = [conduct_key(device_id), *(_asked(device_id, doubtful=doubtful) for doubtful in (False, True))]
    return RedisCall(ok, script=_FORGET, keys=keys, args=[_PREFIX, EXCUSED_S, WINDOW_S, EXCUSES_MAX])


def put_barred(pool: Pool, device_id: DeviceId, until_ms: int) -> RedisCall[None]:
    """A device is off sale on customers' word until then, by the listing run's clock."""
    return command("ZADD", _barred(pool), until_ms, device_id, parse=ok)


def drop_unbarred(pool: Pool, now_ms: int) -> RedisCall[int]:
    """Forget those whose time is over."""
    return command("ZREMRANGEBYSCORE", _barred(pool), "-inf", now_ms, parse=int)


def count_barred(pool: Pool) -> RedisCall[int]:
    """How many of a pool are off sale on customers' word."""
    return command("ZCARD", _barred(pool), parse=int)


def _barred(pool: Pool) -> str:
    return f"{_PREFIX}barred:{pool.value}"


# What the sweep remembers

_SWEEP: Final = "{probe}:sweep"
_SWEPT: Final = "{probe}:swept"
_BEGIN_SWEEP: Final = Script.load("shared.grading", "begin_sweep")
_GHOSTS: Final = "{probe}:ghosts"
HOMES_KEPT_S: Final = 3600
_FLEET: Final = "{probe}:fleet"
_HOMES: Final = Script.load("shared.grading", "put_homes")


def begin_sweep(segments: int) -> RedisCall[tuple[int, int]]:
    """The next segment to sweep, counted on, and the server's time; 1 for the first one after Redis lost everything."""
    return RedisCall(
        lambda answer: (int(answer[0]) % segments, int(answer[1])), script=_BEGIN_SWEEP, keys=[_SWEEP]
    )


def put_swept(begun_ms: Mapping[int, int]) -> RedisCall[int]:
    """These segments were looked at as they were then or later, and what differed was mended."""
    pairs = [part for number, at_ms in begun_ms.items() for part in (str(number), at_ms)]
    return command("HSET", _SWEPT, *pairs, parse=int)


def all_swept_ms(segments: int) -> RedisCall[int]:
    """When the segment that was swept longest ago was; 0 while one was never."""

    def parse(answer: Any) -> int:
        found = [int(at_ms) for at_ms in answer or ()]
        return min(found) if len(found) >= segments else 0

    return command("HVALS", _SWEPT, parse=parse)


def sweep_stands() -> RedisCall[bool]:
    """Whether Redis remembers that there ever was a sweep; False means that it lost everything, or is new."""
    return command("EXISTS", _SWEEP, parse=bool)


def read_ghost_cursor(pool: Pool) -> RedisCall[str]:
    """Where the look at what Redis has on sale goes on."""
    return command("HGET", _GHOSTS, pool.value, parse=lambda raw: raw.decode() if raw else "0")


def put_ghost_cursor(pool: Pool, cursor: str) -> RedisCall[None]:
    """Remember where to go on."""
    return command("HSET", _GHOSTS, pool.value, cursor, parse=ok)


def put_fleet_part(segment: int, counts: Mapping[str, int]) -> RedisCall[None]:
    """What a segment has, in place of what it had."""
    return command("HSET", _FLEET, str(segment), json.dumps(dict(counts)), parse=ok)


def read_fleet() -> RedisCall[Counter[str]]:
    """All segments together, each as it was last seen."""

    def parse(answer: Any) -> Counter[str]:
        total: Counter[str] = Counter()
        for part in answer or ():
            total.update(json.loads(part))
        return total

    return command("HVALS", _FLEET, parse=parse)


def put_homes(segment: int, counts: Mapping[str, int]) -> RedisCall[int]:
    """How many devices a segment has in each home network, in place of what it had."""
    args: list[str | int] = [HOMES_KEPT_S]
    for network, count in counts.items():
        args += [network, count]
    return RedisCall(int, script=_HOMES, keys=[f"{{probe}}:homes:{segment}"], args=args)


def read_homes(segment: int) -> RedisCall[Mapping[str, int]]:
    """What `put_homes` left."""

    def parse(answer: Any) -> Mapping[str, int]:
        pairs = answer.items() if isinstance(answer, Mapping) else zip(answer[::2], answer[1::2], strict=True)
        return {network.decode(): int(count) for network, count in pairs}

    return command("HGETALL", f"{{probe}}:homes:{segment}", parse=parse)
