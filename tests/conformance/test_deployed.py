"""The ways of running many devices that the Go SDK brings: its container image and its systemd unit."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

import pytest

from local.paths import ROOT
from local.sdks import SDK, Sdk, build
from tests.conformance.device import Rig
from tests.conformance.test_vectors import needs, run

pytestmark = pytest.mark.slow

DEPLOY: Final = SDK / "go" / "deploy"


class Image:
    """What the Dockerfile says, carried out in a folder: there is no builder in these tests, and no base image."""

    def __init__(self, folder: Path) -> None:
        text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
        stages = [stage.splitlines() for stage in text.split("FROM ")[1:]]
        self.build_image = stages[0][0].split()[0]
        (copied,) = self._steps(stages[0], "COPY")
        (self.build_step,) = self._steps(stages[0], "RUN")
        self.copied = copied.split()[:-1]
        self.runs = self._steps(stages[1], "RUN")
        (self.user,) = self._steps(stages[1], "USER")
        (entry,) = self._steps(stages[1], "ENTRYPOINT")
        self.entry = tuple(json.loads(entry))
        self.variables = dict(v.split("=", 1) for v in self._steps(stages[1], "ENV"))
        (self.volume,) = self._steps(stages[1], "VOLUME")
        self.root = folder / "root"
        self._carry_out(folder / "src")

    @staticmethod
    def _steps(stage: list[str], word: str) -> list[str]:
        return [line.removeprefix(f"{word} ") for line in stage if line.startswith(f"{word} ")]

    def _inside(self, step: str) -> str:
        return re.sub(r"(?<= )/", f"{self.root}/", step)

    def _carry_out(self, source: Path) -> None:
        for folder in (source, self.root):
            folder.mkdir()
        for name in self.copied:
            shutil.copy(SDK / "go" / name, source)
        for step, folder in [(self.build_step, source), *((step, self.root) for step in self.runs)]:
            run(["sh", "-c", self._inside(step)], folder)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, for a machine that may make other users' folders."""
    needs("go")
    if os.geteuid() != 0:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say("an image's users are not tested: this needs root")
    return Image(tmp_path_factory.mktemp("image"))


def test_the_image_needs_nothing_but_what_it_copies(image: Image) -> None:
    assert b"/lib64/ld-linux" not in (image.root / "psx-peer").read_bytes(), "alpine has no such loader"
    wanted = (SDK / "go" / "go.mod").read_text().split("\ngo ")[1].split()[0]
    version = image.build_image.partition(":")[2]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, wanted.split(".")[:2]))
    assert not image.user.startswith(("0", "root"))


async def test_the_image_keeps_its_device_in_its_volume_and_leaves_nothing_else_to_its_user(
    image: Image, tmp_path: Path
) -> None:
    rig = Rig(Sdk("go", image.entry), tmp_path)
    rig.prefix = ("chroot", f"--userspec={image.user}", str(image.root))
    state = image.variables["PEER_STATE_FILE"]
    assert state.startswith(f"{image.volume}/")
    await rig.start()
    try:
        for _ in range(2):
            device = await rig.device(PEER_STATE_FILE=state)
            await rig.relay.socket()
            await device.stop()
    finally:
        await rig.stop()
    assert (len(rig.api.named("register")), len(rig.api.named("refresh"))) == (1, 1)
    kept = (image.root / state.lstrip("/")).stat()
    assert (stat.S_IMODE(kept.st_mode), f"{kept.st_uid}:{kept.st_gid}") == (0o600, image.user)
    assert (image.root / "psx-peer").stat().st_uid == 0


def test_the_unit_of_a_fleet_is_valid_and_confined(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze") if shutil.which("systemctl") else None
    if analyze is None:
        pytest.skip("no systemd on this machine")
    text = (DEPLOY / "psx-peer@.service").read_text()
    unit = tmp_path / "psx-peer@living-room.service"
    unit.write_text(text.replace("/usr/local/bin/psx-peer", str(build("go").command[0])))
    assert run([analyze, "verify", str(unit)], ROOT) == ""
    run([analyze, "security", "--offline=true", "--threshold=20", str(unit)], ROOT)
