"""`./psx package`: one zip for each function of serverless.yml, with only what its handler imports. Decision 0040.

Our own modules are the closure of the handler's imports; third-party packages are the lock named like the handler's
folder (`functions.api.handler` -> requirements/api.txt), as wheels for the Lambda runtime, whatever machine builds.
The same sources and locks give the same bytes. Leaves out uploading: `npx serverless deploy` takes the zips from here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grimp

from local.paths import PACKAGES, ROOT, WHEELS
from local.tables import read_serverless

RUNTIME: Final = "3.12"
PLATFORM: Final = "x86_64-manylinux_2_28"  # the runtime's Amazon Linux 2023 has glibc 2.34
MB: Final = 1_000_000
UNZIPPED_BOUND_MB: Final = {"api": 90, "x402": 190, "jobs": 40}  # Lambda's own limit is 262 MB
AWS_SERVICES: Final = frozenset({"dynamodb", "events", "kms", "s3", "secretsmanager", "sns"})
NODE_SERVICES: Final = frozenset({"autoscaling", "cloudformation", "dynamodb", "s3", "secretsmanager", "ssm"})
_INSTALL_BOUND_S: Final = 400
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_PROJECT: Final = ("functions", "shared")
_IMPORT_BOUND_S: Final = 60
_IMPORT: Final = """
import importlib, json, sys, time
sys.path.insert(0, sys.argv[1])
began = time.perf_counter()
importlib.import_module(sys.argv[2])
took = time.perf_counter() - began
files = [getattr(module, "__file__", None) for module in sys.modules.values()]
print(json.dumps({"took_ms": round(took * 1000), "files": [file for file in files if file]}))
"""


class PackageFailed(Exception):
    """A package could not be built, or is too large; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One function's zip."""

    function: str
    handler: str
    path: Path
    zipped_bytes: int
    unzipped_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What importing a handler took, and the files that it loaded."""

    took_ms: int
    files: tuple[str, ...]


def interpreter(version: str) -> Path | None:
    """A Python of this minor version on this machine that runs, or None."""
    name = f"python{version}"
    folders = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        Path(sys.executable),
        *(f / name for f in folders),
        *sorted(pyenv.glob(f"{version}.*/bin/{name}")),
    ]
    return next((p for p in found if p.exists() and _version_of(p) == version), None)


def _version_of(python: Path) -> str:
    asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip()


def build(folder: Path, version: str, only: Sequence[str] = ()) -> list[Artefact]:
    """Build the zips of all functions, or of those named, in a folder. Raises PackageFailed."""
    python = interpreter(version)
    if python is None:
        raise PackageFailed(
            f"Python {version} is needed to compile for the runtime: install it, or see --python"
        )
    functions = read_serverless("local")["functions"]
    graph = grimp.build_graph(*_PROJECT, cache_dir=None, exclude_type_checking_imports=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return [
            _build_one(graph, folder / f"{name}.zip", str(functions[name]["handler"]), python, version)
            for name in functions
            if not only or name in only
        ]


def unpack(artefact: Artefact, folder: Path) -> Path:
    """What the runtime would find below /var/task."""
    with zipfile.ZipFile(artefact.path) as archive:
        archive.extractall(folder)
    return folder


def import_alone(folder: Path, handler: str, version: str) -> Imported:
    """Import a handler by a bare interpreter that looks into its folder and its own library alone. Raises PackageFailed."""
    command = [str(interpreter(version)), "-I", "-S", "-B", "-c", _IMPORT, str(folder)]
    done = subprocess.run(
        [*command, handler.rpartition(".")[0]],
        capture_output=True,
        text=True,
        timeout=_IMPORT_BOUND_S,
        check=False,
        env={},
        cwd="/",
    )
    if done.returncode:
        raise PackageFailed(f"{handler}: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout)
    return Imported(found["took_ms"], tuple(found["files"]))


def _build_one(graph: grimp.ImportGraph, target: Path, handler: str, python: Path, version: str) -> Artefact:
    name, module = target.stem, handler.rpartition(".")[0]
    kind, own = module.split(".")[1], own_files(graph, module)
    key = _key(version, kind, own)
    made = target.with_suffix(".json")
    if target.exists() and made.exists() and (kept := json.loads(made.read_text()))["key"] == key:
        return Artefact(name, handler, target, **kept["artefact"])
    packages = wheels(kind, python, version)
    with tempfile.TemporaryDirectory() as staging:
        unzipped = write_zip(target, (packages, staged(Path(staging), own, python)))
    if unzipped > UNZIPPED_BOUND_MB[kind] * MB:
        target.unlink()
        raise PackageFailed(f"{name}: {unzipped / MB:.0f} MB unzipped, {UNZIPPED_BOUND_MB[kind]} are allowed")
    facts: dict[str, Any] = {
        "zipped_bytes": target.stat().st_size,
        "unzipped_bytes": unzipped,
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }
    made.write_text(json.dumps({"key": key, "artefact": facts}))
    return Artefact(name, handler, target, **facts)


def _key(version: str, kind: str, own: Sequence[tuple[str, Path]]) -> str:
    """All that a zip is made of: the same key, the same zip."""
    lock = ROOT / "requirements" / f"{kind}.txt"
    digest = hashlib.sha256(version.encode())
    for name, path in [("lock", lock), ("builder", Path(__file__)), *own]:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def own_files(graph: grimp.ImportGraph, module: str) -> list[tuple[str, Path]]:
    """(name in the zip, file) of every module that the handler reaches, and of the data that lies with them."""
    found: dict[str, Path] = {}
    for reached in {module, *graph.find_upstream_modules(module)}:
        for depth in range(1, reached.count(".") + 2):
            path = ROOT.joinpath(*reached.split(".")[:depth])
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if source.exists():
                found[str(source.relative_to(ROOT))] = source
    packages = {path.parent for path in found.values() if path.name == "__init__.py"}
    for package in packages:
        for data in package.rglob("*"):
            if data.is_file() and data.suffix not in {".py", ".pyc"} and _nearest_package(data) == package:
                found[str(data.relative_to(ROOT))] = data
    return sorted(found.items())


def _nearest_package(path: Path) -> Path:
    return next(folder for folder in path.parents if (folder / "__init__.py").exists())


def wheels(kind: str, python: Path, version: str) -> Path:
    """The lock's packages for the runtime, compiled; kept until the lock changes, one builder at a time."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    with (WHEELS / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return _filled(kind, python, version)


def _filled(kind: str, python: Path, version: str) -> Path:
    lock = ROOT / "requirements" / f"{kind}.txt"
    folder = WHEELS / f"{kind}-{version}"
    stamp, wanted = (
        folder.with_suffix(".stamp"),
        hashlib.sha256(lock.read_bytes() + Path(__file__).read_bytes()).hexdigest(),
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    uv = str(Path(sys.executable).parent / "uv")
    where = ["--target", str(folder), "--python-platform", PLATFORM, "--python-version", version]
    how = ["--only-binary", ":all:", "--no-deps", "--require-hashes", "--quiet"]
    _run([uv, "pip", "install", *how, *where, "-r", str(lock)])
    _prune(folder, NODE_SERVICES if kind == "nodes" else AWS_SERVICES)
    _compile(folder, python)
    stamp.write_text(wanted)
    return folder


def _prune(folder: Path, services: frozenset[str]) -> None:
    """Leave out descriptions of AWS services that nothing here calls, and commands. Never dist-info: it is read."""
    shutil.rmtree(folder / "bin", ignore_errors=True)
    for entry in (folder / "botocore" / "data").iterdir():
        if entry.is_dir() and entry.name not in services:
            shutil.rmtree(entry)
    for lock in folder.glob(".lock"):
        lock.unlink()


def staged(folder: Path, files: Sequence[tuple[str, Path]], python: Path) -> Path:
    """Copies of files under their names in the zip, compiled."""
    for name, source in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    _compile(folder, python)
    return folder


def _compile(folder: Path, python: Path) -> None:
    """Byte code that the runtime trusts unchecked: the task's folder is read-only there, and importing is half as slow."""
    how = ["-q", "-j", "2", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", "/var/task"]
    _run([str(python), "-m", "compileall", *how, str(folder)])


def write_zip(target: Path, folders: Sequence[Path]) -> int:
    """Write the zip, reproducibly; answers the unzipped size in bytes."""
    unzipped = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in sorted(_files(folders)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = path.read_bytes()
            archive.writestr(entry, content)
            unzipped += len(content)
    return unzipped


def _files(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path.relative_to(folder)), path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_BOUND_S, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise PackageFailed(f"{Path(command[0]).name} {command[1]}: {last[0]}")


def package(version: str) -> int:
    """Build all and print a table: sizes, and how long a handler takes to import. Answers the exit status."""
    try:
        for a in build(PACKAGES, version):
            with tempfile.TemporaryDirectory() as folder:
                took_ms = import_alone(unpack(a, Path(folder)), a.handler, version).took_ms
            sizes = f"{a.zipped_bytes / MB:6.1f} MB zipped {a.unzipped_bytes / MB:6.1f} MB unzipped"
            sys.stdout.write(f"{a.function:<16}{sizes} {took_ms:5d} ms to import   sha256 {a.sha256[:16]}\n")
    except PackageFailed as failed:
        sys.stderr.write(f"psx: {failed}\n")
        return 2
    return 0
