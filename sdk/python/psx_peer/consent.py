"""The owner's agreement: what is shared is shown, asked once, and recorded with its version, time and method."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, Final

TERMS_VERSION: Final = "2026-11"
TERMS_TEXT: Final = """\
Sharing this device's connection:
  - customers' web traffic leaves through your internet connection, and uses your data allowance;
  - you are paid per GB that was carried; the rate is shown when the device registers;
  - your local network, mail ports and private addresses are never reachable through it;
  - you can stop at any time with Ctrl-C (or by stopping the process); open connections end at once.
"""


WITHDRAWN_TEXT: Final = (
    "consent was withdrawn: nothing is shared until the owner agrees again, "
    "on a terminal or by the account's API key"
)


class NotAgreed(Exception):
    """Nothing may be shared; the message says what to do."""


@dataclass(frozen=True)
class Consent:
    """A recorded agreement. `method` is `flag` or `terminal`; the time is in unix milliseconds."""

    terms_version: str
    accepted_at_ms: int
    method: str

    def as_json(self) -> dict[str, Any]:
        """As registration and the state file hold it."""
        return {
            "termsVersion": self.terms_version,
            "acceptedAt": self.accepted_at_ms,
            "method": self.method,
        }


def from_json(saved: Any) -> Consent | None:
    """A consent of the current terms that was recorded before, or None."""
    if not isinstance(saved, dict) or saved.get("termsVersion") != TERMS_VERSION:
        return None
    at_ms, method = saved.get("acceptedAt"), saved.get("method")
    if not isinstance(at_ms, int) or not isinstance(method, str):
        return None
    return Consent(TERMS_VERSION, at_ms, method)


def obtain(given_version: str | None, saved: Any) -> Consent:
    """By flag, else as recorded, else by asking once on a terminal. Raises NotAgreed."""
    now_ms = int(time.time() * 1000)
    recorded = from_json(saved)
    if given_version:
        if given_version != TERMS_VERSION:
            raise NotAgreed(f"these are not the terms: --accept-terms must be {TERMS_VERSION}")
        return recorded or Consent(TERMS_VERSION, now_ms, "flag")
    if recorded is not None:
        return recorded
    if not sys.stdin.isatty():
        raise NotAgreed(
            f"--accept-terms {TERMS_VERSION} is needed: the owner must agree to share this connection"
        )
    sys.stdout.write(TERMS_TEXT)
    sys.stdout.write("Do you agree? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise NotAgreed("not agreed: nothing was shared")
    return Consent(TERMS_VERSION, now_ms, "terminal")
