"""A peer starts only with its owner's agreement, a key that is not in its arguments, and TLS to the API."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from psx_peer.limits import on_charger
from psx_peer.options import TERMS_VERSION, read_options
from psx_peer.pulse import Times

GOOD = ["--api", "https://api.example/", "--name", "rig", "--accept-terms", TERMS_VERSION]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PSX_STAGE",
        "PSX_API",
        "API_KEY",
        "AGENT_NAME",
        "PSX_ACCEPT_TERMS",
        "PSX_EGRESS_LAB_ALLOW",
        "WALLET",
    ):
        monkeypatch.delenv(name, raising=False)


def test_flags_and_environment_make_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "psx_k")
    monkeypatch.setenv("PSX_EGRESS_LAB_ALLOW", "127.0.0.1:80")
    options = read_options(GOOD)
    assert (options.api, options.api_key, options.connections) == ("https://api.example", "psx_k", 4)
    assert options.lab_allow == frozenset()
    assert options.times.redial_min == 5.0


def test_the_lab_opens_only_in_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "psx_k")
    monkeypatch.setenv("PSX_STAGE", "local")
    monkeypatch.setenv("PSX_EGRESS_LAB_ALLOW", "127.0.0.1:80")
    assert read_options(["--api", "http://127.0.0.1:1", *GOOD[2:]]).lab_allow == {("127.0.0.1", 80)}


def test_the_key_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("psx_k\n")
    assert read_options([*GOOD, "--key-file", str(tmp_path / "key")]).api_key == "psx_k"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (GOOD[2:], "-api is missing"),
        (GOOD, "no API key"),
        (["--api", "http://api.example", *GOOD[2:], "--wallet", "0x1"], "https://"),
        ([*GOOD, "--wallet", "0x1", "--connections", "9"], "1 to 8"),
        ([*GOOD[:4], "--wallet", "0x1"], "--accept-terms"),
        (["--api", "https://", *GOOD[2:], "--wallet", "0x1"], "no URL with a host"),
        ([*GOOD, "--key-file", "/nowhere/key"], "-key-file: No such file"),
        ([*GOOD, "--wallet", "0x1", "--ca-file", "/nowhere/ca"], "-ca-file: No such file"),
        ([*GOOD, "--wallet", "0x1", "--ca-file", __file__], "-ca-file holds no certificate"),
        ([*GOOD, "--wallet", "0x1", "--bind", "198.51.100.1"], "-bind: "),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SystemExit) as exit_:
        read_options(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


DEVICE: dict[str, Any] = json.loads(Path("docs/protocol/device.json").read_text())


def test_waits_are_those_of_the_vectors_and_a_dead_path_is_noticed_within_45_seconds() -> None:
    assert asdict(Times()) == DEVICE["waits"]
    assert DEVICE["waits"]["dead"] + DEVICE["waits"]["tick"] <= 45
    assert (DEVICE["waits"]["heartbeat"], DEVICE["waits"]["idle"], DEVICE["waits"]["redirect"]) == (
        30,
        960,
        60,
    )


@pytest.mark.parametrize("row", DEVICE["chargers"], ids=lambda row: str(row["name"]))
def test_a_device_is_charging_when_its_vector_says(tmp_path: Path, row: dict[str, Any]) -> None:
    for path, text in row["supplies"].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")
    assert on_charger(tmp_path) is row["charging"]
