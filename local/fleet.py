"""`python -m local.fleet COUNT`: simulated devices by the thousand in one process: they register, connect and heartbeat.

A load for tests; they open no tunnels. The API is `PSX_API`, the key `API_KEY`; names are stable, so that a second run is
the same devices.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import ssl
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from psx_peer.consent import TERMS_VERSION

from shared.wire import handshake, http1, mux, peer, websocket

SPARE_FILES: Final = 200
AT_ONCE: Final = 64
TIMEOUT_S: Final = 30.0
REPORT_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    api: str
    api_key: str
    prefix: str
    count: int
    heartbeat_s: float = float(peer.HEARTBEAT_S)


class Simulated(asyncio.Protocol):
    """One device's only socket."""

    __slots__ = ("_authority", "_frames", "_head", "_key", "_seen", "_token", "_transport", "beats")

    def __init__(self, authority: str, token: str, seen: Counter[str]) -> None:
        self._authority = authority
        self._token = token
        self._seen = seen
        self._key = os.urandom(16)
        self._head: bytearray | None = bytearray()
        self._frames = websocket.FrameReader(masked=False)
        self._transport: asyncio.Transport | None = None
        self.beats = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        transport.write(handshake.upgrade_request(self._authority, "/", self._key, self._token))

    def data_received(self, data: bytes) -> None:
        try:
            if self._head is not None:
                self._head += data
                data = self._upgraded(self._head)
            for message in self._frames.receive(data) if data else ():
                self._message(message)
        except (websocket.WebSocketFault, peer.MalformedFrame, http1.HeadError):
            self._seen["faults"] += 1
            self.close()

    def _upgraded(self, head: bytearray) -> bytes:
        answer = http1.take_response_head(head)
        if answer is None:
            return b""
        if not handshake.is_accepted(answer, self._key, self._token):
            self._seen["refused"] += 1
            self.close()
            return b""
        rest, self._head = bytes(head), None
        self._say(peer.Type.DEVICE_INFO, protocol=mux.PROTOCOL, currentIp="auto", country="", carrier="")
        return rest

    def _message(self, message: websocket.Message) -> None:
        if message.opcode is not websocket.Opcode.TEXT:
            return
        text = peer.parse_text(message.payload)
        if text is not None and text.type is peer.Type.CONNECTED:
            self.beats = True
            self._seen["connected"] += 1
        elif text is not None and text.type is peer.Type.HEARTBEAT_ACK:
            self._seen["acks"] += 1

    def heartbeat(self) -> None:
        """As each device does every 30 s."""
        if self.beats:
            self._seen["heartbeats"] += 1
            self._say(peer.Type.HEARTBEAT)

    def _say(self, kind: peer.Type, **payload: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            frame = peer.encode_text(kind, **payload)
            self._transport.write(websocket.encode_frame(websocket.Opcode.TEXT, frame, os.urandom(4)))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.beats:
            self.beats = False
            self._seen["lost"] += 1

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.close()


class Fleet:
    """All devices; `seen` counts what happened to them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._devices: list[Simulated] = []
        self._trust = ssl.create_default_context()
        self.seen: Counter[str] = Counter()

    async def start(self) -> None:
        """Register and connect every device, some at once."""
        await asyncio.gather(*(self._one(number) for number in range(self._plan.count)))

    async def _one(self, number: int) -> None:
        async with self._gate:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await self._register(f"{self._plan.prefix}-{number:05d}")
                    self.seen["registered"] += 1
                    await self._connect(str(answer["relay"]), str(answer["token"]))
            except (OSError, TimeoutError, KeyError, ValueError, asyncio.IncompleteReadError) as fault:
                self.seen[f"failed: {type(fault).__name__}"] += 1

    async def _connect(self, relay: str, token: str) -> None:
        parts = urlsplit(relay)
        secure = parts.scheme == "wss"
        device = Simulated(parts.netloc, token, self.seen)
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: device, host, port, ssl=self._trust if secure else None)
        self._devices.append(device)

    async def _register(self, name: str) -> dict[str, Any]:
        url = urlsplit(self._plan.api)
        secure = url.scheme == "https"
        consent = {"termsVersion": TERMS_VERSION, "method": "flag", "acceptedAt": 0}
        body = json.dumps(
            {"name": name, "apiKey": self._plan.api_key, "type": "simulated", "consent": consent}
        )
        head = [("Host", url.netloc), ("Content-Type", "application/json"), ("Connection", "close")]
        head.append(("Content-Length", str(len(body))))
        reader, writer = await asyncio.open_connection(
            url.hostname, url.port or (443 if secure else 80), ssl=self._trust if secure else None
        )
        try:
            path = f"{url.path}/v1/peer/agents/register"
            writer.write(http1.build_head(f"POST {path} HTTP/1.1", head) + body.encode())
            answer = http1.take_response_head(bytearray(await reader.readuntil(b"\r\n\r\n")))
            if answer is None or answer.status != 200:
                raise ValueError("the API refused a device")
            length = int(answer.header("content-length") or ANSWER_MAX_BYTES)
            parsed = json.loads(await reader.readexactly(min(length, ANSWER_MAX_BYTES)))
        finally:
            writer.close()
        if not isinstance(parsed, dict):
            raise ValueError("no answer")
        return parsed

    async def beat(self) -> None:
        """Heartbeats for ever, spread over their interval."""
        while True:
            devices = list(self._devices)
            for device in devices:
                device.heartbeat()
                await asyncio.sleep(self._plan.heartbeat_s / len(devices))
            if not devices:
                await asyncio.sleep(0.1)

    def stop(self) -> None:
        """End every socket."""
        for device in self._devices:
            device.close()


def enough_files(count: int) -> bool:
    """Raise the limit on open files to what the devices need, if the machine allows."""
    needed = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed <= hard


async def run(plan: Plan) -> None:
    """Until SIGINT or SIGTERM; a line of counts every few seconds."""
    fleet, stopped = Fleet(plan), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    tasks = [asyncio.ensure_future(fleet.start()), asyncio.ensure_future(fleet.beat())]
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), REPORT_S)
        sys.stdout.write(", ".join(f"{name} {count}" for name, count in sorted(fleet.seen.items())) + "\n")
        sys.stdout.flush()
    for task in tasks:
        task.cancel()
    fleet.stop()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """Exit status 2 when something is missing."""
    parser = argparse.ArgumentParser(prog="python -m local.fleet", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--prefix", default="simulated", help="what their names begin with")
    given = parser.parse_args()
    api, key = os.environ.get("PSX_API"), os.environ.get("API_KEY")
    if not api or not key:
        parser.error("PSX_API and API_KEY must be set")
    if not enough_files(given.count):
        parser.error(f"{given.count} devices need more open files than this machine allows (ulimit -Hn)")
    asyncio.run(run(Plan(api.rstrip("/"), key, given.prefix, given.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
