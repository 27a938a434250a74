"""Pure decisions of the guard: may a loop run, may this person decide, does an audit chain hold."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from shared.guard.model import Approval, ApprovalState, AuditEntry, AuditEvent, LoopLimit, Refused, Switch

GENESIS: Final = "0" * 64
LOOP_LIMITS: Final = {
    "list_exits": LoopLimit(per_minute=60, per_hour=1200),
    "roll_up": LoopLimit(per_minute=60, per_hour=1200),
    "validate_sale": LoopLimit(per_minute=60, per_hour=1200),
    "serve_owed": LoopLimit(per_minute=60, per_hour=1200),
    "refresh_ip_data": LoopLimit(per_minute=4, per_hour=60),
    "prober": LoopLimit(per_minute=120, per_hour=7200),
}
"""The schedule asks for one run a minute; the room above it is for operators and for the network on one machine."""


def may_run(switch: Switch, runs_this_minute: int, runs_this_hour: int, limit: LoopLimit) -> Refused | None:
    """Why a loop may not run, the switch first; None when it may. The counts include this run."""
    if switch.stopped:
        return Refused.SWITCHED_OFF
    if runs_this_minute > limit.per_minute or runs_this_hour > limit.per_hour:
        return Refused.TOO_OFTEN
    return None


def may_decide(approval: Approval, decider: str) -> bool:
    """Whether this person may approve or reject: it is still open, and somebody else proposed it."""
    return approval.state is ApprovalState.PROPOSED and bool(decider) and decider != approval.proposed_by


def chain(event: AuditEvent, sequence: int, previous: str) -> AuditEntry:
    """An event as the next entry of its stream."""
    text = json.dumps([sequence, previous, asdict(event)], sort_keys=True, separators=(",", ":"))
    return AuditEntry(event, sequence, previous, hashlib.sha256(text.encode()).hexdigest())


def first_broken(entries: Sequence[AuditEntry]) -> int | None:
    """The sequence of the first entry that does not follow from the one before it; None when the chain holds."""
    previous = GENESIS
    for position, entry in enumerate(entries):
        if entry != chain(entry.event, position, previous):
            return position
        previous = entry.digest
    return None
