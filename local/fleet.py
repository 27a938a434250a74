"""`./psx fleet`: many devices from one process that register, connect and send heartbeats, and nothing else.

Each device has a name, a source address and one socket. Open files bound how many connect (20,000 files: some 19,800);
the rest registers only, and that is said. Without `--api` the fleet has a network of its own on this machine. Devices
refuse every tunnel: what a device costs while it serves is measured by `./psx bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import json
import os
import random
import resource
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop

from local import lab
from local.network import LocalNetwork
from shared.supply.rules import TERMS
from shared.wire import handshake, http1, peer, websocket

CALL_TIMEOUT_S: Final = 35
"""Longer than an API waits for its function: its own answer tells more than a time-out here."""
CALL_ATTEMPTS_MAX: Final = 5
CONNECT_TIMEOUT_S: Final = 30.0
HEARTBEAT_S: Final = 30.0
FILES_KEPT_BACK: Final = 100
TELL_EVERY_S: Final = 5.0
REDIAL_S: Final = (5.0, 7.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. `sources` are addresses of this machine, used in turn."""

    api: str
    key: str
    devices: int
    hold_s: float
    at_once: int
    connects_per_s: float
    sources: Sequence[str]
    prefix: str = "fleet"
    ca: Path | None = None


@dataclass(slots=True)
class Tally:
    """What happened."""

    registered: int = 0
    connected: int = 0
    connected_most: int = 0
    lost: int = 0
    beats: int = 0
    acks: int = 0
    register_s: float = 0.0
    connect_s: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    acked_ms: list[float] = field(default_factory=list)


class Device(asyncio.Protocol):
    """One simulated device: its token, its socket, its heartbeats."""

    def __init__(self, tally: Tally, answer: dict[str, Any], source: str) -> None:
        self.source, self.relay, self.token = source, str(answer["relay"]), str(answer["token"])
        self.device_id, self.refresh_token = str(answer["deviceId"]), str(answer["refreshToken"])
        self.over: asyncio.Future[int] | None = None
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._beat: asyncio.TimerHandle | None = None

    async def stay(self, tls: ssl.SSLContext | None) -> int:
        """Connect and stay until the socket ends; answers its close code. Raises OSError or TimeoutError."""
        parts = urlsplit(self.relay)
        self._key, self._head = os.urandom(16), bytearray()
        self._frames: websocket.FrameReader | None = None
        self._sent_s = 0.0
        self.over = self._loop.create_future()
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
        local = (self.source, 0) if self.source else None
        context = tls if parts.scheme == "wss" else None
        dial = self._loop.create_connection(lambda: self, host, port, ssl=context, local_addr=local)
        await asyncio.wait_for(dial, CONNECT_TIMEOUT_S)
        request = handshake.upgrade_request(parts.netloc, parts.path, self._key, self.token)
        cast(asyncio.Transport, self._transport).write(request)
        return await self.over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            if self._frames is None:
                self._head += data
                answer = http1.take_response_head(self._head)
                if answer is None:
                    return
                if not handshake.is_accepted(answer, self._key, self.token):
                    self._end(4001 if answer.status == 401 else 1006, f"handshake_{answer.status}")
                    return
                self._frames, data = websocket.FrameReader(masked=False), bytes(self._head)
                self._send(peer.Type.DEVICE_INFO, protocol=peer.PROTOCOL, supportsRelayRedirect=True)
            for message in self._frames.receive(data):
                self._message(message)
        except (http1.HeadError, websocket.WebSocketFault):
            self._end(1002, "protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(1006, "socket_lost")

    def hang_up(self) -> None:
        """Leave."""
        self._end(1000, "")

    def _message(self, message: websocket.Message) -> None:
        if message.opcode is websocket.Opcode.CLOSE:
            code = message.close_code()
            self._end(code, f"closed_{code}")
            return
        text = peer.parse_text(message.payload) if message.opcode is websocket.Opcode.TEXT else None
        if text is None:
            return
        match text.type:
            case peer.Type.CONNECTED:
                self._tally.connected += 1
                self._tally.connected_most = max(self._tally.connected_most, self._tally.connected)
                self._beat = self._loop.call_later(random.uniform(0, HEARTBEAT_S), self._heartbeat)  # noqa: S311
            case peer.Type.HEARTBEAT_ACK:
                self._tally.acks += 1
                self._tally.acked_ms.append((self._loop.time() - self._sent_s) * 1000)
            case peer.Type.TUNNEL_CONNECT:
                refusal = {"sessionId": text.text("sessionId"), "reason": "unknown", "durationMs": 0}
                self._send(peer.Type.TUNNEL_OPEN_FAILED, **refusal)
            case peer.Type.RELAY_REDIRECT:
                self.relay = text.text("relay")
                self._end(4100, "redirected")

    def _heartbeat(self) -> None:
        self._sent_s = self._loop.time()
        self._tally.beats += 1
        self._send(peer.Type.HEARTBEAT)
        self._beat = self._loop.call_later(HEARTBEAT_S, self._heartbeat)

    def _send(self, kind: peer.Type, **payload: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            frame = websocket.encode_frame(
                websocket.Opcode.TEXT, peer.encode_text(kind, **payload), os.urandom(4)
            )
            self._transport.write(frame)

    def _end(self, code: int, reason: str) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
            self._tally.connected -= 1
        if self.over is None or self.over.done():
            return
        if reason:
            self._tally.failures[reason] += 1
            self._tally.lost += 1
        self.over.set_result(code)
        if self._transport is not None:
            self._transport.abort()


class Fleet:
    """All devices of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._calls = ThreadPoolExecutor(plan.at_once)
        self._tls = ssl.create_default_context(cafile=str(plan.ca) if plan.ca else None)
        self._stays: list[asyncio.Task[None]] = []
        self._devices: list[Device] = []
        self._began_s = time.monotonic()
        self._room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT_BACK - plan.at_once

    async def run(self) -> Tally:
        """Register and connect everybody, stay for a while, and leave."""
        teller = asyncio.ensure_future(self._tell())
        began = time.monotonic()
        try:
            await asyncio.gather(*(self._enrol(part) for part in self._parts()))
            self.tally.register_s = time.monotonic() - began
            await self._settled()
            self.tally.connect_s = time.monotonic() - began
            await asyncio.sleep(self.plan.hold_s)
        finally:
            teller.cancel()
            for task in self._stays:
                task.cancel()
            for device in self._devices:
                device.hang_up()
            await asyncio.gather(*self._stays, return_exceptions=True)
            self._calls.shutdown(wait=False, cancel_futures=True)
        return self.tally

    def _parts(self) -> Iterator[range]:
        for first in range(self.plan.at_once):
            yield range(first, self.plan.devices, self.plan.at_once)

    async def _enrol(self, numbers: range) -> None:
        """Register some devices one after another; each connects as soon as it may."""
        for number in numbers:
            source = self.plan.sources[number % len(self.plan.sources)] if self.plan.sources else ""
            body = {
                "name": f"{self.plan.prefix}-{number:06d}",
                "type": "simulated",
                "apiKey": self.plan.key,
                "sdkVersion": "fleet",
                "consent": {"termsVersion": TERMS["current"], "method": "fleet"},
            }
            answer = await self._call("/v1/peer/agents/register", body, source)
            if answer is None:
                continue
            self.tally.registered += 1
            if len(self._devices) < self._room:
                device = Device(self.tally, answer, source)
                self._devices.append(device)
                delay_s = len(self._devices) / self.plan.connects_per_s
                self._stays.append(asyncio.ensure_future(self._stay(device, delay_s)))

    async def _call(self, path: str, body: dict[str, Any], source: str) -> dict[str, Any] | None:
        for attempt in range(CALL_ATTEMPTS_MAX):
            try:
                status, answer = await asyncio.get_running_loop().run_in_executor(
                    self._calls, self._post, path, body, source
                )
            except (OSError, http.client.HTTPException) as error:
                self.tally.failures[f"api_{type(error).__name__}"] += 1
                status, answer = 0, {}
            if status == 200:
                return answer
            if status:
                self.tally.failures[f"api_{status}_{answer.get('code', '')}"] += 1
            if 400 <= status < 500 and status != 429:
                return None
            await asyncio.sleep(min(2**attempt, 30) * random.uniform(0.5, 1))  # noqa: S311
        return None

    def _post(self, path: str, body: dict[str, Any], source: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(self.plan.api)
        where = (source, 0) if source else None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.netloc, timeout=CALL_TIMEOUT_S, source_address=where, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(
                parts.netloc, timeout=CALL_TIMEOUT_S, source_address=where
            )
        with contextlib.closing(connection):
            connection.request(
                "POST", parts.path + path, json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            raw = answer.read()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, {}

    async def _stay(self, device: Device, delay_s: float) -> None:
        """Keep one device connected: redials, follows redirects, and refreshes a token that is no longer valid."""
        await asyncio.sleep(max(0.0, delay_s - (time.monotonic() - self._began_s)))
        while True:
            try:
                code = await device.stay(self._tls)
            except (OSError, TimeoutError) as error:
                self.tally.failures[f"dial_{type(error).__name__}"] += 1
                code = 1006
            if code == websocket.CloseCode.IDENTITY_INVALID:
                await self._refresh(device)
            if code != 4100:
                await asyncio.sleep(random.uniform(*REDIAL_S))  # noqa: S311

    async def _refresh(self, device: Device) -> None:
        path = f"/v1/peer/agents/{device.device_id}/refresh"
        answer = await self._call(path, {"refreshToken": device.refresh_token}, device.source)
        if answer is not None:
            device.token, device.refresh_token = str(answer["token"]), str(answer["refreshToken"])

    async def _settled(self) -> None:
        """Until all that connect are connected, or nothing moves any more."""
        before, still_s = -1, 0.0
        while self.tally.connected < len(self._devices) and still_s < CONNECT_TIMEOUT_S:
            still_s = 0.0 if self.tally.connected != before else still_s + 1.0
            before = self.tally.connected
            await asyncio.sleep(1.0)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            t = self.tally
            sys.stderr.write(
                f"{t.registered} registered, {t.connected} connected, {t.beats} heartbeats, {t.acks} answered, "
                f"failures {dict(t.failures)}\n"
            )


def addresses(networks: Sequence[str]) -> list[str]:
    """All host addresses of networks, in turn of the networks. Raises ValueError."""
    pools = [[str(a) for a in ipaddress.ip_network(n).hosts()] for n in networks]
    return [pool[i] for i in range(max(map(len, pools), default=0)) for pool in pools if i < len(pool)]


def summary(tally: Tally, devices: int) -> dict[str, Any]:
    """Figures of a run."""
    acked = sorted(tally.acked_ms)
    cut = statistics.quantiles(acked, n=100) if len(acked) > 1 else [0.0] * 99
    return {
        "devices": devices,
        "registered": tally.registered,
        "registeredPerS": round(tally.registered / tally.register_s, 1) if tally.register_s else None,
        "connectedAtMost": tally.connected_most,
        "allConnectedAfterS": round(tally.connect_s, 1),
        "heartbeats": tally.beats,
        "heartbeatsAnswered": tally.acks,
        "answeredMsP50": round(cut[49], 1),
        "answeredMsP99": round(cut[98], 1),
        "socketsLost": tally.lost,
        "failures": dict(tally.failures),
    }


async def _on_own_network(plan: Plan) -> Tally:
    async with own_network() as net:
        own = Plan(
            api=net.api_url,
            key=net.keys.supplier,
            devices=plan.devices,
            hold_s=plan.hold_s,
            at_once=plan.at_once,
            connects_per_s=plan.connects_per_s,
            sources=plan.sources or addresses([n.cidr for n in lab.NETWORKS]),
            prefix=plan.prefix,
            ca=net.files.ca,
        )
        return await Fleet(own).run()


@contextlib.asynccontextmanager
async def own_network() -> AsyncIterator[LocalNetwork]:
    """Stores, API and relays on this machine."""
    net = LocalNetwork()
    try:
        await net.start_stores_and_chains()
        await asyncio.gather(net.start_cloud(), *(net.start_relay(r) for r in lab.RELAY_NAMES))
        yield net
    finally:
        await net.close()


def run_fleet(plan: Plan, json_file: Path | None) -> int:
    """Exit status 0 when every device registered and all that may connect did."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT_BACK - plan.at_once
    if plan.devices > room:
        sys.stderr.write(
            f"psx: open files bound connections to {room}; {plan.devices - room} devices register only\n"
        )
    tally = uvloop.run(_on_own_network(plan) if not plan.api else Fleet(plan).run())
    told = summary(tally, plan.devices)
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    reached = tally.registered == plan.devices and tally.connected_most >= min(plan.devices, room)
    return 0 if reached else 1
