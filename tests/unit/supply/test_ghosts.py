"""Devices that never served and are long gone leave their account's counts, and nobody else does."""

from dataclasses import replace
from typing import Any

import pytest

from shared.kernel.ids import DeviceId
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import RedisCall, SyncRedis
from shared.supply import ghosts
from shared.supply import table as devices
from shared.supply.ghosts import GhostRun
from shared.supply.model import Device, Family, Kind, Origin, Owner
from shared.supply.rules import GHOST_AFTER_MS, is_ghost
from tests.unit.supply.test_enrolment import NOW_MS, OWNER, TABLE, counts, enrolment, register, stored

__all__ = ["enrolment"]
LATE = NOW_MS + GHOST_AFTER_MS + 1


class Connected(SyncRedis):
    """Who is connected, without a server."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def run(self, call: RedisCall[Any]) -> Any:
        return object() if str(call.keys[0]).rpartition(":")[2] in self.names else None


def run(dynamo: SyncDynamo, redis: SyncRedis, now_ms: int = LATE) -> ghosts.GhostReport:
    return GhostRun(dynamo, redis, lambda name: f"psx-test-{name}").run(now_ms)


def device(**fields: Any) -> Device:
    made = Device(DeviceId("d"), OWNER, "d", Kind.AGENT, Origin(), "", "eu", NOW_MS)
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("found", "owner", "ghost"),
    [
        (device(), Owner(OWNER), True),
        (device(created_at_ms=NOW_MS + 1), Owner(OWNER), False),
        (device(families={"f": Family("h", NOW_MS, NOW_MS + 1, 0, True)}), Owner(OWNER), False),
        (device(families={"f": Family("h", NOW_MS, NOW_MS, 0, True)}), Owner(OWNER), True),
        (device(proven_at_ms=1), Owner(OWNER), False),
        (device(kind=Kind.MODEM), Owner(OWNER), False),
        (device(withdrawn_at_ms=NOW_MS), Owner(OWNER), False),
        (device(), Owner(OWNER, withdrawn_at_ms=NOW_MS), False),
    ],
)
def test_a_ghost_never_served_was_not_seen_and_never_said_no(
    found: Device, owner: Owner, ghost: bool
) -> None:
    assert is_ghost(found, owner, LATE) is ghost


def test_ghosts_leave_the_counts_and_may_come_back_as_new_devices(enrolment: Any, dynamo: SyncDynamo) -> None:
    held = [register(enrolment, f"rig-{n}") for n in range(4)]
    assert proves(dynamo, stored(dynamo, held[0].device.device_id))
    report = run(dynamo, Connected(held[1].device.device_id))
    assert (report.devices, report.dropped, report.kept) == (4, 2, 1)
    assert counts(dynamo) == (2, 1)
    assert run(dynamo, Connected(held[1].device.device_id)).dropped == 0
    assert register(enrolment, "rig-2").created
    assert counts(dynamo) == (3, 2)


def proves(dynamo: SyncDynamo, found: Device) -> bool:
    return dynamo.run(devices.prove(TABLE, found, NOW_MS))


def test_a_device_that_came_back_or_served_since_it_was_read_is_kept(
    enrolment: Any, dynamo: SyncDynamo
) -> None:
    read = [stored(dynamo, register(enrolment, name).device.device_id) for name in ("again", "served")]
    register(enrolment, "again")
    assert proves(dynamo, read[1])
    assert [dynamo.run(devices.drop_ghost(TABLE, found)) for found in read] == [False, False]
    assert counts(dynamo) == (2, 1)


def test_a_run_ends_at_its_bound_and_the_next_one_goes_on(
    enrolment: Any, dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ghosts, "DROPPED_PER_RUN_MAX", 2)
    for number in range(3):
        register(enrolment, f"rig-{number}")
    assert [run(dynamo, Connected()).dropped for _ in range(3)] == [2, 1, 0]
    assert counts(dynamo) == (0, 0)


def test_nobody_is_forgotten_while_nobody_knows_who_is_connected(enrolment: Any, dynamo: SyncDynamo) -> None:
    register(enrolment)
    with pytest.raises(StoreUnavailable):
        run(dynamo, SyncRedis("redis://127.0.0.1:9/0"))
    assert counts(dynamo) == (1, 1)
    assert dynamo.run(devices.of_account(TABLE, OWNER, 9)).rows
