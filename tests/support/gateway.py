"""Real gateway processes beside a plane's relays and peers, a target that never stops, and customers that count."""

import asyncio
import base64
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest_asyncio

from tests.support import cache_use
from tests.support.dataplane import ACCOUNT, MESH_TOKEN, SECRET, Plane, pattern, until
from tests.support.stores import PREFIX

ROOT: Final = Path(__file__).resolve().parents[2]
START_MAX_S: Final = 60.0


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class GatewayProcess:
    """A real `python -m gateway_node` beside the plane's relay and peers."""

    def __init__(
        self, plane: Plane, stores: tuple[str, str], target_port: int, gateway_id: str = "gw-killed"
    ) -> None:
        self.port = free_port()
        dynamo_url, redis_url = stores
        self._log = plane.folder / f"{gateway_id}.log"
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL_DYNAMODB": dynamo_url,
            "PSX_STAGE": "local",
            "PSX_TABLE_PREFIX": PREFIX,
            "PSX_REDIS_URL": redis_url,
            **cache_use.login_settings("gateway", redis_url),
            "PSX_GATEWAY_ID": gateway_id,
            "PSX_GATEWAY_JOURNAL_DIR": str(plane.folder / "journal"),
            "PSX_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{self.port}",
            "PSX_GATEWAY_SOCKS_LISTEN": f"127.0.0.1:{free_port()}",
            "PSX_GATEWAY_PRIVATE_LISTEN": f"127.0.0.1:{free_port()}",
            "PSX_GATEWAY_DRAIN_MAX_S": "1",
            "PSX_MESH_TOKEN": MESH_TOKEN,
            "PSX_SECRET_PEPPER": "00" * 32,
            "PSX_SEALING_KEY": "00" * 32,
            "PSX_EGRESS_LAB_ALLOW": f"127.0.0.1:{target_port}",
            "PSX_LAB_HOSTS": "",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start, and wait until it serves."""
        before = self._log.read_text().count("gateway ready") if self._log.exists() else 0
        with self._log.open("ab") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway_node", env=self._env, cwd=ROOT, stdout=log, stderr=log
            )

        def is_ready() -> bool:
            said = self._log.read_text()
            assert process.returncode is None, said[-2000:]
            return said.count("gateway ready") > before

        await until(is_ready, START_MAX_S)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.wait()

    async def kill(self) -> None:
        """Whatever the test came to, nothing is left."""
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)

    async def ask(
        self, target_port: int, secret: str = SECRET, username: str = f"{ACCOUNT}-peer-us"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """A CONNECT, and the answer's first line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        token = base64.b64encode(f"{username}:{secret}".encode()).decode()
        ask = f"CONNECT 127.0.0.1:{target_port} HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n"
        writer.write(ask.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return reader, writer, head.decode().partition("\r\n")[0]

    async def connect(
        self, target_port: int, secret: str = SECRET, username: str = f"{ACCOUNT}-peer-us"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same, which must succeed."""
        reader, writer, line = await self.ask(target_port, secret, username)
        assert line.startswith("HTTP/1.1 200 "), line
        return reader, writer


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A target that sends without end."""
    data = pattern(65_536)
    try:
        while not writer.is_closing():
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


class Download:
    """A customer that counts what reaches it, until its connection breaks."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], *, slow: bool) -> None:
        self._reader, self._writer = streams
        self._slow = slow
        self.received = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(32_768):
                self.received += len(data)
                if self._slow:
                    await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        self._writer.close()


StartsGateway = Callable[..., GatewayProcess]


@pytest_asyncio.fixture
async def gateway_process(plane: Plane, dynoxide_url: str, valkey_url: str) -> AsyncIterator[StartsGateway]:
    """Makes gateway processes (target port, id) that do not outlive the test."""
    made: list[GatewayProcess] = []

    def make(target_port: int, gateway_id: str = "gw-process") -> GatewayProcess:
        made.append(GatewayProcess(plane, (dynoxide_url, valkey_url), target_port, gateway_id))
        return made[-1]

    yield make
    for gateway in made:
        await gateway.kill()
