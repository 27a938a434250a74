"""How customers fared with exits, until it is told to all gateways' count: statistics, bounded; lost with the process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from shared.grading.model import Fared
from shared.kernel.ids import AccountId, DeviceId
from shared.pool.model import Acquired, Selected

ROWS_MAX: Final = 20_000
"""Pairs of exit and customer; more of them within one telling are not counted."""
TARGETS_MAX: Final = 8
DIGESTS_KEPT: Final = 4096
_DIGITS: Final = 12


@dataclass(slots=True)
class _Row:
    served: int = 0
    failed: int = 0
    targets: set[str] = field(default_factory=set)


class FaredBook:
    """What was not told yet."""

    def __init__(self) -> None:
        self._rows: dict[tuple[DeviceId, str], _Row] = {}

    def note(self, acquired: Acquired, account_id: AccountId, customer: str, failed_target: str = "") -> None:
        """A tunnel of a customer was served, or failed towards a target.

        An owner says nothing of the own devices, and nobody of a device that was asked for by name: who chooses whom to
        judge is no witness.
        """
        endpoint = acquired.endpoint
        if acquired.selected is Selected.PIN or endpoint.account_id == account_id:
            return
        key = DeviceId(endpoint.endpoint_id), digest(customer)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_MAX:
                return
            row = self._rows[key] = _Row()
        if not failed_target:
            row.served += 1
            return
        row.failed += 1
        if len(row.targets) < TARGETS_MAX:
            row.targets.add(digest(failed_target))

    def take(self, limit: int) -> list[Fared]:
        """Up to so many rows, which are forgotten here."""
        keys = list(self._rows)[:limit]
        return [self._told(key, self._rows.pop(key)) for key in keys]

    @staticmethod
    def _told(key: tuple[DeviceId, str], row: _Row) -> Fared:
        return Fared(*key, row.served, row.failed, tuple(sorted(row.targets)))


@lru_cache(maxsize=DIGESTS_KEPT)
def digest(name: str) -> str:
    """What a customer or a target is told apart by, where nobody needs its name."""
    return hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
