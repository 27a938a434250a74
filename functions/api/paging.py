"""Where a list goes on: the store's key of the last row, as text that a client passes back."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from functions.http import ProblemError

T = TypeVar("T")
PART_MAX: Final = 500
CURSOR_MAX_CHARS: Final = 1024
_TEXT: Final = ("S", re.compile(r"[!-~]{1,256}"))
_NUMBER: Final = ("N", re.compile(r"[0-9]{1,19}"))
_SHAPE: Final = {"pk": _TEXT, "sk": _TEXT, "account_id": _TEXT, "created_at": _NUMBER}


def part(rows: Sequence[T], limit: int, after: str, place: Callable[[T], str]) -> tuple[list[T], str | None]:
    """One page of a bounded list that is read whole, and the place to go on from (None at the end).

    `place` orders the rows; a row that went or came meanwhile shifts nothing.
    """
    rest = sorted((row for row in rows if place(row) > after), key=place)
    page = rest[: max(1, min(limit, PART_MAX))]
    return page, place(page[-1]) if len(rest) > len(page) else None


def write_cursor(key: Mapping[str, Any]) -> str:
    """A key as text."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode()


def read_cursor(text: str) -> dict[str, dict[str, str]]:
    """The key again, or 400. It comes from a client: whoever uses it checks that it stays in the caller's own rows."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text)) if len(text) <= CURSOR_MAX_CHARS else None
    except (ValueError, binascii.Error):
        found = None
    if not isinstance(found, dict) or found.keys() != _SHAPE.keys() or not _has_shape(found):
        raise ProblemError(400, "INVALID_FIELD", "cursor: send what X-Next-Cursor said")
    return found


def own_cursor(text: str, account_id: str) -> dict[str, dict[str, str]] | None:
    """Where a list of an account's own rows goes on; None at its beginning, 400 for a place in another account's."""
    start = read_cursor(text) if text else None
    if start is not None and start.get("account_id") != {"S": account_id}:
        raise ProblemError(400, "INVALID_FIELD", "cursor: send what X-Next-Cursor said")
    return start


def _has_shape(key: Mapping[str, Any]) -> bool:
    """Whether a key's attributes are of the kinds and sizes that the store takes."""
    for name, (kind, text) in _SHAPE.items():
        attribute = key[name]
        if not isinstance(attribute, dict) or attribute.keys() != {kind}:
            return False
        if not isinstance(attribute[kind], str) or text.fullmatch(attribute[kind]) is None:
            return False
    return True
