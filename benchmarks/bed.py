"""A bed of processes for one row: started on loopback, measured by turns, and ended together whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.load import LoadFailed, Way, load_program
from benchmarks.row import Reading
from local.supervisor import Part, PartFailed, RunFolder, Supervisor, free_port

ROUNDS: Final = 5
REPEATS_MAX: Final = 20
REPEAT_AFTER_S: Final = 2.0
FOREIGN_SHARE_MAX: Final = 0.2
"""Of one core. Below it lies what the kernel does by itself."""
QUIET_POLL_S: Final = 0.1
QUIET_MAX_S: Final = 3.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """A program to compare with is not here and could not be installed; the message says which, and why."""


class Bed:
    """The processes of one row. `async with Bed() as bed`."""

    def __init__(self) -> None:
        self.folder = RunFolder()
        self.supervisor = Supervisor(self.folder)
        self.missing: list[str] = []
        self.stack = contextlib.AsyncExitStack()
        """What ends with the bed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stack.aclose()
        await self.supervisor.stop()
        self.folder.remove()

    async def target(self, *, reset: bool = False) -> str:
        """`address:port` of a new target (and exit) in C. One for each contender: ports in TIME_WAIT are not shared.

        `reset` is for a proxy that binds before it dials, whose ports in TIME_WAIT nobody else could dial from.
        """
        port = free_port()
        at = f"127.0.0.1:{port}"
        part = await self.supervisor.start(
            f"target-{port}", [str(load_program()), "serve", f"at={at}", f"reset={int(reset)}"]
        )
        await self.supervisor.accepts(part, "127.0.0.1", port)
        return at

    async def listener(
        self, name: str, command: list[str], port: int, env: Mapping[str, str] | None = None
    ) -> Part:
        """Start a process and wait for its listener."""
        part = await self.supervisor.start(name, command, env)
        await self.supervisor.accepts(part, "127.0.0.1", port)
        return part

    def file(self, name: str, text: str) -> str:
        """Write a file of this run; answers its path."""
        path = self.folder.path / name
        path.write_text(text)
        return str(path)

    async def rival(self, name: str, starting: Awaitable[Way]) -> dict[str, Way]:
        """A rival's way under its name, or nothing and an entry in `missing`."""
        try:
            return {name: await starting}
        except (Missing, PartFailed, OSError) as error:
            sys.stderr.write(f"  missing {name}: {error}\n")
            self.missing.append(name)
            return {}


Measure = Callable[[], Awaitable[Reading]]


async def interleave(measures: Mapping[str, Measure], rounds: int = ROUNDS) -> dict[str, list[Reading]]:
    """Rounds of all contenders by turns. Who fails once is out: its list is empty, and stderr says why.

    A round during which other programs of this machine took much of a core is measured again, within a bound.
    """
    readings: dict[str, list[Reading]] = {who: [] for who in measures}
    failed: set[str] = set()
    repeats = REPEATS_MAX
    for number in range(rounds):
        for who, measure in measures.items():
            try:
                while who not in failed:
                    reading = await _watched(measure)
                    if not reading.disturbed or repeats == 0:
                        readings[who].append(reading)
                        break
                    repeats -= 1
                    await asyncio.sleep(REPEAT_AFTER_S)
            except LoadFailed as error:
                sys.stderr.write(f"  {who} failed in round {number + 1}: {error}\n")
                failed.add(who)
                readings[who] = []
    return readings


async def _watched(measure: Measure) -> Reading:
    began, before = time.monotonic(), _foreign_cpu_s()
    reading = await measure()
    share = (_foreign_cpu_s() - before) / (time.monotonic() - began)
    return replace(reading, disturbed=share > FOREIGN_SHARE_MAX)


def _foreign_cpu_s() -> float:
    """CPU seconds that this machine has spent so far on anything but this process and its children."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S - _tree_cpu_s(os.getpid())


async def quiet(parts: tuple[Part, ...], max_s: float = QUIET_MAX_S) -> None:
    """Wait until a contender has done what its last round left to do, so that it takes nothing from the next one."""
    deadline, before = time.monotonic() + max_s, -1.0
    while time.monotonic() < deadline:
        used = cpu_s(parts)
        if used - before < 1.5 / _TICKS_PER_S:
            return
        before = used
        await asyncio.sleep(QUIET_POLL_S)


def cpu_s(parts: tuple[Part, ...]) -> float:
    """CPU seconds that processes and their children have used so far (steps of 10 ms)."""
    return sum(_tree_cpu_s(part.process.pid) for part in parts)


def _tree_cpu_s(pid: int) -> float:
    total = 0.0
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_tree_cpu_s(int(child)) for child in (task / "children").read_text().split())
    return total


def rss_bytes(part: Part) -> int:
    """Resident memory of a process."""
    pages = Path(f"/proc/{part.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
