"""Devices that never served and are long gone leave their account's counts, and nobody else does."""

from dataclasses import replace
from typing import Any

import pytest

from shared.kernel.ids import DeviceId
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import RedisCall, SyncRedis
from shared.supply import ghosts, service
from shared.supply import table as devices
from shared.supply.ghosts import GhostRun
from shared.supply.model import Device, Family, Kind, Origin
from shared.supply.owners import change_owner
from shared.supply.rules import GHOST_AFTER_MS, is_ghost
from shared.supply.service import EnrolFault, Enrolled
from tests.unit.supply.test_enrolment import (
    NOW_MS,
    OWNER,
    TABLE,
    arrival,
    counts,
    enrolment,
    register,
    stored,
)

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
    ("found", "ghost"),
    [
        (device(), True),
        (device(created_at_ms=NOW_MS + 1), False),
        (device(families={"f": Family("h", NOW_MS, NOW_MS + 1, 0, True)}), False),
        (device(families={"f": Family("h", NOW_MS, NOW_MS, 0, True)}), True),
        (device(proven_at_ms=1), False),
        (device(kind=Kind.MODEM), False),
        (device(withdrawn_at_ms=NOW_MS), True),
        (device(withdrawn_at_ms=NOW_MS + 1), False),
    ],
)
def test_a_ghost_never_served_and_was_not_seen(found: Device, ghost: bool) -> None:
    assert is_ghost(found, LATE) is ghost


def test_ghosts_leave_the_counts_and_may_come_back_as_new_devices(enrolment: Any, dynamo: SyncDynamo) -> None:
    held = [register(enrolment, f"rig-{n}") for n in range(4)]
    assert proves(dynamo, stored(dynamo, held[0].device.device_id))
    report = run(dynamo, Connected(held[1].device.device_id))
    assert (report.devices, report.dropped, report.kept) == (4, 2, 1)
    assert counts(dynamo) == (2, 1)
    assert run(dynamo, Connected(held[1].device.device_id)).dropped == 0
    assert register(enrolment, "rig-2").created
    assert counts(dynamo) == (3, 2)


def withdraw(dynamo: SyncDynamo, ident: str) -> None:
    assert dynamo.run(devices.revoke(TABLE, DeviceId(ident), {"withdrawn_ms": NOW_MS})) is not None


def test_withdrawn_ghosts_leave_the_counts_keep_their_no_and_are_counted_when_they_come_back(
    enrolment: Any, dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    idents = [register(enrolment, f"rig-{n}").device.device_id for n in range(3)]
    for ident in idents[:2]:
        withdraw(dynamo, ident)
    assert proves(dynamo, stored(dynamo, idents[2]))
    assert (run(dynamo, Connected()).released, counts(dynamo)) == (2, (1, 0))
    assert run(dynamo, Connected()).released == 0, "a place is given back once"
    assert enrolment.register(arrival("rig-0")) is EnrolFault.CONSENT_WITHDRAWN
    dynamo.run(devices.change(TABLE, DeviceId(idents[0]), {}, ("withdrawn_ms",)))
    again = register(enrolment, "rig-0")
    assert (again.created, again.device.device_id, counts(dynamo)) == (False, idents[0], (2, 1))
    register(enrolment, "rig-0")
    assert counts(dynamo) == (2, 1), "and is taken once"
    dynamo.run(devices.change(TABLE, DeviceId(idents[1]), {}, ("withdrawn_ms",)))
    monkeypatch.setattr(devices, "UNPROVEN_MAX", 0)
    monkeypatch.setattr(service, "UNPROVEN_MAX", 0)
    assert enrolment.register(arrival("rig-1")) is EnrolFault.UNPROVEN_LIMIT, "nobody comes back over the cap"


def test_a_released_ghost_that_may_serve_again_and_does_not_is_forgotten_and_counted_once(
    enrolment: Any, dynamo: SyncDynamo
) -> None:
    ident = register(enrolment).device.device_id
    withdraw(dynamo, ident)
    run(dynamo, Connected())
    dynamo.run(devices.change(TABLE, DeviceId(ident), {}, ("withdrawn_ms",)))
    assert (run(dynamo, Connected()).dropped, counts(dynamo)) == (1, (0, 0))
    assert register(enrolment).created


def test_ghosts_of_an_owner_who_withdrew_for_all_leave_the_counts(enrolment: Any, dynamo: SyncDynamo) -> None:
    register(enrolment)
    dynamo.run(change_owner(TABLE, OWNER, {"withdrawn_ms": NOW_MS + 1}))
    assert (run(dynamo, Connected()).released, counts(dynamo)) == (1, (0, 0))
    given = {"terms_version": "2026-11", "accepted_at_ms": NOW_MS + 2, "accepted_by": "o", "devices": 0}
    dynamo.run(change_owner(TABLE, OWNER, {"consent": given}))
    assert isinstance(enrolment.register(arrival()), Enrolled)
    assert counts(dynamo) == (1, 1)


def test_a_withdrawn_device_that_came_back_since_it_was_read_keeps_its_place(
    enrolment: Any, dynamo: SyncDynamo
) -> None:
    ident = register(enrolment).device.device_id
    withdraw(dynamo, ident)
    read = stored(dynamo, ident)
    dynamo.run(devices.change(TABLE, DeviceId(ident), {}, ("withdrawn_ms",)))
    register(enrolment)
    assert not dynamo.run(devices.release_place(TABLE, read, LATE))
    assert counts(dynamo) == (1, 1)


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
