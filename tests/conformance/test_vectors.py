"""Each SDK's own unit tests, which run the JSON vectors of docs/protocol, and what must build elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from local.sdks import SDK, ToolMissing, build, build_shell, tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

GO_PLATFORMS = ("linux/amd64", "linux/arm64", "windows/amd64", "darwin/arm64")


def needs(name: str) -> str:
    """A tool, or a skip that says so; in CI a failure."""
    try:
        return tool(name)
    except ToolMissing as missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(str(missing))


def run(command: list[str], cwd: Path, **changes: str) -> str:
    """A command that must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "CGO_ENABLED": "0", **changes},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_go_vectors() -> None:
    go = needs("go")
    said = run([go, "test", "-count=1", "-v", "./..."], SDK / "go")
    assert "PASS: TestAnEndDoesWhatItsScriptSays" in said


@pytest.mark.parametrize("platform", GO_PLATFORMS)
def test_go_builds_and_vets_for_every_platform(platform: str, tmp_path: Path) -> None:
    go = needs("go")
    system, machine = platform.split("/")
    run([go, "vet", "."], SDK / "go", GOOS=system, GOARCH=machine)
    out = tmp_path / "psx-peer"
    run([go, "build", "-mod=readonly", "-o", str(out), "."], SDK / "go", GOOS=system, GOARCH=machine)
    assert out.stat().st_size > 1_000_000


def test_go_is_formatted_and_has_one_dependency() -> None:
    gofmt = needs("gofmt")
    assert run([gofmt, "-l", "."], SDK / "go") == ""
    module = (SDK / "go" / "go.mod").read_text()
    assert module.count("github.com") == 1
    assert len([p for p in (SDK / "go").glob("*.go") if not p.name.endswith("_test.go")]) == 1


def test_node_vectors() -> None:
    node = needs("node")
    build("node")
    said = run([node, "--test", "test/"], SDK / "node")
    assert "# fail 0" in said
    assert "# pass 0" not in said


def test_the_lock_of_node_names_no_host_and_one_dependency() -> None:
    lock = (SDK / "node" / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "integrity" in lock
    assert list(json.loads((SDK / "node" / "package.json").read_text())["dependencies"]) == ["ws"]


def test_jvm_vectors() -> None:
    needs("mvn")
    needs("java")
    build("jvm")  # which runs them
    core = SDK / "android" / "core"
    report = (core / "target" / "surefire-reports" / "TEST-psx.peer.VectorsTest.xml").read_text()
    assert 'failures="0"' in report
    assert "anEndDoesWhatItsScriptSays" in report


def test_the_android_shell_compiles_against_the_framework_and_names_what_it_declares() -> None:
    needs("mvn")
    needs("java")
    compiled = build_shell()
    android = "{http://schemas.android.com/apk/res/android}"
    manifest = ElementTree.parse(SDK / "android/app/src/main/AndroidManifest.xml").getroot()
    declared = {
        e.attrib[f"{android}name"].rpartition(".")[2]
        for e in manifest.iter()
        if e.tag in {"activity", "service"}
    }
    assert declared == {"ConsentActivity", "PeerService"}
    assert all((compiled / f"{name}.class").exists() for name in declared)
    permissions = {e.attrib[f"{android}name"].rpartition(".")[2] for e in manifest.iter("uses-permission")}
    assert "RECEIVE_BOOT_COMPLETED" not in permissions, "no SDK starts by itself"
    (service,) = manifest.iter("service")
    assert service.attrib[f"{android}foregroundServiceType"] == "specialUse"


def test_the_windows_service_keeps_its_rules_and_builds_for_windows(tmp_path: Path) -> None:
    go = needs("go")
    folder = SDK / "windows"
    said = run([go, "test", "-count=1", "-v", "."], folder)
    assert "PASS: TestAStopEndsThePeer" in said
    assert run([needs("gofmt"), "-l", "."], folder) == ""
    run([go, "vet", "."], folder, GOOS="windows", GOARCH="amd64")
    out = tmp_path / "psx-service.exe"
    run([go, "build", "-mod=readonly", "-o", str(out), "."], folder, GOOS="windows", GOARCH="amd64")
    assert out.read_bytes().startswith(b"MZ")
