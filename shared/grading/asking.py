"""How a probe target is asked for a body: signed, so that targets send bodies to nobody but us. Decision 0094, RFC 2104."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

KEY_MIN_CHARS: Final = 16
ASKED_WITHIN_S: Final = 300
"""How far the clocks of prober and target may be apart."""


def question(asking_keys: str, nonce: str, size_bytes: int, now_s: int) -> str:
    """Where a target answers a body of that size: signed by the first of the keys (a list with commas)."""
    asked = f"nonce={nonce}&size={size_bytes}&at={now_s}"
    return f"/probe?{asked}&mac={_mac(asking_keys.partition(',')[0], asked)}"


def is_ours(asking_keys: str, fields: Mapping[str, str], now_s: int) -> bool:
    """Whether somebody who holds one of the keys asked this, just now. Raises ValueError for a time that is none."""
    asked = f"nonce={fields.get('nonce')}&size={fields.get('size')}&at={fields.get('at')}"
    given = fields.get("mac", "").encode()
    known = any(
        hmac.compare_digest(_mac(key, asked).encode(), given) for key in filter(None, asking_keys.split(","))
    )
    return known and abs(now_s - int(fields["at"])) <= ASKED_WITHIN_S


def _mac(key: str, asked: str) -> str:
    return hmac.new(key.encode(), asked.encode(), hashlib.sha256).hexdigest()
