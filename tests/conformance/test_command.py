"""What an owner meets at the command line of every SDK: terms, names, state, limits, and what is never shown."""

import asyncio
import json
import os
import pty
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.device import KEY, TERMS, Rig
from tests.conformance.relay import Tunnel
from tests.conformance.targets import Target

pytestmark = pytest.mark.slow

FLAGS = (
    "api", "key", "name", "country", "connections", "wallet", "state", "relay", "verbose", "accept-terms", "dry-run",
    "limit-mbit", "schedule", "only-charging", "withdraw",
)  # fmt: skip
VARIABLES = (
    "API_KEY", "AGENT_NAME", "COUNTRY", "WS_CONNECTIONS", "WALLET", "PEER_STATE_FILE", "RELAY_URL", "VERBOSE",
)  # fmt: skip
OTHER_HOURS = ("00:00-00:01", "12:00-12:01")


async def test_help_names_every_flag_and_variable(rig: Rig) -> None:
    device = await rig.device("-help" if rig.sdk.name == "go" else "--help")
    assert await device.ended() == 0
    for flag in FLAGS:
        assert f"-{flag}" in device.log
    for variable in VARIABLES:
        assert variable in device.log


@pytest.mark.parametrize("version", [None, "2001-01", ""])
async def test_nothing_is_shared_without_the_owners_agreement(rig: Rig, version: str | None) -> None:
    device = await rig.device(PSX_ACCEPT_TERMS=version)
    assert await device.ended() == 2
    assert TERMS in device.log
    assert not rig.api.calls
    assert not (rig.folder / "state.json").exists()


async def ask(rig: Rig, answer: bytes) -> tuple[int | None, str]:
    """Start on a terminal and answer the question; (exit status or None while it runs, what was shown)."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *rig.sdk.command,
        env=rig.environment({"PSX_ACCEPT_TERMS": None}),
        stdin=theirs,
        stdout=theirs,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = b""
    answered = False
    for _ in range(500):
        try:
            shown += os.read(ours, 65_536)
        except (BlockingIOError, OSError):
            await asyncio.sleep(0.02)
        if not answered and b"[y/N]" in shown:
            os.write(ours, answer)
            answered = True
        if process.returncode is not None or rig.relay.upgrades:
            break
    status = process.returncode
    if status is None:
        process.terminate()
        await process.wait()
    os.close(ours)
    return status, shown.decode(errors="replace")


async def test_an_owner_on_a_terminal_is_shown_the_terms_and_asked_once(rig: Rig) -> None:
    status, shown = await ask(rig, b"n\n")
    assert status == 2
    assert "local network" in shown
    assert not rig.api.calls
    status, shown = await ask(rig, b"y\n")
    assert status is None
    consent = rig.api.named("register")[0]["consent"]
    assert consent["termsVersion"] == TERMS
    assert consent["method"] == "terminal"
    assert consent["acceptedAt"] > 1_700_000_000_000
    calls = len(rig.api.calls)
    rig.relay.upgrades.clear()
    assert calls == 1
    status, shown = await ask(rig, b"n\n")
    assert "[y/N]" not in shown, "an owner is asked once"
    assert len(rig.api.calls) == 2


async def test_the_receipt_names_version_time_and_method(rig: Rig) -> None:
    await rig.device(WALLET="0x52908400098527886E0F7030069857D2E4169EE7")
    await rig.relay.socket()
    body = rig.api.named("register")[0]
    assert body["consent"]["termsVersion"] == TERMS
    assert body["consent"]["method"] == "flag"
    assert body["consent"]["acceptedAt"] > 1_700_000_000_000
    assert body["name"] == "conformance"
    assert body["apiKey"] == KEY
    assert body["walletAddress"].startswith("0x5290")
    assert body["sdkVersion"].startswith(f"{rig.sdk.name}-")


async def test_the_state_is_its_owners_alone_and_a_restart_is_the_same_device(rig: Rig) -> None:
    first = await rig.device()
    await rig.relay.socket()
    state = rig.folder / "state.json"
    kept = json.loads(state.read_text())
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert {"name", "deviceId", "refreshToken", "consent"} == kept.keys()
    assert KEY not in state.read_text()
    await first.stop()
    await rig.device()
    await rig.relay.socket()
    assert len(rig.api.named("register")) == 1
    assert rig.api.named("refresh") == [{"refreshToken": kept["refreshToken"]}]
    assert json.loads(state.read_text())["refreshToken"] != kept["refreshToken"]


async def test_another_name_is_another_device(rig: Rig) -> None:
    first = await rig.device()
    await rig.relay.socket()
    await first.stop()
    await rig.device(AGENT_NAME="another")
    await rig.relay.socket()
    assert [body["name"] for body in rig.api.named("register")] == ["conformance", "another"]


async def test_a_device_without_a_name_keeps_the_first_one_it_took(rig: Rig) -> None:
    first = await rig.device(AGENT_NAME=None)
    await rig.relay.socket()
    await first.stop()
    rig.api.statuses["refresh"] = [401]
    await rig.device(AGENT_NAME=None)
    await rig.relay.socket()
    once, again = rig.api.named("register")
    assert once["name"] == again["name"]
    assert once["consent"] == again["consent"], "an agreement keeps the time at which it was given"


WITHDRAWN = (403, "CONSENT_WITHDRAWN")


@pytest.mark.parametrize("told_at", ["refresh", "register"])
async def test_after_a_withdrawal_nothing_is_shared_until_a_person_agrees_again(
    rig: Rig, told_at: str
) -> None:
    device = await rig.device(WS_CONNECTIONS="2")
    for _ in range(2):
        await rig.relay.socket()
    rig.api.statuses |= {"refresh": [WITHDRAWN if told_at == "refresh" else 401], "register": [WITHDRAWN] * 2}
    await asyncio.gather(*(s.ws.close(4001) for s in list(rig.relay.open)))
    assert await device.ended() == 2
    assert "consent was withdrawn" in device.log
    state = rig.folder / "state.json"
    assert json.loads(state.read_text()) == {"name": "conformance", "withdrawn": "agent_c0ffee"}
    rig.api.statuses["register"] = [WITHDRAWN]
    device = await rig.device()
    assert await device.ended() == 2, "a flag is no person"
    assert not rig.api.owners_keys
    rig.relay.upgrades.clear()
    status, shown = await ask(rig, b"y\n")
    assert (status, "[y/N]" in shown) == (None, True)
    assert rig.api.owners_keys == [("/v1/peer/my-devices/agent_c0ffee/consent", KEY)]
    assert rig.api.named("consent")[0]["method"] == "terminal"
    assert json.loads(state.read_text()).keys() == {"name", "deviceId", "refreshToken", "consent"}


@pytest.mark.parametrize("wallet", [None, "0x52908400098527886E0F7030069857D2E4169EE7"])
async def test_an_owner_withdraws_by_the_key_or_by_the_devices_own_token(
    rig: Rig, wallet: str | None
) -> None:
    owner = {"WALLET": wallet, "API_KEY": None} if wallet else {}
    nobody = await rig.device("-withdraw", **owner, PSX_ACCEPT_TERMS=None)
    assert await nobody.ended() == 2
    assert "no registered device" in nobody.log
    running = await rig.device(**owner)
    await rig.relay.socket()
    without_key = {"API_KEY": None} if wallet else {}
    rig.api.statuses["withdrawal"] = [503]
    refused = await rig.device("-withdraw", **without_key, PSX_ACCEPT_TERMS=None)
    assert await refused.ended() == 1, refused.log
    rig.api.withdrawn.clear()
    device = await rig.device("-withdraw", **without_key, PSX_ACCEPT_TERMS=None)
    assert await device.ended() == 0, device.log
    assert "withdrawn" in device.log
    mine, key = "/v1/peer/my-devices/agent_c0ffee/consent", (rig.api.owners_keys or [("", "")])[0][1]
    if wallet:
        assert rig.api.withdrawn == [("/v1/peer/agents/agent_c0ffee/consent", "Bearer jwt-3")]
        shown = [body["refreshToken"] for body in rig.api.named("refresh")]
        assert shown == ["refresh-1", "refresh-2"], "a spent token shown again is taken for a copy"
        assert rig.api.named("register")[0]["ownerTokens"] is True, "what relays see decides nothing"
        assert {body.get("purpose") for body in rig.api.named("refresh")} == {"owner"}
    else:
        assert (rig.api.withdrawn, key) == ([(mine, "")], KEY)
    kept = json.loads((rig.folder / "state.json").read_text())
    assert kept == {"name": "conformance", "withdrawn": "agent_c0ffee"}
    await running.stop()


async def test_a_registration_whose_answer_was_lost_is_asked_again_under_its_name_also_after_a_restart(
    rig: Rig,
) -> None:
    state = rig.folder / "state.json"
    rig.api.statuses["register"] = [(409, "IDEMPOTENCY_IN_PROGRESS"), *[503] * 1000]
    lost = await rig.device()
    while len(rig.api.attempts) < 2:
        await asyncio.sleep(0.01)
    lost.process.kill()
    await lost.ended()
    assert "attempt" in json.loads(state.read_text())
    rig.api.statuses = {"register": [], "refresh": [401]}
    await rig.device()
    await rig.relay.socket()
    (first,) = set(rig.api.attempts)
    assert re.fullmatch(r"[A-Za-z0-9_-]{8,128}", first)
    kept = json.loads(state.read_text())
    assert kept.keys() == {"name", "deviceId", "refreshToken", "consent"}
    await rig.devices[-1].stop()
    await rig.device()
    await rig.relay.socket()
    assert rig.api.attempts[-1] not in {first, ""}, "another registration is another attempt"


async def test_a_second_instance_of_one_state_file_is_refused(rig: Rig) -> None:
    first = await rig.device()
    await rig.relay.socket()
    second = await rig.device()
    assert await second.ended() == 1
    assert "another instance" in second.log
    assert not first.process.returncode
    first.process.kill()
    await first.ended()
    await rig.device()
    await rig.relay.socket()


async def test_a_torn_state_file_is_as_none(rig: Rig) -> None:
    (rig.folder / "state.json").write_text('{"deviceId": "agent_c0ff')
    await rig.device()
    await rig.relay.socket()
    assert len(rig.api.named("register")) == 1


async def test_a_dry_run_does_nothing(rig: Rig) -> None:
    device = await rig.device("-dry-run", PSX_ACCEPT_TERMS=None)
    assert await device.ended() == 0
    assert "conformance" in device.log
    assert "data allowance" in device.log
    assert not rig.api.calls
    assert not rig.relay.upgrades
    assert list(rig.folder.iterdir()) == []


async def plan(rig: Rig, *flags: str, **changes: str | None) -> dict[str, Any]:
    """What a dry run shows."""
    device = await rig.device("-dry-run", *flags, **changes)
    assert await device.ended() == 0, device.log
    found: dict[str, Any] = json.loads(device.log[device.log.index("{") :])
    return found


async def test_a_flag_beats_its_variable_and_both_have_a_default(rig: Rig) -> None:
    usual, given = await asyncio.gather(
        plan(rig, WS_CONNECTIONS=None, PEER_STATE_FILE=None, HOME=str(rig.folder)),
        plan(
            rig, "-name", "flagged", "--connections", "8", "-state=other.json", "-relay", "wss://pin.example/"
        ),
    )
    assert usual["connections"] == 4
    assert Path(usual["state"]).name == ".psx-peer-state.json"
    assert {name: given[name] for name in ("name", "connections", "state", "relay")} == {
        "name": "flagged",
        "connections": 8,
        "state": "other.json",
        "relay": "wss://pin.example/",
    }


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WS_CONNECTIONS", "9"),
        ("WS_CONNECTIONS", "0"),
        ("WS_CONNECTIONS", "x"),
        ("API_KEY", None),
        ("PSX_API", None),
        ("PSX_LIMIT_MBIT", "-1"),
        ("PSX_LIMIT_MBIT", "fast"),
        ("PSX_SCHEDULE", "25:00-26:00"),
    ],
)
async def test_a_wrong_setting_is_one_clear_line(rig: Rig, variable: str, value: str | None) -> None:
    device = await rig.device(**{variable: value})
    assert await device.ended() == 2
    assert len([line for line in device.lines if line.strip()]) == 1, device.log
    assert not rig.api.calls


async def test_the_api_must_speak_tls_outside_the_lab(rig: Rig) -> None:
    device = await rig.device(PSX_STAGE=None)
    assert await device.ended() == 2
    assert "https://" in device.log
    assert not rig.api.calls


async def test_the_allowance_holds_over_both_directions(rig: Rig, target: Target) -> None:
    await rig.device(PSX_LIMIT_MBIT="8")
    socket = await rig.relay.socket()
    tunnel = Tunnel(1)
    await tunnel.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    loop = asyncio.get_running_loop()
    began = loop.time()
    tunnel.stream.write(bytes(1_000_000))
    reading = asyncio.ensure_future(connection.read(1_000_000))
    await connection.say(bytes(1_000_000))
    await tunnel.received(1_000_000, 20)
    await reading
    took = loop.time() - began
    assert took > 1.1, f"2 MB at 1 MB/s took {took:.1f} s, which is less than one of its directions alone"


async def test_outside_the_owners_hours_nothing_is_shared(rig: Rig) -> None:
    from datetime import datetime

    hour = datetime.now().astimezone().hour
    device = await rig.device(PSX_SCHEDULE=OTHER_HOURS[hour < 6])
    await device.logged("[PAUSED]")
    await asyncio.sleep(0.3)
    assert not rig.api.calls


async def test_within_the_owners_hours_it_is(rig: Rig) -> None:
    await rig.device(PSX_SCHEDULE="00:00-00:00")
    await rig.relay.socket()


async def test_a_key_may_stand_in_a_file(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    await rig.device("-key-file", str(file), API_KEY=None)
    await rig.relay.socket()
    assert rig.api.named("register")[0]["apiKey"] == KEY
