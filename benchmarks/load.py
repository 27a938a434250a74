"""Drives `load.c`: compiles it once, aims it at a proxy, and reads its figures."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from local.paths import STATE
from local.supervisor import Part

BENCH: Final = STATE / "bench"
SOURCE: Final = Path(__file__).with_name("load.c")
FAILED_SHARE_MAX: Final = 0.001
TIMEOUT_S: Final = 60.0


class LoadFailed(Exception):
    """A contender did not carry the load; the message holds the first fault."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the load reaches a contender: its listener, what it must be told first, and the processes whose CPU counts.

    `via` is "" (nothing is said), "connect" or "socks5"; `head` is whole header lines of the CONNECT.
    """

    at: str
    via: str = ""
    target: str = ""
    head: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of the load saw; `all_*` include the warm-up."""

    mb_per_s: float
    per_s: float
    p50_us: float
    p99_us: float
    all_mb: float
    all_done: int
    starved: int
    failed: int
    fault: str


@cache
def load_program() -> Path:
    """The compiled load generator. Raises RuntimeError without a C compiler."""
    built = BENCH / "load"
    if built.exists() and built.stat().st_mtime > SOURCE.stat().st_mtime:
        return built
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("a C compiler is needed for the load generator (Debian: gcc libc6-dev)")
    BENCH.mkdir(parents=True, exist_ok=True)
    part = built.with_suffix(".part")
    subprocess.run([compiler, "-O2", "-o", str(part), str(SOURCE)], check=True, timeout=TIMEOUT_S)
    part.replace(built)
    return built


async def run_load(mode: str, way: Way, *, starving: bool = False, **options: float) -> Figures:
    """One run: `bulk` or `tunnels` with the options that `load.c` names. Raises LoadFailed; for streams without a byte only
    unless they are a figure themselves (`starving`).
    """
    told = {"via": way.via, "target": way.target, "head": way.head}
    arguments = [f"at={way.at}", *(f"{k}={v}" for k, v in told.items() if v)]
    arguments += [f"{k}={v}" for k, v in options.items()]
    process = await asyncio.create_subprocess_exec(
        str(load_program()), mode, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise LoadFailed(f"the load ended with status {process.returncode}: {errors.decode().strip()}")
    figures = Figures(**json.loads(output))
    starved = figures.starved and not starving
    if starved or figures.failed > figures.all_done * FAILED_SHARE_MAX:
        fault = figures.fault or "streams without a byte"
        raise LoadFailed(f"{figures.failed} failed, {figures.starved} starved: {fault}")
    return figures
