"""The Python SDK as a package of its own, and a fleet of it."""

import asyncio
import shutil
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from local.paths import ROOT
from local.sdks import SDK, Sdk, build
from tests.conformance.device import Rig
from tests.conformance.relay import Tunnel
from tests.conformance.targets import Target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Sdk:
    """The wheel, in a fresh environment that has nothing of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = folder / "source" / "sdk" / "python"  # a build leaves its traces where it stands
    built = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(SDK / "python", source, ignore=built)
    shutil.copytree(ROOT / "shared" / "wire", folder / "source" / "shared" / "wire", ignore=built)
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)])
    wheel = next(folder.glob("psx_peer-*.whl"))
    place = folder / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    _run([*pip, "--python", str(place / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel)])
    return Sdk("python", (str(place / "bin" / "psx-peer"),))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Rig]:
    """A world for the command as it stands in the checkout."""
    found = Rig(build("python"), tmp_path)
    await found.start()
    yield found
    await found.stop()


async def test_the_installed_command_helps_and_serves(rig: Rig, target: Target) -> None:
    device = await rig.device("--help")
    assert await device.ended() == 0
    assert "-accept-terms" in device.log
    device = await rig.device()
    tunnel = Tunnel(1)
    await tunnel.open(await rig.relay.socket(), "127.0.0.1", target.port)
    connection = await target.connection()
    await connection.say(b"from a wheel")
    assert await tunnel.received(12) == b"from a wheel"
    assert "shared" not in device.log


async def test_a_fleet_is_so_many_stable_devices(fleet: Rig) -> None:
    state = fleet.folder / "fleet"
    given = {"AGENT_NAME": "rack", "PSX_FLEET_COUNT": "3", "PEER_STATE_FILE": str(state)}
    first = await fleet.device("fleet", **given)
    for _ in range(3):
        await fleet.relay.socket()
    names = sorted(body["name"] for body in fleet.api.named("register"))
    assert names == ["rack-001", "rack-002", "rack-003"]
    assert sorted(p.name for p in state.glob("*.json")) == [f"{name}.json" for name in names]
    assert await first.stop() == 0
    await fleet.device("fleet", **given)
    for _ in range(3):
        await fleet.relay.socket()
    assert len(fleet.api.named("register")) == 3, "a restart is the same devices"
    assert len(fleet.api.named("refresh")) == 3


async def test_a_device_of_a_fleet_whose_consent_was_withdrawn_ends_alone(fleet: Rig) -> None:
    fleet.api.statuses["register"] = [(403, "CONSENT_WITHDRAWN")]
    given = {"AGENT_NAME": "rack", "PSX_FLEET_COUNT": "2", "PEER_STATE_FILE": str(fleet.folder / "fleet")}
    device = await fleet.device("fleet", **given)
    await fleet.relay.socket()
    assert "rack-00" in await device.logged("consent was withdrawn")
    assert device.process.returncode is None
    assert await device.stop() == 0


@pytest.mark.parametrize("flags", [("fleet", "-random-name"), ("fleet",), ("fleet", "-count", "0")])
async def test_random_names_and_no_devices_are_refused_in_a_fleet(fleet: Rig, flags: tuple[str, ...]) -> None:
    changes = {"AGENT_NAME": None} if flags == ("fleet",) else {}
    device = await fleet.device(*flags, PEER_STATE_FILE=str(fleet.folder / "fleet"), **changes)
    assert await device.ended() == 2
    assert not fleet.api.calls


async def test_a_fleet_needs_its_owners_agreement_too(fleet: Rig) -> None:
    device = await fleet.device("fleet", PSX_ACCEPT_TERMS=None, PEER_STATE_FILE=str(fleet.folder / "fleet"))
    assert await device.ended() == 2
    await asyncio.sleep(0)
    assert not fleet.api.calls
