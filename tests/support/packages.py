"""Packaged functions for tests: the zips that a deployment uploads, and an interpreter with the bootstrap alone.

The runtime's own Python where the machine has it; in CI it must.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from local.packaging import RUNTIME, Artefact, build, interpreter
from local.paths import PACKAGES, ROOT, STATE

RUNTIMES: Final = STATE / "runtimes"
RUNTIME_LOCK: Final = ROOT / "requirements" / "lambda.txt"
INSTALL_BOUND_S: Final = 300


def runtime_version() -> str:
    """The runtime's Python; the one that runs the tests where it is missing, except in CI."""
    if interpreter(RUNTIME) is not None:
        return RUNTIME
    if os.environ.get("CI"):
        pytest.fail(f"Python {RUNTIME} is missing: packages could not be run as they are deployed")
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def environment_of(name: str, lock: Path, version: str) -> Path:
    """The interpreter of an environment that holds a lock's packages and nothing else."""
    folder = RUNTIMES / f"{name}-{version}"
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = str(Path(sys.executable).parent / "uv")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", str(interpreter(version)), str(folder)],
        [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(lock)],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_BOUND_S, check=False, cwd=STATE
        )
        assert done.returncode == 0, done.stderr[-500:]
    stamp.write_text(wanted)
    return python


@pytest.fixture(scope="session")
def artefacts() -> list[Artefact]:
    """Every function's zip, built from this checkout; kept while nothing changes."""
    return build(PACKAGES, runtime_version())
