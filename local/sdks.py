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
from xml.etree import ElementTree

from local.paths import ROOT, STATE
from shared.supply.rules import TERMS

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
    vectors = (ROOT / "docs" / "protocol").glob("*.json")
    inputs = [source / "pom.xml", *vectors, *(source / "src").rglob("*.kt")]
    _once("jvm", inputs, [maven, "-q", "-B", "package"], source, jar)
    classes = f"{jar}{os.pathsep}{source / 'target' / 'lib'}/*"
    run = (
        java,
        "-XX:+UseSerialGC",
        f"-XX:SharedArchiveFile={_class_data(java, classes, jar)}",
        "-cp",
        classes,
    )
    return Sdk("jvm", (*run, "psx.peer.MainKt"))


def build_shell() -> Path:
    """The Android shell's classes, compiled against the framework. Raises ToolMissing and BuildFailed."""
    _jvm()
    source = SDK / "android" / "app"
    strings = ElementTree.parse(  # noqa: S314 - our own file
        source / "src/main/res/values/strings.xml"
    ).iter("string")
    constants = "".join(
        f"        const val {entry.attrib['name']} = {number}\n" for number, entry in enumerate(strings)
    )
    generated = source / "target" / "generated" / "R.kt"
    generated.parent.mkdir(parents=True, exist_ok=True)
    generated.write_text(
        f"package psx.peer.android\n\nobject R {{\n    object string {{\n{constants}    }}\n}}\n"
    )
    inputs = [source / "pom.xml", generated, *(source / "src").rglob("*.kt"), BUILT / "jvm.stamp"]
    classes = source / "target" / "classes" / "psx" / "peer" / "android"
    _once("shell", inputs, [tool("mvn"), "-q", "-B", "compile"], source, classes)
    return classes


def _class_data(java: str, classes: str, jar: Path) -> Path:
    """The loaded classes of a device that finds no API, kept for the next starts: they take half the time then."""
    archive = BUILT / "jvm.jsa"
    with (BUILT / "jvm.jsa.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists() or archive.stat().st_mtime < jar.stat().st_mtime:
            flags = [
                java,
                "-XX:+UseSerialGC",
                f"-XX:ArchiveClassesAtExit={archive}",
                "-Xlog:disable",
                "-cp",
                classes,
            ]
            environment = {
                **os.environ,
                "PSX_STAGE": "local",
                "PSX_API": "http://127.0.0.1:9",
                "API_KEY": "none",
                "PSX_ACCEPT_TERMS": TERMS["current"],
                "PEER_STATE_FILE": str(BUILT / "jvm.jsa.state"),
            }
            with subprocess.Popen(
                [*flags, "psx.peer.MainKt"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as device:
                for line in device.stderr or ():
                    if "API" in line:  # all that a start needs is loaded by then
                        device.terminate()
    return archive


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
