"""What a device keeps between starts: its identity and its owner's agreement, in a file that only its owner can read.

The file is the same for every SDK: `{name, deviceId, refreshToken, consent}`, and after a withdrawal of consent
`{name, withdrawn}`, which names the device; `attempt` is
there while a registration is not answered. A device that runs holds `<file>.lock` with
its process id, so that two instances never share one identity by accident.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

STATE_MAX_BYTES: Final = 64 * 1024


class InUse(Exception):
    """Another running instance has this state file."""


def read_state(path: Path) -> dict[str, Any]:
    """What was kept; empty when there is nothing that can be read."""
    try:
        with path.open(encoding="utf-8") as file:
            state = json.loads(file.read(STATE_MAX_BYTES))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Keep it: whole or not at all, readable by the owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(state, file)
    part.replace(path)


def hold(path: Path) -> Path:
    """Say that this process uses the state file; answers the lock to `release`. Raises InUse and OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    for _ in range(2):
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if _runs(lock):
                raise InUse(
                    f"another instance uses {path}: give each one its own name and state file"
                ) from None
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(str(os.getpid()))
        return lock
    raise InUse(f"another instance is starting with {path}")


def release(lock: Path) -> None:
    """The instance ends."""
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)


def _runs(lock: Path) -> bool:
    try:
        holder = int(lock.read_text())
    except (OSError, ValueError):
        return False
    if holder == os.getpid():  # the first process of a container that was killed and started anew
        return False
    try:
        os.kill(holder, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
