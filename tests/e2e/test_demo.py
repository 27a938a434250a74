"""The whole loop, as a newcomer runs it; and whatever ends it, nothing is left running."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.demo.run import STEPS
from local.paths import ROOT, RUNS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
DEMO_BOUND_S = 200
START_BOUND_S = 60
END_BOUND_S = 20


class Running:
    """A demo in a process of its own; every process it starts carries a mark in its environment."""

    def __init__(self, *arguments: str) -> None:
        self.mark = secrets.token_hex(8)
        environment = {
            **os.environ,
            "DEMO_MARK": self.mark,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local", "demo", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def marked(self) -> dict[int, str]:
        """Processes of this demo that are alive: pid -> command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if f"DEMO_MARK={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def wait_for(self, part: str) -> int:
        """The pid of a part, once it runs."""
        deadline = time.monotonic() + START_BOUND_S
        while time.monotonic() < deadline:
            for pid, command in self.marked().items():
                if part in command:
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"{part} did not start")

    def gone(self) -> bool:
        """Whether nothing of it is left, within a bound."""
        deadline = time.monotonic() + END_BOUND_S
        while time.monotonic() < deadline:
            if not self.marked():
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def demo() -> Iterator[Running]:
    running = Running()
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


def test_all_steps_hold(tmp_path: Path) -> None:
    report = tmp_path / "demo.json"
    running = Running("--json", str(report))
    output, _ = running.process.communicate(timeout=DEMO_BOUND_S)
    assert running.process.returncode == 0, output
    told = json.loads(report.read_text())
    assert [s["name"] for s in told["steps"]] == [name for name, _ in STEPS]
    assert all(s["ok"] and s["facts"] for s in told["steps"])
    assert told["totals"]["ok"] is True
    assert running.gone(), running.marked()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_nothing_is_left(demo: Running, number: signal.Signals) -> None:
    demo.wait_for("gateway_node")
    folders = set(RUNS.iterdir())
    demo.process.send_signal(number)
    demo.process.communicate(timeout=END_BOUND_S)
    assert demo.process.returncode != 0
    assert demo.gone(), demo.marked()
    assert folders


def test_a_part_that_dies_fails_the_demo_by_name_and_leaves_nothing(demo: Running) -> None:
    os.kill(demo.wait_for("local.target"), signal.SIGKILL)
    output, _ = demo.process.communicate(timeout=DEMO_BOUND_S)
    assert demo.process.returncode == 1
    assert "target ended with status -9" in output
    assert "Traceback" not in output
    assert demo.gone(), demo.marked()
