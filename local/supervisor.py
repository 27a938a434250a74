"""Child processes of one run: started with their own logs, watched, and ended with their parent, whatever ends it.

Each child asks the kernel to be killed when this process dies (PR_SET_PDEATHSIG), so not even SIGKILL of the parent leaves
anything behind. A run's folder is locked while it lives; folders of dead runs are removed at the next start.
Source: prctl(2), flock(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import itertools
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from local.paths import ROOT, RUNS

STOP_TIMEOUT_S: Final = 4.0
READY_TIMEOUT_S: Final = 60.0
READY_POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 2000
_PORTS: Final = range(12_000, 32_000)
_TURN: Final = itertools.count(secrets.randbelow(len(_PORTS)))  # runs side by side ask in different places
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PRESET: Final = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
)


class PartFailed(Exception):
    """A part did not start, or ended by itself; the message says which, and where its log is."""


def clean_environment() -> dict[str, str]:
    """This process's environment without certificate and proxy variables that would reach into the lab."""
    return {k: v for k, v in os.environ.items() if k not in _PRESET and not k.startswith(("PSX_", "AWS_"))}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now, below those that the kernel hands out: no outgoing connection takes it meanwhile."""
    for _ in range(len(_PORTS)):
        port = _PORTS[next(_TURN) % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise PartFailed("no port is free")


def _dies_with(parent: int) -> Callable[[], None]:
    """For the child, before exec: be killed when the parent is gone, and take no Ctrl-C meant for the parent."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)
        os.setpgid(0, 0)

    return prepare


class RunFolder:
    """`.psx/runs/<id>`, locked while this process lives."""

    def __init__(self) -> None:
        RUNS.mkdir(parents=True, exist_ok=True)
        _remove_dead_runs()
        self.path = RUNS / secrets.token_hex(4)
        (self.path / "logs").mkdir(parents=True)
        self._lock = (self.path / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """The run is over."""
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_dead_runs() -> None:
    for folder in RUNS.iterdir():
        try:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            continue
        shutil.rmtree(folder, ignore_errors=True)


class Part:
    """One running child. Its log may begin with what an earlier one of its name said, up to `begins_at`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, begins_at: int) -> None:
        self.name = name
        self.process = process
        self.log = log
        self._begins_at = begins_at
        self.expected_end = False

    def fault(self) -> str | None:
        """Why this part is not running, or None."""
        code = self.process.returncode
        if code is None or self.expected_end:
            return None
        return f"{self.name} ended with status {code}: {self.tail()}"

    def said(self) -> str:
        """Everything that this child wrote so far."""
        return self.log.read_bytes()[self._begins_at :].decode("utf-8", "replace")

    def tail(self) -> str:
        """The end of its log."""
        raw = self.log.read_bytes()[-LOG_TAIL_BYTES:] if self.log.exists() else b""
        return raw.decode("utf-8", "replace").strip()[-LOG_TAIL_BYTES:]


class Supervisor:
    """Starts and ends the parts of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.parts: dict[str, Part] = {}

    async def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        keep_stdin: bool = False,
        cwd: Path = ROOT,
    ) -> Part:
        """Start a child; its output goes to its log."""
        log = self.folder.path / "logs" / f"{name}.log"
        with log.open("ab") as output:
            begins_at = output.tell()
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=cwd,
                env={**clean_environment(), **(env or {})},
                stdin=asyncio.subprocess.PIPE if keep_stdin else asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_dies_with(os.getpid()),
            )
        part = Part(name, process, log, begins_at)
        self.parts[name] = part
        return part

    async def accepts(self, part: Part, host: str, port: int) -> None:
        """Wait until a part listens. Raises PartFailed."""
        async with _bounded(part):
            while True:
                self.check()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    return
                await asyncio.sleep(READY_POLL_S)

    async def says(self, part: Part, text: str) -> str:
        """Wait until a line of a part's log holds `text`; answers the line. Raises PartFailed."""
        async with _bounded(part):
            while True:
                for line in part.said().splitlines():
                    if text in line:
                        return line
                self.check()
                await asyncio.sleep(READY_POLL_S)

    def check(self) -> None:
        """Raises PartFailed when a part has ended by itself."""
        for part in self.parts.values():
            fault = part.fault()
            if fault is not None:
                raise PartFailed(fault)

    async def stop_part(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one part and wait for it."""
        part = self.parts.pop(name)
        part.expected_end = True
        await _end([part], number)

    async def stop(self) -> None:
        """End all parts, the youngest first, politely and then not; bounded."""
        parts = list(reversed(self.parts.values()))
        self.parts.clear()
        for part in parts:
            part.expected_end = True
        await _end(parts, signal.SIGTERM)


async def _end(parts: Sequence[Part], number: signal.Signals) -> None:
    for part in parts:
        with contextlib.suppress(ProcessLookupError):
            part.process.send_signal(number)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            for part in parts:
                await part.process.wait()
    except TimeoutError:
        for part in parts:
            if part.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    part.process.kill()
                await part.process.wait()


@contextlib.asynccontextmanager
async def _bounded(part: Part):  # type: ignore[no-untyped-def]  # a generator of nothing
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            yield
    except TimeoutError:
        raise PartFailed(f"{part.name} was not ready within {READY_TIMEOUT_S:.0f} s: {part.tail()}") from None


def port_is_taken(port: int) -> bool:
    """Whether somebody listens on a loopback port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
