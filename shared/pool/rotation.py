"""Asking a device for another address: a push to its relay, and what the device said, for an hour.

Every relay hears the push; the one that has the device sends `rotate_ip_request`. A device answers when it is back, maybe
on another relay. What it says counts for its own requests alone: their key holds its id, as its token named it.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.kernel.ids import DeviceId
from shared.runtime.redis import RedisCall, command, ok

ROTATE_DEVICE: Final = "rotate:dev"
"""Channel: device id, request id."""
OUTCOME_KEPT_S: Final = 3600
ERROR_MAX_CHARS: Final = 120


class RotationState(StrEnum):
    """How a rotation stands."""

    ASKED = "asked"
    DONE = "done"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a device said. `changed`: whether its relay sees another address than before; None when it cannot tell."""

    state: RotationState
    at_ms: int
    error: str = ""
    changed: bool | None = None


def _key(device_id: DeviceId, request_id: str) -> str:
    return f"{{peer}}:rotation:{device_id}:{request_id}"


def ask_rotation(
    device_id: DeviceId, request_id: str, now_ms: int
) -> tuple[RedisCall[None], RedisCall[None]]:
    """Expect an answer, then tell every relay."""
    asked = json.dumps({"state": RotationState.ASKED.value, "at": now_ms})
    return (
        command("SET", _key(device_id, request_id), asked, "EX", OUTCOME_KEPT_S, parse=ok),
        command("PUBLISH", ROTATE_DEVICE, f"{device_id} {request_id}", parse=ok),
    )


def tell_rotated(device_id: DeviceId, request_id: str, outcome: Outcome) -> RedisCall[bool]:
    """What a device said; False when nobody asked it."""
    said = {
        "state": outcome.state.value,
        "at": outcome.at_ms,
        "error": printable(outcome.error),
        "changed": outcome.changed,
    }
    key = _key(device_id, request_id)
    return command("SET", key, json.dumps(said), "XX", "KEEPTTL", parse=bool)


def read_rotation(device_id: DeviceId, request_id: str) -> RedisCall[Outcome | None]:
    """How a rotation stands; None when nothing is known of it any more."""

    def parse(raw: Any) -> Outcome | None:
        if not raw:
            return None
        said = json.loads(raw)
        return Outcome(RotationState(said["state"]), said["at"], said.get("error", ""), said.get("changed"))

    return command("GET", _key(device_id, request_id), parse=parse)


def printable(text: str) -> str:
    """A stranger's words as they may be shown."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:ERROR_MAX_CHARS])
