"""Tests that failed beside others run once more, alone; the outcome of that run is the outcome."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from local import __main__ as local
from tests.support.permissions import GATE_MISSED

Look = Callable[[int, int], tuple[int, list[Sequence[str]]]]
GATE = ["-m", "coverage", "report", "--format=total"]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """A whole run that leaves so many failed tests, with the status of the run after it."""
    monkeypatch.setattr(local, "ROOT", tmp_path)

    def look(failed: int, second: int) -> tuple[int, list[Sequence[str]]]:
        runs: list[Sequence[str]] = []
        kept = tmp_path / ".pytest_cache" / "v" / "cache" / "lastfailed"
        kept.parent.mkdir(parents=True)
        kept.write_text(json.dumps({"tests/of_an_earlier_run.py::test": True}))

        def run(command: Sequence[str]) -> int:
            runs.append(command)
            if len(runs) > 1:
                return second
            if failed:
                kept.write_text(json.dumps({f"tests/test_a.py::test_{n}": True for n in range(failed)}))
            return local.TESTS_FAILED

        monkeypatch.setattr(local, "_run", run)
        return local._test(fast=False, second_look=True, arguments=["tests/conformance"]), runs[1:]

    monkeypatch.setattr("local.sdks.prepare", lambda: None)
    return look


def test_who_passes_alone_is_named_and_does_not_fail_the_run(
    look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    status, again = look(2, 0)
    assert status == 0
    assert [command[-2:] for command in again] == [["tests/test_a.py::test_0", "tests/test_a.py::test_1"]]
    assert "passed alone only" in capsys.readouterr().out


def test_who_fails_again_fails_the_run(look: Look, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(2, local.TESTS_FAILED)[0] == local.TESTS_FAILED
    assert "passed alone only" not in capsys.readouterr().out


@pytest.mark.parametrize("failed", [0, local.SECOND_LOOK_AT_MOST + 1])
def test_a_missed_gate_and_a_broken_change_have_no_second_look(look: Look, failed: int) -> None:
    assert look(failed, 0) == (local.TESTS_FAILED, [])


@pytest.mark.parametrize(
    ("tests", "coverage", "status"),
    [(0, 2, 2), (local.TESTS_FAILED, 2, 2), (GATE_MISSED, 0, GATE_MISSED), (0, 0, 0)],
)
def test_no_second_look_excuses_a_gate_that_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: int, coverage: int, status: int
) -> None:
    runs: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> int:
        runs.append(command)
        return coverage if list(command[1:]) == GATE else tests

    monkeypatch.setattr(local, "ROOT", tmp_path)
    monkeypatch.setattr(local, "_run", run)
    monkeypatch.setattr("local.sdks.prepare", lambda: None)
    assert local._test(fast=False, second_look=True, arguments=[]) == status
    assert "--cov-fail-under=0" in runs[0], "the gate is judged apart from the tests"
