"""Controllers of a whole mesh on one table: joining, cuts, outages, removal, change of keys. No time but the test's."""

import logging
import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest

from infra.mesh import rules
from infra.mesh.controller import Controller, NoAddress, NodeRemoved
from infra.mesh.model import MeshKey, Node, Role
from infra.mesh.settings import MeshSettings
from infra.mesh.table import forget, publish, read_node, register, remove
from shared.runtime.dynamo import AsyncDynamo, DynamoRequest, StoreUnavailable, SyncDynamo, put
from shared.runtime.settings import Stage
from tests.support.permissions import as_function
from tests.support.stores import PREFIX
from tests.unit.mesh.world import FakeWireGuard, World, node

pytestmark = pytest.mark.slow

TABLE = PREFIX + "mesh"


class Store:
    """The in-process table as nodes run requests, and an outage of it."""

    def __init__(self, dynamo: SyncDynamo) -> None:
        self.dynamo = dynamo
        self.away: set[str] = set()

    def for_node(self, name: str, role: Role) -> AsyncDynamo:
        """One node's way to the table, with what its role may do there."""

        class Way:
            async def run(_, request: DynamoRequest[Any]) -> Any:
                if name in self.away:
                    raise StoreUnavailable("query: EndpointConnectionError")
                with as_function(f"{role}-node"):
                    return self.dynamo.run(request)

        return cast("AsyncDynamo", Way())


class Mesh:
    """Nodes that the test steps."""

    def __init__(self, dynamo: SyncDynamo, folder: Path) -> None:
        self.world = World()
        self.store = Store(dynamo)
        self.folder = folder
        self.nodes: dict[str, tuple[Controller, FakeWireGuard]] = {}
        self.nudged: list[IPv4Address] = []

    def settings(self, name: str, role: Role, number: int = 0) -> MeshSettings:
        return MeshSettings(
            stage=Stage.LOCAL, table_prefix=PREFIX, redis_url="redis://unused", mesh_node_id=name, mesh_role=role,
            mesh_region="eu", mesh_region_number=number, mesh_endpoint=f"198.51.100.{len(self.nodes) + 1}:51820",
            mesh_state_dir=self.folder / name, mesh_private_listen="127.0.0.1:0",
        )  # fmt: skip

    async def add(self, name: str, role: Role, number: int = 0) -> Controller:
        wireguard = self.nodes[name][1] if name in self.nodes else self.world.join(name)
        controller = Controller(
            self.settings(name, role, number),
            self.store.for_node(name, role),
            wireguard,
            lambda: self.world.now_ms,
            self.nudged.extend,
        )
        self.nodes[name] = controller, wireguard
        await controller.start()
        return controller

    async def rounds(self, count: int = 1, every_s: float = 10) -> None:
        """Rounds of everybody, and in between the look that nodes take at links that wait."""
        for _ in range(count):
            for controller, wireguard in self.nodes.values():
                await controller.round()
                self.world.pass_s(0.25)
                for watching, other in self.nodes.values():
                    if other.waits() and not other.failing and other is not wireguard:
                        await watching.reconcile()
            self.world.pass_s(every_s)

    def carries(self, one: str, other: str) -> bool:
        return self.world.carries(self.nodes[one][1], self.nodes[other][1])


@pytest.fixture
async def mesh(dynamo: SyncDynamo, tmp_path: Path) -> Mesh:
    """A gateway and two relays that know one another."""
    made = Mesh(dynamo, tmp_path)
    await made.add("gw", Role.GATEWAY)
    await made.add("eu", Role.RELAY)
    await made.add("us", Role.RELAY, number=1)
    await made.rounds(3)
    return made


async def test_gateways_and_relays_meet_and_relays_do_not(mesh: Mesh) -> None:
    assert mesh.carries("gw", "eu")
    assert mesh.carries("gw", "us")
    assert not mesh.carries("eu", "us")
    assert mesh.nodes["us"][0].me.address in rules.region_network(1)


async def test_a_settled_mesh_is_left_alone(mesh: Mesh) -> None:
    before = [wireguard.applied for _, wireguard in mesh.nodes.values()]
    await mesh.rounds(5)
    assert [wireguard.applied for _, wireguard in mesh.nodes.values()] == before


async def test_what_somebody_changed_by_hand_is_put_right(mesh: Mesh) -> None:
    mesh.nodes["gw"][1]._peers.popitem()
    await mesh.rounds(2)
    assert mesh.carries("gw", "eu")
    assert mesh.carries("gw", "us")


async def test_an_outage_of_the_table_cuts_nothing(mesh: Mesh) -> None:
    mesh.store.away = set(mesh.nodes)
    await mesh.rounds(6, 100)
    assert mesh.nodes["gw"][0].fault() == "no round succeeded within a minute"
    mesh.store.away.clear()
    await mesh.rounds(1)
    assert mesh.carries("gw", "eu")
    assert mesh.carries("gw", "us")
    assert mesh.nodes["gw"][0].fault() is None


async def test_a_node_that_only_the_table_does_not_hear_is_kept(mesh: Mesh) -> None:
    mesh.store.away = {"eu"}
    await mesh.rounds(50, 100)
    assert mesh.carries("gw", "eu")


async def test_a_dead_node_is_left_out_then_forgotten_and_its_address_free(mesh: Mesh) -> None:
    address = mesh.nodes["eu"][0].me.address
    mesh.world.interfaces.remove(mesh.nodes.pop("eu")[1])
    await mesh.rounds(4, 100)
    assert address not in {a for link in (await mesh.nodes["gw"][1].links()).values() for a in link.addresses}
    await mesh.rounds(36, 100)
    assert mesh.store.dynamo.run(read_node(TABLE, Role.RELAY, "eu")) is None
    assert (await mesh.add("eu", Role.RELAY)).me.address == address
    await mesh.rounds(3)
    assert mesh.carries("gw", "eu")


async def test_a_removed_node_is_dropped_at_once_and_does_not_come_back(mesh: Mesh) -> None:
    row = mesh.store.dynamo.run(read_node(TABLE, Role.RELAY, "eu"))
    assert row is not None
    assert mesh.store.dynamo.run(remove(TABLE, row, mesh.world.now_ms)) is None
    await mesh.nodes["gw"][0].round()
    assert not mesh.carries("gw", "eu")
    assert mesh.carries("gw", "us")
    with pytest.raises(NodeRemoved):
        await mesh.nodes["eu"][0].round()
    with pytest.raises(NodeRemoved):
        await mesh.add("eu", Role.RELAY)


async def test_a_restarted_controller_keeps_address_key_and_links(mesh: Mesh) -> None:
    before = mesh.nodes["eu"][0].me
    await mesh.add("eu", Role.RELAY)
    assert mesh.carries("gw", "eu")
    await mesh.rounds(1)
    after = mesh.nodes["eu"][0].me
    assert (after.address, after.key) == (before.address, before.key)
    assert mesh.carries("gw", "eu")


async def test_a_key_changes_without_a_round_of_the_peers_in_between(mesh: Mesh) -> None:
    relay, gateway = mesh.nodes["eu"][0], mesh.nodes["gw"][0]
    old = relay.me.key
    relay.rotate()
    await relay.round()
    assert _announced(relay) is not None
    await gateway.round()
    mesh.store.away = {"gw"}  # from here on the peer follows without the table
    await relay.round()
    assert relay.me.key != old
    assert _announced(relay) is None
    assert mesh.nudged == [gateway.me.address]
    mesh.world.pass_s(0.3)
    await gateway.reconcile()
    mesh.world.pass_s(0.1)
    assert mesh.carries("gw", "eu")
    assert old not in await mesh.nodes["gw"][1].links()
    mesh.store.away.clear()
    await mesh.rounds(3)
    assert mesh.carries("gw", "eu")
    assert mesh.carries("gw", "us")


async def test_a_peer_that_does_not_take_the_key_up_keeps_its_link(mesh: Mesh) -> None:
    relay = mesh.nodes["eu"][0]
    old = relay.me.key
    mesh.store.away = {"gw"}
    relay.rotate()
    await mesh.rounds(3)
    assert _announced(relay) is not None
    await mesh.rounds(7, 100)
    assert relay.me.key == old
    assert _announced(relay) is None
    assert mesh.carries("gw", "eu")


async def test_both_ends_of_a_link_change_their_keys_one_after_the_other(mesh: Mesh) -> None:
    before = {name: controller.me.key for name, (controller, _) in mesh.nodes.items()}
    for controller, _ in mesh.nodes.values():
        controller.rotate()
    for _ in range(12):
        await mesh.rounds(1)
        assert mesh.carries("gw", "eu")
        assert mesh.carries("gw", "us")
    assert all(controller.me.key != before[name] for name, (controller, _) in mesh.nodes.items())


async def test_an_old_key_changes_by_itself(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = mesh.nodes["eu"][0]
    old = relay.me.key
    file = mesh.folder / "eu" / "key"
    born_s = mesh.world.now_ms / 1000 - rules.KEY_MAX_AGE_S - 60
    import os

    os.utime(file, (born_s, born_s))
    await mesh.rounds(4)
    assert relay.me.key != old


async def test_a_crash_between_the_files_and_the_table_leaves_a_working_node(mesh: Mesh) -> None:
    relay = mesh.nodes["eu"][0]
    relay.rotate()
    await relay.round()
    await mesh.nodes["gw"][0].round()
    announced = relay.me.next_key
    relay._keys.switch()  # and then the process is gone
    await mesh.add("eu", Role.RELAY)
    await mesh.rounds(2)
    assert mesh.nodes["eu"][0].me.key == announced
    assert mesh.carries("gw", "eu")


async def test_a_bad_row_stops_nobody(mesh: Mesh) -> None:
    evil = {"pk": "node#relay", "sk": "evil", "key": "x\nPrivateKey = y"}
    mesh.store.dynamo.run(put(TABLE, evil))
    await mesh.rounds(2)
    assert mesh.carries("gw", "eu")


async def test_a_failing_interface_is_told_and_tried_again(mesh: Mesh) -> None:
    gateway, wireguard = mesh.nodes["gw"]
    wireguard.failing = True
    await mesh.add("asia", Role.RELAY, number=2)
    await mesh.rounds(8)
    assert gateway.fault() is not None
    assert mesh.carries("gw", "eu")
    wireguard.failing = False
    await mesh.rounds(3)
    assert mesh.carries("gw", "asia")
    assert gateway.fault() is None


async def test_a_node_without_a_live_link_says_so(mesh: Mesh) -> None:
    mesh.world.cut = {frozenset({"gw", "eu"}), frozenset({"gw", "us"})}
    await mesh.rounds(3, 100)
    await mesh.rounds(1)
    assert mesh.nodes["gw"][0].fault() == "no link lives"
    mesh.world.cut.clear()
    await mesh.rounds(2)
    assert mesh.nodes["gw"][0].fault() is None


async def test_a_region_that_got_another_number_gets_another_address(mesh: Mesh) -> None:
    await mesh.add("eu", Role.RELAY, number=7)
    assert mesh.nodes["eu"][0].me.address in rules.region_network(7)
    await mesh.rounds(3)
    assert mesh.carries("gw", "eu")


async def test_a_full_region_is_an_error_that_names_it(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "ADDRESS_TRIES_MAX", 0)
    with pytest.raises(NoAddress, match="region eu"):
        await mesh.add("more", Role.RELAY)


async def test_the_private_key_is_never_logged(
    dynamo: SyncDynamo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="psx")
    mesh = Mesh(dynamo, tmp_path)
    await mesh.add("gw", Role.GATEWAY)
    await mesh.add("eu", Role.RELAY)
    await mesh.rounds(2)
    secrets = [mesh.nodes["eu"][0]._keys.own().reveal()]
    mesh.nodes["eu"][0].rotate()
    await mesh.rounds(4)
    secrets.append(mesh.nodes["eu"][0]._keys.own().reveal())
    told = "\n".join(f"{r.getMessage()} {r.__dict__}" for r in caplog.records)
    assert "key switched" in told
    assert not [s for s in secrets if s in told]
    assert not [s for s in secrets if s in str(mesh.store.dynamo.run(read_node(TABLE, Role.RELAY, "eu")))]
    assert re.search(r"joined the mesh", told)


def test_two_nodes_never_get_one_address(dynamo: SyncDynamo) -> None:
    one, other = node("one", heartbeat_ms=1), node("other", heartbeat_ms=1)
    assert dynamo.run(register(TABLE, one)) is None
    conflict = dynamo.run(register(TABLE, other))
    assert conflict is not None
    assert conflict.failed == (0,)
    assert dynamo.run(read_node(TABLE, Role.RELAY, "other")) is None


def test_a_word_of_a_node_that_lost_its_address_is_refused(dynamo: SyncDynamo) -> None:
    one = node("one", heartbeat_ms=1)
    dynamo.run(register(TABLE, one))
    assert dynamo.run(publish(TABLE, Node(**{**_fields(one), "heartbeat_ms": 9}))) is not None
    assert dynamo.run(forget(TABLE, one)) is not None  # it spoke since
    spoken = dynamo.run(read_node(TABLE, Role.RELAY, "one"))
    assert spoken is not None
    assert dynamo.run(forget(TABLE, spoken)) is None
    assert dynamo.run(publish(TABLE, one)) is None


def _fields(row: Node) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Node.__slots__}


def _announced(controller: Controller) -> MeshKey | None:
    return controller.me.next_key
