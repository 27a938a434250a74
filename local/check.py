"""`./psx check` and `./psx lock`: what must hold before code is handed in, and the hash-pinned locks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from local.paths import ROOT

BIN: Final = Path(sys.executable).parent
CHECKS: Final = (
    ("format", ("ruff", "format", "--check", ".")),
    ("lint", ("ruff", "check", ".")),
    ("import contracts", ("lint-imports", "--no-logo")),
    ("types", ("mypy",)),
    ("deployment files", ("python", "-m", "local.deployment_files")),
)
LOCKS: Final = ("bootstrap", "dev", "api", "x402", "jobs", "nodes", "lambda", "stock_x402", "ministack")
APART: Final = frozenset({"bootstrap", "dev", "stock_x402", "ministack"})


def check() -> int:
    """Run all checks side by side; prints what ran and what failed. Answers 0 when all passed."""
    began = time.monotonic()
    running = [
        (
            name,
            subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
        for name, command in CHECKS
    ]
    failed = 0
    for name, process in running:
        output, _ = process.communicate()
        failed += process.returncode != 0
        if process.returncode or name == "deployment files":  # it also tells which tools this machine lacks
            sys.stdout.write(output)
        sys.stdout.write(f"{'ok  ' if process.returncode == 0 else 'FAIL'} {name}\n")
    sys.stdout.write(
        f"{len(running) - failed} of {len(running)} checks passed in {time.monotonic() - began:.0f} s\n"
    )
    return 1 if failed else 0


def lock() -> int:
    """Compile every lock; the deployables are held to the versions that development tests."""
    for name in LOCKS:
        held = ["-c", "requirements/dev.txt"] if name not in APART else []
        command = [
            str(BIN / "uv"),
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--generate-hashes",
            "--python-version",
            "3.11",
            "--custom-compile-command",
            "./psx lock",
            "--no-emit-index-url",
            "--no-emit-find-links",
            *held,
            f"requirements/{name}.in",
            "-o",
            f"requirements/{name}.txt",
        ]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            return status
        sys.stdout.write(f"requirements/{name}.txt\n")
    return 0
