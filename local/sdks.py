"""What has to be compiled: the peers of every language, and a client of the tests; once for what their sources say. What
cannot be built says which tool is missing.

Each build happens in the SDK's own folder with its own lock; what comes out is a command line. Tests and benchmarks use it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from local.paths import ROOT, STATE

SDK: Final = ROOT / "sdk"
BUILT: Final = STATE / "sdk"
GO_CLIENT: Final = ROOT / "tests" / "e2e" / "clients" / "with_nethttp.go"
BUILD_TIMEOUT_S: Final = 600
NAMES: Final = ("python", "go", "node", "jvm")


class ToolMissing(Exception):
    """This machine cannot build that SDK; the message names the tool."""


class BuildFailed(Exception):
    """The SDK does not build; the message is the tool's own."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """A peer that can be started."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def tool(name: str) -> str:
    """Where a tool stands. Raises ToolMissing."""
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"{name} is not on this machine")
    return found


def build(name: str) -> Sdk:
    """The SDK of a language, built when its sources changed. Raises ToolMissing and BuildFailed."""
    match name:
        case "python":
            return _python()
        case "go":
            return _go()
        case "node":
            return _node()
        case "jvm":
            return _jvm()
    raise ValueError(f"no SDK is called {name}")


def prepare() -> None:
    """Build all of it, and say what is left out; a build that fails is left to the tests to tell."""
    builds: dict[str, Callable[[], object]] = {
        f"the {name} SDK": functools.partial(build, name) for name in NAMES
    }
    for what, built in {**builds, "the Go client of the tests": go_client}.items():
        try:
            built()
        except ToolMissing as missing:
            sys.stderr.write(f"skip: {what} is not built: {missing}\n")
        except (BuildFailed, subprocess.TimeoutExpired) as failed:
            sys.stderr.write(f"{what} does not build: {failed}\n")


def go_client() -> Path:
    """The client program on Go's net/http. Raises ToolMissing and BuildFailed."""
    go, target = tool("go"), BUILT / "go-client" / GO_CLIENT.stem
    command = [go, "build", "-trimpath", "-o", str(target), str(GO_CLIENT)]
    _once("go-client", [GO_CLIENT], command, GO_CLIENT.parent, target)
    return target


def _python() -> Sdk:
    paths = f"{ROOT}{os.pathsep}{SDK / 'python'}"
    return Sdk("python", (sys.executable, "-m", "psx_peer"), {"PYTHONPATH": paths})


def _go() -> Sdk:
    go, source, target = tool("go"), SDK / "go", BUILT / "go" / "psx-peer"
    command = [go, "build", "-trimpath", "-mod=readonly", "-o", str(target), "."]
    _once("go", source.glob("*.*"), command, source, target)
    return Sdk("go", (str(target),))


def _node() -> Sdk:
    node, npm, source = tool("node"), tool("npm"), SDK / "node"
    _once("node", source.glob("package*.json"), [npm, "ci"], source, source / "node_modules" / "ws")
    return Sdk("node", (node, str(source / "psx-peer.mjs")))


def _jvm() -> Sdk:
    java, maven, source = tool("java"), tool("mvn"), SDK / "android" / "core"
    jar = source / "target" / "peer-core-0.1.0.jar"
    inputs = [source / "pom.xml", *(source / "src" / "main").rglob("*.kt")]
    _once("jvm", inputs, [maven, "-q", "-B", "package", "-DskipTests"], source, jar)
    classes = f"{jar}{os.pathsep}{source / 'target' / 'lib'}/*"
    return Sdk("jvm", (java, "-XX:+UseSerialGC", "-Xshare:auto", "-cp", classes, "psx.peer.MainKt"))


def _once(name: str, inputs: Iterable[Path], command: list[str], cwd: Path, result: Path) -> None:
    """Run a build unless it ran for these inputs; one process at a time."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        digest = hashlib.sha256(" ".join(command).encode())
        for path in sorted(inputs):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        stamp = BUILT / f"{name}.stamp"
        if result.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
            return
        environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BuildFailed(f"{' '.join(command[:3])}: {(done.stdout + done.stderr).strip()[-2000:]}")
        stamp.write_text(digest.hexdigest())
