"""Programs to compare with, at pinned versions: installed into `.psx/bench` on first use, from public registries.

Debian packages are not installed from here: `system` only says which one is missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.bed import Missing
from benchmarks.load import BENCH

INSTALL_TIMEOUT_S: Final = 1800.0
PROXY_CHAIN: Final = "3.0.1"
PROXY_PY: Final = "2.4.10"
PPROXY: Final = "2.7.9"
CHISEL: Final = "v1.10.1"
FRP: Final = "v0.61.1"
FRP_YAMUX: Final = "v0.0.0-20230628132301-7aca4898904d"
RATHOLE: Final = "0.5.0"
WSTUNNEL: Final = "14168c56306de2c42b0f7675710b08096a3cd5a0"
"""A commit: its releases are not on crates.io."""
_ELSEWHERE: Final = ("/usr/sbin", "/usr/local/sbin", "/usr/local/go/bin", str(Path.home() / ".cargo" / "bin"))


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_ELSEWHERE]))


def system(name: str, package: str) -> str:
    """A program that the machine has. Raises Missing."""
    found = _which(name)
    if found is None:
        raise Missing(f"not installed (Debian package {package})")
    return found


async def proxy_chain() -> Path:
    """The folder whose `node_modules` holds the npm package."""
    folder = BENCH / f"proxy-chain-{PROXY_CHAIN}"
    if not (folder / "node_modules" / "proxy-chain").exists():
        npm = system("npm", "npm")
        package = f"proxy-chain@{PROXY_CHAIN}"
        await _install([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), package])
    return folder


async def python_programs() -> Path:
    """The `bin` of a virtual environment with proxy.py and pproxy."""
    folder = BENCH / f"python-{PROXY_PY}-{PPROXY}"
    if not (folder / "bin" / "pproxy").exists():
        await _install([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        await _install([*pip, f"proxy.py=={PROXY_PY}", f"pproxy=={PPROXY}"])
    return folder / "bin"


async def chisel() -> Path:
    """The program."""
    return (await _go("chisel", f"github.com/jpillora/chisel {CHISEL}", "", ["github.com/jpillora/chisel"]))[
        0
    ]


async def frp() -> tuple[Path, Path]:
    """Server and client. The module replaces its multiplexer with its own fork, and so must whoever builds it."""
    server, client = await _go(
        "frp",
        f"github.com/fatedier/frp {FRP}",
        f"replace github.com/hashicorp/yamux => github.com/fatedier/yamux {FRP_YAMUX}\n",
        ["github.com/fatedier/frp/cmd/frps", "github.com/fatedier/frp/cmd/frpc"],
    )
    return server, client


async def _go(name: str, requirement: str, more: str, packages: list[str]) -> list[Path]:
    folder = BENCH / f"{name}-{requirement.rpartition(' ')[2]}"
    programs = [folder / package.rpartition("/")[2] for package in packages]
    if not all(program.exists() for program in programs):
        go = system("go", "golang")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "go.mod").write_text(f"module bench\n\ngo 1.22\n\nrequire {requirement}\n\n{more}")
        await _install([go, "build", "-mod=mod", "-o", f"{folder}/", *packages], folder)
    return programs


async def rathole() -> Path:
    """The program, without TLS and noise. Not `--locked`: its lock holds a `time` that newer compilers refuse."""
    features = ["--no-default-features", "--features", "server,client"]
    return await _cargo("rathole", RATHOLE, ["rathole", "--version", RATHOLE, *features])


async def wstunnel() -> Path:
    """The program."""
    source = ["--git", "https://github.com/erebe/wstunnel", "--rev", WSTUNNEL]
    return await _cargo("wstunnel", WSTUNNEL[:8], [*source, "--locked", "wstunnel-cli"])


async def _cargo(name: str, version: str, arguments: list[str]) -> Path:
    folder = BENCH / f"{name}-{version}"
    program = folder / "bin" / name
    if not program.exists():
        await _install([system("cargo", "cargo"), "install", "--quiet", "--root", str(folder), *arguments])
    return program


async def _install(command: list[str], cwd: Path | None = None) -> None:
    """Run an installer in the background of nothing: no row is measured meanwhile. Raises Missing."""
    sys.stderr.write(f"  installing: {Path(command[0]).name} {' '.join(command[1:])[:100]} …\n")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), *_ELSEWHERE])},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Missing(f"{command[0]} took longer than {INSTALL_TIMEOUT_S:.0f} s") from None
    if process.returncode:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise Missing(f"{Path(command[0]).name} failed: {last[0][:200]}")
