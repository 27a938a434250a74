"""Environments of stock x402 clients, apart from ours: nothing of this project is importable in them."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from local.paths import ROOT, STATE

SOURCES: Final = ROOT / "tests" / "e2e" / "stock_clients"
LOCK: Final = ROOT / "requirements" / "stock_x402.txt"
HOME: Final = STATE / "stock_clients"
INSTALL_BOUND_S: Final = 400


def node_folder() -> Path:
    """The npm clients, installed from their lock, with the scripts beside them."""
    folder, lock = HOME / "node", SOURCES / "package-lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.iterdir():
        if source.suffix in {".mjs", ".json"} or source.name == ".npmrc":
            shutil.copy(source, folder)
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed: the stock clients need Node.js 20")
    _once(folder, lock, [[npm, "ci", "--ignore-scripts"]])
    return folder


def python_path() -> Path:
    """The interpreter of the PyPI client."""
    folder = HOME / "python"
    uv = str(Path(sys.executable).parent / "uv")
    python = folder / "bin" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    fill = [uv, "pip", "sync", "--python", str(python), "--require-hashes", str(LOCK)]
    _once(folder, LOCK, [make, fill])
    return python


def _once(folder: Path, lock: Path, commands: list[list[str]]) -> None:
    stamp, wanted = folder / "stamp", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_BOUND_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    stamp.write_text(wanted)
