"""The simulated fleet against the real API function and a real relay: it registers, connects, and is answered."""

import json
from pathlib import Path
from typing import Any

import pytest

from local.fleet import Plan, Tally, addresses, run_fleet, summary

pytestmark = pytest.mark.slow


def test_sources_take_turns_over_their_networks() -> None:
    assert addresses(["192.0.2.0/30", "198.51.100.0/31"]) == [
        "192.0.2.1",
        "198.51.100.0",
        "192.0.2.2",
        "198.51.100.1",
    ]
    with pytest.raises(ValueError, match="nonsense"):
        addresses(["nonsense"])


def test_a_summary_needs_no_heartbeat() -> None:
    assert summary(Tally(), 3)["answeredMsP99"] == 0.0


@pytest.mark.timeout(120)
def test_a_small_fleet_comes_up_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(api="", key="", devices=40, hold_s=1.0, at_once=8, connects_per_s=200, sources=())
    assert run_fleet(plan, tmp_path / "fleet.json") == 0
    told: dict[str, Any] = json.loads((tmp_path / "fleet.json").read_text())
    assert (told["registered"], told["connectedAtMost"], told["failures"]) == (40, 40, {})
    assert json.loads(capsys.readouterr().out) == told
