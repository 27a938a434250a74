"""Pure decisions of the guard: may a loop run, does an audit chain hold."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from shared.guard.model import AuditEntry, AuditEvent, LoopLimit, Refused, Switch

GENESIS: Final = "0" * 64
LOOP_LIMITS: Final = {
    "list_exits": LoopLimit(per_minute=60, per_hour=1200),
    "roll_up": LoopLimit(per_minute=120, per_hour=3600),
    "validate_sale": LoopLimit(per_minute=60, per_hour=1200),
    "serve_owed": LoopLimit(per_minute=60, per_hour=1200),
    "end_keys": LoopLimit(per_minute=60, per_hour=1200),
    "keep_leases": LoopLimit(per_minute=60, per_hour=1200),
    "test_peer_tiers": LoopLimit(per_minute=6, per_hour=60),
    "buy_as_customer": LoopLimit(per_minute=6, per_hour=24),
    "refresh_ip_data": LoopLimit(per_minute=4, per_hour=60),
    "watchdog": LoopLimit(per_minute=4, per_hour=60),
    "drop_ghosts": LoopLimit(per_minute=4, per_hour=60),
}
"""Schedules ask for one run a minute, the roll-up for twenty; the room above is for operators and one machine's network.
The prober is no run: it reads the switch, and each device's own times and allowance limit it."""


def may_run(switch: Switch, runs_this_minute: int, runs_this_hour: int, limit: LoopLimit) -> Refused | None:
    """Why a loop may not run, the switch first; None when it may. The counts include this run."""
    if switch.stopped:
        return Refused.SWITCHED_OFF
    if runs_this_minute > limit.per_minute or runs_this_hour > limit.per_hour:
        return Refused.TOO_OFTEN
    return None


def chain(event: AuditEvent, sequence: int, previous: str) -> AuditEntry:
    """An event as the next entry of its stream."""
    text = json.dumps([sequence, previous, asdict(event)], sort_keys=True, separators=(",", ":"))
    return AuditEntry(event, sequence, previous, hashlib.sha256(text.encode()).hexdigest())


def first_broken(entries: Sequence[AuditEntry], *, trimmed: bool = False) -> int | None:
    """The sequence of the first entry that does not follow from the one before it; None when the chain holds.

    A `trimmed` chain has lost its oldest entries to their age: it begins wherever it begins.
    """
    begins = trimmed and bool(entries)
    previous = entries[0].previous if begins else GENESIS
    for position, entry in enumerate(entries, entries[0].sequence if begins else 0):
        if entry != chain(entry.event, position, previous):
            return position
        previous = entry.digest
    return None
