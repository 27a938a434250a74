"""`python -m infra.mesh`: the controller of a node (`run`), and an operator's look and word (`show`, `remove`).

Settings come from the environment (docs/architecture.md); `show` and `remove` need only the table's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

from infra.mesh.controller import Controller, NoAddress, NodeRemoved
from infra.mesh.keys import KeyRefused
from infra.mesh.model import Role
from infra.mesh.settings import MeshSettings
from infra.mesh.table import read_node, read_role, remove
from infra.mesh.wireguard import WireGuard, WireGuardFailed
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable, SyncDynamo
from shared.runtime.log import configure
from shared.runtime.private import serve_private
from shared.runtime.settings import Settings, listen_address, load_or_exit

FAILED: Final = 1
REMOVED: Final = 3
"""systemd does not start a removed node again (RestartPreventExitStatus)."""

log = logging.getLogger("psx.mesh")


async def run(settings: MeshSettings) -> int:
    """Be a node of the mesh until SIGTERM or SIGINT; SIGHUP changes the key now. Links outlive the controller."""
    loop = asyncio.get_running_loop()
    wireguard = WireGuard(settings.mesh_interface)
    async with AsyncDynamo() as dynamo:
        try:
            controller = Controller(settings, dynamo, wireguard, now_ms)
            loop.add_signal_handler(signal.SIGHUP, controller.rotate)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, controller.stop)
            await controller.start()
            _tell_address(settings, str(controller.me.address))
            private = await serve_private(*listen_address(settings.mesh_private_listen), controller.fault)
            await controller.round()
            _notify("READY=1")
            await controller.run()
            private.close()
        except NodeRemoved:
            log.warning("this node was removed from the mesh", extra={"node": settings.mesh_node_id})
            await wireguard.take_down()
            return REMOVED
        except (NoAddress, KeyRefused, WireGuardFailed, StoreUnavailable) as error:
            log.error("mesh not joined", extra={"reason": str(error)})
            return FAILED
    return 0


def _tell_address(settings: MeshSettings, address: str) -> None:
    """Where the relay of this machine listens for gateways: on the mesh, and nowhere else."""
    path = settings.mesh_env_file
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(f"PSX_RELAY_MESH_LISTEN={address}:{settings.mesh_connect_port}\n")
    draft.rename(path)


def _notify(state: str) -> None:
    """Tell systemd, if it asked. Source: sd_notify(3)."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    name = "\0" + where[1:] if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(state.encode(), name)


def show(table: str, role: Role | None) -> int:
    """Print every node; public facts only."""
    dynamo, now = SyncDynamo(), now_ms()
    for wanted in Role if role is None else (role,):
        start = None
        while True:
            page = dynamo.run(read_role(table, wanted, start))
            for node in page.rows:
                if node is None:
                    sys.stdout.write(f"{wanted:<8} a row that is not understood\n")
                    continue
                state = "removed" if node.removed else f"heard {(now - node.heartbeat_ms) / 1000:.0f} s ago"
                line = f"{node.role:<8} {node.node_id:<24} {node.region:<16} {node.address!s:<15}"
                sys.stdout.write(f"{line} {node.endpoint:<22} {node.key} {state}\n")
            start = page.next_key
            if start is None:
                break
    return 0


def remove_node(table: str, role: Role, node_id: str) -> int:
    """Take a node out of the mesh: its peers drop it with their next round."""
    dynamo = SyncDynamo()
    node = dynamo.run(read_node(table, role, node_id))
    if node is None:
        sys.stderr.write(f"mesh: there is no {role} {node_id}\n")
        return FAILED
    conflict = None if node.removed else dynamo.run(remove(table, node, now_ms()))
    if conflict is not None:
        sys.stderr.write(f"mesh: {node_id} changed meanwhile: look again\n")
        return FAILED
    sys.stdout.write(f"{node_id} is removed; its address {node.address} is free\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.mesh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="be a node until SIGTERM; SIGHUP changes the key now")
    listing = commands.add_parser("show", help="all nodes as the table has them")
    listing.add_argument("--role", type=Role, choices=list(Role))
    removing = commands.add_parser("remove", help="take a node out of the mesh, for good")
    removing.add_argument("role", type=Role, choices=list(Role))
    removing.add_argument("node_id")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    given = _parser().parse_args(argv)
    if given.command == "run":
        configure("mesh")
        return asyncio.run(run(load_or_exit(MeshSettings)))
    table = load_or_exit(Settings).table("mesh")
    try:
        return (
            show(table, given.role)
            if given.command == "show"
            else remove_node(table, given.role, given.node_id)
        )
    except (StoreUnavailable, ValueError) as error:
        sys.stderr.write(f"mesh: {error}\n")
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
