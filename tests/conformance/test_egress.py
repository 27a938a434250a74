"""No SDK leads into its owner's network, whatever a relay asks for and whatever a name resolves to."""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from local.sdks import Sdk
from shared.wire import mux, peer
from shared.wire.mux import MuxReason, MuxType
from tests.conformance.device import Rig
from tests.conformance.public_home import INTERFACE_ADDRESSES, NEIGHBOUR
from tests.conformance.relay import Socket
from tests.conformance.resolver import Resolver, namespace
from tests.conformance.targets import Target

pytestmark = pytest.mark.slow

PUBLIC, PRIVATE = "127.0.0.9", "127.0.0.8"
"""The first is on the lab's list, as a public address is for everybody; the second is not."""
ADDRESSES = {
    "unspecified": "0.0.0.0",
    "loopback": "127.0.0.1",
    "ten": "10.1.2.3",
    "home": "192.168.1.1",
    "carrier": "100.64.0.1",
    "metadata": "169.254.169.254",
    "six-loopback": "::1",
    "link-local": "fe80::1",
    "unique-local": "fd00:ec2::254",
    "nat64": "64:ff9b::a00:1",
    "nat64-loopback": "64:ff9b::7f00:1",
    "mapped": "::ffff:10.0.0.1",
    "mapped-loopback": "::ffff:127.0.0.1",
    "six-to-four": "2002:7f00:1::",
}
VECTORS: dict[str, Any] = json.loads(Path("docs/protocol/egress.json").read_text())


@pytest_asyncio.fixture
async def traps(target: Target) -> AsyncIterator[list[Target]]:
    """Listeners in the owner's network, on the target's port: nobody may arrive there."""
    await target.stop()
    target.host = PUBLIC
    await target.start()
    found = [Target(host, target.port) for host in ("127.0.0.1", PRIVATE, "::1")]
    for trap in found:
        await trap.start()
    yield found
    await asyncio.sleep(0.1)
    for trap in found:
        await trap.stop()
        assert trap.count == 0, f"a tunnel reached {trap.host}"


@pytest_asyncio.fixture
async def resolver(rig: Rig, target: Target, traps: list[Target]) -> AsyncIterator[Resolver]:
    """The names of this file, for the rig's devices."""
    found = Resolver()
    prefix = namespace(found, rig.folder)
    if prefix is None:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say("names are not tested: this needs root and mount namespaces")
    await found.start()
    rig.prefix = prefix
    rig.allowed = [f"{PUBLIC}:{target.port}"]
    found.names = {f"{name}.example": [[address]] for name, address in ADDRESSES.items()}
    found.names |= {
        "public.example": [[PUBLIC]],
        "turning.example": [[PUBLIC], [PRIVATE]],
        "mixed.example": [[PUBLIC, PRIVATE]],
        "mixed-other-way.example": [[PRIVATE, PUBLIC]],
        "mixed-families.example": [[PUBLIC, "::1"]],
        "silent.example": [[]],
    }
    yield found
    found.stop()


async def refusal(socket: Socket, tunnel: int, host: str, port: int) -> MuxReason:
    socket.send(socket.open_frame(tunnel, host, port))
    return mux.read_reason((await socket.frame(tunnel, MuxType.REFUSED)).body)


async def test_names_of_private_addresses_are_refused(rig: Rig, resolver: Resolver, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for number, name in enumerate(ADDRESSES, 1):
        found = await refusal(socket, number, f"{name}.example", target.port)
        assert found is MuxReason.EGRESS_POLICY, name
    socket.send(socket.open_frame(99, "public.example", target.port))
    await socket.frame(99, MuxType.OPENED)
    await target.connection()


async def test_a_name_that_turns_private_is_never_followed(
    rig: Rig, resolver: Resolver, target: Target
) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "turning.example", target.port))
    await socket.frame(1, MuxType.OPENED)
    await target.connection()
    for tunnel in range(2, 6):
        socket.send(socket.open_frame(tunnel, "turning.example", target.port))
        frame = await asyncio.wait_for(socket.frames.setdefault(tunnel, asyncio.Queue()).get(), 5)
        refused = frame.type is MuxType.REFUSED
        assert not refused or mux.read_reason(frame.body) is MuxReason.EGRESS_POLICY


async def test_a_name_with_a_private_address_among_others_is_refused(
    rig: Rig, resolver: Resolver, target: Target
) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for tunnel, name in enumerate(("mixed", "mixed-other-way", "mixed-families"), 1):
        found = await refusal(socket, tunnel, f"{name}.example", target.port)
        assert found is MuxReason.EGRESS_POLICY, name


async def test_a_name_that_is_not_found_is_told_as_such(rig: Rig, resolver: Resolver, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for tunnel, name in enumerate(("nobody.example", "silent.example"), 1):
        assert await refusal(socket, tunnel, name, target.port) is MuxReason.DNS_FAILED


async def test_literals_are_judged_as_their_vectors_say(
    rig: Rig, target: Target, traps: list[Target]
) -> None:
    rig.times["dial"] = 0.2
    await rig.device()
    socket = await rig.relay.socket()
    for tunnel, row in enumerate(VECTORS["addresses"], 1):
        if row["verdict"] != "allowed":
            found = await refusal(socket, tunnel, row["address"], row["port"])
            assert found is MuxReason.EGRESS_POLICY, row


async def test_private_literals_on_an_open_port_are_refused(
    rig: Rig, target: Target, traps: list[Target]
) -> None:
    rig.allowed = [f"{PUBLIC}:{target.port}"]
    await rig.device()
    socket = await rig.relay.socket()
    for tunnel, address in enumerate(ADDRESSES.values(), 1):
        assert await refusal(socket, tunnel, address, target.port) is MuxReason.EGRESS_POLICY, address
    odd = (
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "localhost",
        "fe80::1%lo",
        "[::1]",
        "127.0.0.1.",
    )
    for tunnel, host in enumerate(odd, 100):
        found = await refusal(socket, tunnel, host, target.port)
        assert found in {MuxReason.EGRESS_POLICY, MuxReason.DNS_FAILED}, host


@pytest.mark.parametrize(
    ("seen_at", "asked"), [("91.198.174.192", "91.198.174.192"), ("2a02:8108:1:2::5", "2a02:8108:1:2::80")]
)
async def test_nobody_reaches_the_address_that_the_relay_sees(rig: Rig, seen_at: str, asked: str) -> None:
    rig.relay.seen_at, rig.times["dial"] = seen_at, 0.2
    await rig.device()
    socket = await rig.relay.socket()
    assert await refusal(socket, 1, asked, 80) is MuxReason.EGRESS_POLICY


async def test_nobody_reaches_what_is_public_on_the_owner_s_own_network(sdk: Sdk, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say("own networks are not tested: this needs root and network namespaces")
    command = (unshare, "--net", sys.executable, "-m", "tests.conformance.public_home", str(tmp_path))
    given = json.dumps({"name": sdk.name, "command": sdk.command, "environment": sdk.environment})
    done = await asyncio.create_subprocess_exec(*command, given, stdout=PIPE, stderr=PIPE)
    told, errors = await done.communicate()
    assert done.returncode == 0, errors.decode()
    assert json.loads(told) == dict.fromkeys((*INTERFACE_ADDRESSES, NEIGHBOUR), "EGRESS_POLICY")


async def test_sessions_of_v1_obey_the_same_policy(rig: Rig, target: Target, traps: list[Target]) -> None:
    rig.relay.protocol = peer.PROTOCOL
    rig.allowed = []
    await rig.device()
    socket = await rig.relay.socket()
    for number, address in enumerate(ADDRESSES.values()):
        socket.say(peer.Type.TUNNEL_CONNECT, sessionId=f"s{number}", host=address, port=target.port)
        told = await socket.text(peer.Type.TUNNEL_OPEN_FAILED)
        assert told.text("detail").startswith("egress policy"), address
    for port in (0, -1, 65_536, 25, 2525):
        socket.say(peer.Type.TUNNEL_CONNECT, sessionId=f"p{port}", host="1.1.1.1", port=port)
        await socket.text(peer.Type.TUNNEL_OPEN_FAILED)


async def test_the_lab_list_opens_nothing_outside_the_lab(
    rig: Rig, target: Target, traps: list[Target]
) -> None:
    device = await rig.device(PSX_STAGE=None)
    assert await device.ended() != 0
    assert "https://" in device.log, "an API without TLS is refused outside the lab"
