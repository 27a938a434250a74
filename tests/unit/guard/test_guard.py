"""The guard: a switch that stops every loop, limits, approvals that nobody gives themselves, an audit that holds."""

from dataclasses import replace

import pytest

from shared.guard import table as rows
from shared.guard.approvals import Approvals
from shared.guard.model import (
    Approval,
    ApprovalState,
    AuditEvent,
    Incident,
    LoopLimit,
    Refused,
    Switch,
)
from shared.guard.rules import GENESIS, LOOP_LIMITS, chain, first_broken, may_decide, may_run
from shared.guard.service import AuditContended, LiveSettings, append_audit, enter_loop
from shared.runtime.dynamo import DynamoRequest, StoreUnavailable, SyncDynamo

GUARD, AUDIT = "psx-test-guard", "psx-test-audit"
NOW = 1_800_000_000_000
LIMIT = LoopLimit(per_minute=2, per_hour=3)


@pytest.mark.parametrize(
    ("switch", "minute", "hour", "refused"),
    [
        (Switch(), 2, 3, None),
        (Switch(), 3, 3, Refused.TOO_OFTEN),
        (Switch(), 1, 4, Refused.TOO_OFTEN),
        (Switch(stopped=True), 1, 1, Refused.SWITCHED_OFF),
        (Switch(stopped=True), 9, 9, Refused.SWITCHED_OFF),
    ],
)
def test_the_switch_comes_first_then_the_limits(
    switch: Switch, minute: int, hour: int, refused: Refused | None
) -> None:
    assert may_run(switch, minute, hour, LIMIT) is refused


def test_the_switch_stops_a_loop_and_lets_it_go_on(dynamo: SyncDynamo) -> None:
    assert enter_loop(dynamo, GUARD, "roll_up", NOW) is None
    dynamo.run(rows.set_switch(GUARD, Switch(True, "test", "me", NOW)))
    assert enter_loop(dynamo, GUARD, "roll_up", NOW) is Refused.SWITCHED_OFF
    assert dynamo.run(rows.read_switch(GUARD)) == Switch(True, "test", "me", NOW)
    dynamo.run(rows.set_switch(GUARD, Switch(at_ms=NOW)))
    assert enter_loop(dynamo, GUARD, "roll_up", NOW) is None


def test_a_runaway_loop_is_refused_until_the_minute_is_over(dynamo: SyncDynamo) -> None:
    allowed = LOOP_LIMITS["roll_up"].per_minute
    assert [enter_loop(dynamo, GUARD, "roll_up", NOW) for _ in range(allowed)] == [None] * allowed
    assert enter_loop(dynamo, GUARD, "roll_up", NOW) is Refused.TOO_OFTEN
    assert enter_loop(dynamo, GUARD, "roll_up", NOW + 60_000) is None


def event(action: str) -> AuditEvent:
    return AuditEvent("pak#1", action, "me", NOW, metadata={"n": 1})


def test_an_audit_is_appended_in_order_and_its_chain_holds(dynamo: SyncDynamo) -> None:
    for action in ("create", "update", "delete"):
        append_audit(dynamo, AUDIT, event(action))
    entries = dynamo.run(rows.entries(AUDIT, "pak#1", 10, forward=True)).rows
    assert [e.event.action for e in entries] == ["create", "update", "delete"]
    assert first_broken(entries) is None
    newest = dynamo.run(rows.entries(AUDIT, "pak#1", 10, before=2)).rows
    assert [e.event.action for e in newest] == ["update", "create"]


def test_a_place_in_the_audit_is_taken_once(dynamo: SyncDynamo) -> None:
    entry = chain(event("create"), 0, GENESIS)
    assert dynamo.run(rows.append_entry(AUDIT, entry))
    assert not dynamo.run(rows.append_entry(AUDIT, chain(event("other"), 0, GENESIS)))


def test_an_altered_entry_breaks_the_chain_where_it_stands() -> None:
    first = chain(event("create"), 0, GENESIS)
    second = chain(event("update"), 1, first.digest)
    forged = replace(first, event=event("nothing happened"))
    assert first_broken([first, second]) is None
    assert first_broken([forged, second]) == 0
    assert first_broken([first, chain(event("update"), 1, GENESIS)]) == 1
    assert first_broken([second]) == 0


def test_an_audit_that_others_keep_taking_gives_up_within_its_bound(dynamo: SyncDynamo) -> None:
    class Beaten:
        def run(self, request: DynamoRequest[object]) -> object:
            return False if request.operation == "put_item" else dynamo.run(request)

    with pytest.raises(AuditContended):
        append_audit(Beaten(), AUDIT, event("create"))  # type: ignore[arg-type]  # runs requests, that is all it must


def test_nobody_approves_their_own_proposal(dynamo: SyncDynamo) -> None:
    approvals = Approvals(GUARD)
    approval = Approval("a1", "payout", {"amount": 1, "to": "x"}, "robot", NOW)
    assert approvals.propose(approval)
    assert not approvals.propose(approval)
    assert approvals.find("a1") == approval
    assert approvals.find("a2") is None
    assert not may_decide(approval, "robot")
    assert not may_decide(approval, "")
    assert may_decide(approval, "human")
    assert approvals.decide(approval, ApprovalState.APPROVED, "robot") is None
    decided = approvals.decide(approval, ApprovalState.REJECTED, "human")
    assert decided is not None
    assert (decided.state, decided.decided_by) == (ApprovalState.REJECTED, "human")
    assert approvals.find("a1") == decided
    assert approvals.decide(approval, ApprovalState.APPROVED, "other") is None
    assert not may_decide(decided, "other")


def test_a_table_that_is_not_there_is_the_store_not_answering(dynamo: SyncDynamo) -> None:
    nowhere = Approvals("psx-test-nowhere")
    approval = Approval("a1", "payout", {}, "robot", NOW)
    for attempt in (
        lambda: nowhere.propose(approval),
        lambda: nowhere.find("a1"),
        lambda: nowhere.decide(approval, ApprovalState.APPROVED, "human"),
    ):
        with pytest.raises(StoreUnavailable):
            attempt()


def test_incidents_are_opened_once_and_listed_newest_first(dynamo: SyncDynamo) -> None:
    assert dynamo.run(rows.open_incident(GUARD, Incident("1#a", "brake", "first", NOW)))
    assert not dynamo.run(rows.open_incident(GUARD, Incident("1#a", "brake", "again", NOW)))
    dynamo.run(rows.open_incident(GUARD, Incident("2#a", "brake", "second", NOW)))
    assert [i.message for i in dynamo.run(rows.open_incidents(GUARD, 10)).rows] == ["second", "first"]


def test_live_settings_are_read_again_after_their_time(dynamo: SyncDynamo) -> None:
    clock = [NOW]
    live = LiveSettings(dynamo, GUARD, lambda: clock[0])
    assert live.get("rates") == {}
    dynamo.run(rows.write_setting(GUARD, "rates", {"mobile": 5}, NOW))
    assert live.get("rates") == {}
    clock[0] += 5_000
    assert live.get("rates") == {"mobile": 5}
