"""A peer of any language as a process: its own command, settings by environment, its log lines kept."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from local.sdks import Sdk
from tests.conformance.relay import WAIT_S, ScriptedApi, ScriptedRelay

TERMS: Final = "2026-11"
KEY: Final = "psx_" + "5ec2e7" * 6
KEPT: Final = ("PATH", "HOME", "JAVA_HOME", "LANG", "SYSTEMROOT", "TMPDIR")
TIMES: Final = {
    "redial_min": 0.1,
    "redial_max": 0.3,
    "heartbeat": 30,
    "dead": 45,
    "streams_dead": 15,
    "tick": 5,
    "wake": 10,
    "idle": 960,
    "redirect": 60,
    "resume": 20,
    "dial": 8,
}
"""Seconds, as the SDKs name their waits; tests shorten those that they wait for."""


class Device:
    """A running peer."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._readers = [
            asyncio.ensure_future(self._read(stream))
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.lines.append(line.decode(errors="replace").rstrip())

    @property
    def log(self) -> str:
        """All that it wrote."""
        return "\n".join(self.lines)

    async def ended(self, wait_s: float = WAIT_S) -> int:
        """Its exit status, once all it wrote was read."""
        status = await asyncio.wait_for(self.process.wait(), wait_s)
        await asyncio.gather(*self._readers)
        return status

    async def logged(self, text: str, wait_s: float = WAIT_S) -> str:
        """Wait for a line that holds this."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        while loop.time() < end_s:
            for line in self.lines:
                if text in line:
                    return line
            await asyncio.sleep(0.01)
        raise AssertionError(f"never logged: {text}\n{self.log}")

    async def stop(self) -> int:
        """As its owner stops it."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        try:
            return await self.ended()
        except TimeoutError:
            self.process.kill()
            await self.ended()
            raise AssertionError(f"did not stop\n{self.log}") from None


class Rig:
    """A scripted API, a scripted relay, and devices of one SDK; `times` are seconds that replace the SDK's own."""

    def __init__(self, sdk: Sdk, folder: Path) -> None:
        self.sdk = sdk
        self.folder = folder
        self.api = ScriptedApi()
        self.relay = ScriptedRelay()
        self.allowed: list[str] = []
        self.times: dict[str, float] = dict(TIMES)
        self.prefix: tuple[str, ...] = ()
        self.devices: list[Device] = []
        self._relays: list[ScriptedRelay] = []

    async def start(self) -> None:
        await self.api.start()
        await self.add_relay(self.relay)

    async def add_relay(self, relay: ScriptedRelay) -> ScriptedRelay:
        """Another relay, known to the API."""
        await relay.start()
        self._relays.append(relay)
        self.api.relays.append(relay.url)
        return relay

    def environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """What the peer is given."""
        times = ",".join(f"{name}={seconds}" for name, seconds in self.times.items())
        given: dict[str, str | None] = {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            **self.sdk.environment,
            "PSX_API": self.api.url,
            "API_KEY": KEY,
            "AGENT_NAME": "conformance",
            "WS_CONNECTIONS": "1",
            "PEER_STATE_FILE": str(self.folder / "state.json"),
            "PSX_ACCEPT_TERMS": TERMS,
            "VERBOSE": "true",
            "PSX_STAGE": "local",
            "PSX_LAB_TIMES": times,
            "PSX_EGRESS_LAB_ALLOW": ",".join(self.allowed),
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    async def device(self, *flags: str, **changes: str | None) -> Device:
        """Start one."""
        process = await asyncio.create_subprocess_exec(
            *self.prefix,
            *self.sdk.command,
            *flags,
            env=self.environment(changes),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            cwd=self.folder,
        )
        device = Device(process)
        self.devices.append(device)
        return device

    async def stop(self) -> None:
        for device in self.devices:
            await device.stop()
            assert KEY not in device.log, "the API key was logged"
            assert "jwt-" not in device.log, "a token was logged"
            assert "refresh-" not in device.log, "a token was logged"
        for relay in self._relays:
            await relay.stop()
        await self.api.stop()
