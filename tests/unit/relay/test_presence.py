"""Arrivals and departures reach Redis a hundred devices a call, and none is lost while it is away."""

import asyncio
from typing import Any, cast

import pytest

from relay_node import presence
from relay_node.presence import BATCH, PresenceWriter
from relay_node.registry import Device, Hooks, Registry
from shared.runtime.dynamo import StoreUnavailable
from shared.supply.model import Origin


class Recorder:
    """A Redis that notes the scripts it ran; `away` calls fail first. Devices in `revoked` may not come."""

    def __init__(self, away: int = 0, revoked: tuple[str, ...] = ()) -> None:
        self.away = away
        self.revoked = revoked
        self.scripts: list[tuple[str, int]] = []

    async def run(self, call: Any) -> Any:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        if call.script is None:
            return True
        name = call.script.name
        self.scripts.append((name, len(call.keys)))
        if name == "put_presence":
            ids = [key.partition("live:")[2] for key in call.keys]
            return call.parse([[int(i not in self.revoked), int(i in self.revoked), 0] for i in ids])
        if name == "drop_presence":
            return call.parse([1] * len(call.keys))
        self.scripts[-1] = (name, len(call.args))
        return call.parse(len(call.args))


def writer(redis: Recorder) -> PresenceWriter:
    asked: Any = redis
    return PresenceWriter(asked, "r1", ("127.0.0.1", 9000))


def device(name: str) -> Device:
    return Device(name, "psx_farm", Origin(), "127.10.1.1", 1)


async def test_a_crowd_is_told_of_in_few_calls() -> None:
    redis = Recorder()
    told = writer(redis)
    for number in range(2 * BATCH):
        told.arrived(device(f"d{number}"))
    await told.drain()
    one = [("put_presence", BATCH), ("ask_probe", 2 + BATCH), ("mark_changed", 1 + BATCH)]
    assert redis.scripts == one * 2
    for number in range(BATCH):
        told.left(device(f"d{number}"))
    await told.drain()
    assert redis.scripts[6:] == [("drop_presence", BATCH), ("mark_changed", 1 + BATCH)]


async def test_what_redis_did_not_take_is_told_again_but_for_what_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "RETRY_S", 0)
    redis = Recorder(away=2)
    told = writer(redis)
    told.arrived(device("d1"))
    told.arrived(device("d2"))
    told.left(device("d2"))
    await told.drain()
    assert redis.scripts == [
        ("put_presence", 1), ("ask_probe", 3), ("mark_changed", 2), ("drop_presence", 1), ("mark_changed", 2),
    ]  # fmt: skip
    assert told.fault is None


async def test_a_fault_lasts_until_the_same_duty_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay_node.presence.RELAY_BEAT_S", 0.01)
    told, here = writer(Recorder(away=1)), Registry(cast(Hooks, None))
    faults = [told.fault]
    beating = asyncio.create_task(told.beat_for_ever(here))
    async with asyncio.timeout(5):
        while faults[-1] is not None or len(faults) < 3:
            await asyncio.sleep(0)
            if told.fault != faults[-1]:
                faults.append(told.fault)
    assert faults == [None, "away", None]
    beating.cancel()


async def test_a_device_that_is_renewed_is_not_probed_for_it_and_a_revoked_one_is_let_go() -> None:
    redis = Recorder(revoked=("d2",))
    told, revoked = writer(redis), list[tuple[str, int, int]]()
    told.revoke = lambda *what: revoked.append(what)
    told.arrived(device("d1"))
    await told.drain()
    redis.scripts.clear()
    told._wish("d1", device("d1"))
    told.arrived(device("d2"))
    await told.drain()
    assert redis.scripts == [("put_presence", 2)]
    assert revoked == [("d2", 1, 0)]


async def test_who_comes_a_moment_later_is_told_of_in_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "GATHER_S", 0.1)
    redis = Recorder()
    told = writer(redis)
    running = asyncio.create_task(told.run())
    told.arrived(device("d1"))
    await asyncio.sleep(0)  # it has begun to wait
    told.arrived(device("d2"))
    async with asyncio.timeout(10):
        while not redis.scripts:
            await asyncio.sleep(0.01)
    running.cancel()
    assert redis.scripts[0] == ("put_presence", 2)
