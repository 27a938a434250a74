"""Rotations at the relay: only what was asked is answered, once, in time, by the device itself."""

from typing import Any

import pytest

from relay_node.rotation import ASKED_MAX, Rotations, RotationTeller
from shared.pool.leases import ROTATION_MAX_MS
from shared.pool.rotation import Outcome, RotationState
from shared.runtime.dynamo import StoreUnavailable
from shared.wire.peer import Text, Type

NOW = 1_800_000_000_000
YES: dict[str, Any] = {"success": True}


def answered(
    known: Rotations,
    payload: dict[str, Any],
    *,
    device: str = "d1",
    request: str = "r1",
    address: str = "192.0.2.2",
    at_ms: int = NOW,
) -> Outcome | None:
    return known.answered(device, request, Text(Type.ROTATION_COMPLETE, payload), address, at_ms)


def asked(address: str = "192.0.2.1") -> Rotations:
    known = Rotations()
    known.asked("d1", "r1", address, NOW)
    return known


@pytest.mark.parametrize(
    ("payload", "before", "outcome"),
    [
        (YES, "192.0.2.1", Outcome(RotationState.DONE, NOW, "", True)),
        (YES, "192.0.2.2", Outcome(RotationState.DONE, NOW, "", False)),
        (YES, "", Outcome(RotationState.DONE, NOW, "", None)),
        ({"success": False, "error": "no modem"}, "", Outcome(RotationState.REFUSED, NOW, "no modem", None)),
        ({}, "", Outcome(RotationState.REFUSED, NOW)),
        ({"success": "true", "error": 5}, "", Outcome(RotationState.REFUSED, NOW)),
    ],
)
def test_an_answer_tells_what_the_device_said_and_what_the_relay_saw(
    payload: dict[str, Any], before: str, outcome: Outcome
) -> None:
    known = asked(before)
    assert answered(known, payload) == outcome
    assert answered(known, payload) is None, "it is told once"


@pytest.mark.parametrize(
    "how",
    [{"device": "d2"}, {"request": "r2"}, {"request": ""}, {"at_ms": NOW + ROTATION_MAX_MS + 1}],
)
def test_what_was_not_asked_or_is_late_is_no_answer(how: dict[str, Any]) -> None:
    assert answered(asked(), YES, **how) is None


def test_a_newer_question_takes_the_place_of_an_older_one() -> None:
    known = asked()
    known.asked("d1", "r2", "", NOW)
    assert answered(known, YES) is None
    assert answered(known, YES, request="r2") is not None


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    known = asked()
    for number in range(ASKED_MAX):
        known.asked(f"other{number}", "r", "", NOW)
    assert answered(known, YES) is None
    assert answered(known, YES, device="other0", request="r") is not None


class Flaky:
    """A Redis that is away for the first call."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._away = True

    async def run(self, call: Any) -> bool:
        if self._away:
            self._away = False
            raise StoreUnavailable("redis: away")
        self.told.append(call)
        return True


async def test_an_answer_is_told_when_redis_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr("relay_node.rotation.RETRY_S", 0.0)
    redis: Any = Flaky()
    teller = RotationTeller(redis)
    task = asyncio.get_running_loop().create_task(teller.run())
    teller.rotated("d1", "r1", Outcome(RotationState.DONE, NOW))
    async with asyncio.timeout(5):
        while not redis.told:
            await asyncio.sleep(0)
    task.cancel()
    (call,) = redis.told
    assert "{peer}:rotation:d1:r1" in call.command
