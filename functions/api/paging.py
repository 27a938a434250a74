"""Where a list goes on: the store's key of the last row, as text that a client passes back."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from functions.http import ProblemError

CURSOR_MAX_CHARS: Final = 1024


def write_cursor(key: Mapping[str, Any]) -> str:
    """A key as text."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode()


def read_cursor(text: str) -> dict[str, dict[str, str]]:
    """The key again, or 400. It comes from a client: whoever uses it checks that it stays in the caller's own rows."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text)) if len(text) <= CURSOR_MAX_CHARS else None
    except (ValueError, binascii.Error):
        found = None
    names = {"pk", "sk", "account_id", "created_at"}
    right = isinstance(found, dict) and found.keys() == names and all(map(_is_attribute, found.values()))
    if not right or not isinstance(found, dict):
        raise ProblemError(400, "INVALID_FIELD", "cursor: send what X-Next-Cursor said")
    return found


def _is_attribute(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    kind, text = next(iter(value.items()))
    return isinstance(text, str) and (kind == "S" or (kind == "N" and text.isdigit()))
