"""A node's end: programs drained first, then out of the mesh."""

from dataclasses import replace
from typing import cast

import pytest

from gateway_node.settings import LAST_FLUSH_MAX_S, GatewaySettings
from infra.mesh.model import Role
from infra.mesh.table import read_node, register
from infra.nodes.boot import Metadata
from infra.nodes.lifecycle import (
    LEAVE_MAX_S,
    is_leaving,
    leave,
    served_by,
    signal_ready,
    stop_flushed,
    wait_until,
)
from local.deployment_files import NODES
from shared.runtime.dynamo import SyncDynamo
from tests.support.stores import PREFIX
from tests.unit.mesh.world import node

TABLE = PREFIX + "mesh"


def test_programs_are_drained_before_the_mesh_is_left(dynamo: SyncDynamo) -> None:
    dynamo.run(register(TABLE, node("i-1", heartbeat_ms=1)))
    seen: list[tuple[str, bool]] = []

    def stop(unit: str) -> None:
        row = dynamo.run(read_node(TABLE, Role.RELAY, "i-1"))
        seen.append((unit, row is not None and row.removed))

    leave("relay", "i-1", TABLE, dynamo, stop)
    assert seen == [("psx-relay", False), ("psx-mesh", True)]


def test_a_gateway_stops_probing_before_it_stops_serving() -> None:
    assert served_by("gateway") == ("psx-prober", "psx-gateway")


def test_leaving_twice_or_without_a_row_is_no_error(dynamo: SyncDynamo) -> None:
    dynamo.run(register(TABLE, replace(node("i-1", heartbeat_ms=1))))
    for _ in range(2):
        leave("relay", "i-1", TABLE, dynamo, lambda unit: None)
    leave("relay", "i-2", TABLE, dynamo, lambda unit: None)


def test_waiting_ends_when_it_holds_and_when_it_takes_too_long() -> None:
    answers = iter([False, False, True])
    slept: list[float] = []
    assert wait_until(lambda: next(answers), 60, slept.append)
    assert len(slept) == 2
    assert not wait_until(lambda: False, 60, slept.append)


def test_a_probe_target_leaves_without_a_mesh(dynamo: SyncDynamo) -> None:
    stopped: list[str] = []
    leave("target", "i-3", TABLE, dynamo, stopped.append)
    assert stopped == ["psx-target"]


@pytest.mark.parametrize(("said", "leaves"), [("InService", False), ("Terminated", True), (None, False)])
def test_a_node_leaves_when_auto_scaling_says_so_and_never_because_nobody_answers(
    said: str | None, leaves: bool
) -> None:
    class Service:
        def get(self, path: str) -> str:
            assert path == "autoscaling/target-lifecycle-state"
            if said is None:
                raise TimeoutError
            return said

    assert is_leaving(cast("type[Metadata]", Service)) is leaves


@pytest.mark.parametrize(("healthy", "status"), [(True, "SUCCESS"), (False, "FAILURE")])
def test_an_update_is_told_whether_the_node_serves(healthy: bool, status: str) -> None:
    told: list[dict[str, str]] = []

    class Client:
        def signal_resource(self, **given: str) -> None:
            told.append(given)

    said = {"PSX_NODE_STACK": "psx-dev-relays", "PSX_NODE_GROUP": "Fleet", "PSX_NODE_INSTANCE": "i-1"}
    signal_ready(Client(), said, healthy)
    assert told == [
        {"StackName": "psx-dev-relays", "LogicalResourceId": "Fleet", "UniqueId": "i-1", "Status": status}
    ]


class Machine:
    """Units whose gateway fails to write its counts a few times; every turn takes a while."""

    def __init__(self, fails: int, serves: bool = True) -> None:
        self.fails, self.serves = fails, serves
        self.done: list[str] = []
        self.now_s = 0.0

    def start(self, unit: str) -> None:
        self.done.append(f"start {unit}")

    def stop(self, unit: str) -> None:
        self.done.append(f"stop {unit}")
        self.now_s += 100
        self.fails -= 1

    def ended_well(self, unit: str) -> bool:
        return self.fails < 0

    def leave(self, unit: str) -> None:
        stop_flushed(self, unit, lambda: self.serves, 450, lambda: self.now_s)


@pytest.mark.parametrize(("fails", "turns"), [(0, 0), (2, 2), (9, 4)])
def test_a_gateway_is_stopped_until_its_counts_are_written_and_no_longer_than_the_hook_waits(
    fails: int, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(fails)
    machine.leave("psx-gateway")
    assert machine.done == ["stop psx-gateway", *["start psx-gateway", "stop psx-gateway"] * turns]
    assert ("lost with this machine" in caplog.text) is (fails == 9)


def test_a_gateway_that_was_stopped_before_it_served_has_written_nothing() -> None:
    machine = Machine(fails=1, serves=False)
    machine.leave("psx-gateway")
    assert machine.done.count("start psx-gateway") == 4


def test_what_counts_nothing_is_stopped_once() -> None:
    machine = Machine(fails=9)
    machine.leave("psx-relay")
    assert machine.done == ["stop psx-relay"]


def test_systemd_waits_for_drain_and_last_flush_and_the_hook_for_both() -> None:
    unit = (NODES / "units" / "psx-gateway.service").read_text()
    stop_s = int(unit.partition("TimeoutStopSec=")[2].split()[0])
    drain_s = max(
        m.le for m in GatewaySettings.model_fields["gateway_drain_max_s"].metadata if hasattr(m, "le")
    )
    hook_s = int((NODES / "nodes.yml").read_text().partition("HeartbeatTimeout:")[2].split()[0])
    assert drain_s + LAST_FLUSH_MAX_S < stop_s < LEAVE_MAX_S < hook_s
