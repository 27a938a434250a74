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
from shared.guard.rules import GENESIS, LOOP_LIMITS, chain, first_broken, may_run
from shared.guard.service import (
    AuditContended,
    LiveSettings,
    all_incidents,
    append_audit,
    enter_loop,
    standing_incidents,
    write_audited,
)
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    StoreUnavailable,
    SyncDynamo,
    put,
    transact,
    transact_put,
)

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


@pytest.mark.slow  # over a second of processor time
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
    assert dynamo.run(transact([approvals.propose_item(approval)])) is None
    assert dynamo.run(transact([approvals.propose_item(approval)])) == Conflict((0,))
    assert approvals.find("a1") == approval
    assert approvals.find("a2") is None
    own = approvals.decide_item(approval, ApprovalState.APPROVED, "robot")
    assert dynamo.run(transact([own])) == Conflict((0,))
    assert dynamo.run(transact([approvals.decide_item(approval, ApprovalState.REJECTED, "human")])) is None
    decided = approvals.find("a1")
    assert decided is not None
    assert (decided.state, decided.decided_by) == (ApprovalState.REJECTED, "human")
    late = approvals.decide_item(approval, ApprovalState.APPROVED, "other")
    assert dynamo.run(transact([late])) == Conflict((0,))


def test_a_table_that_is_not_there_is_the_store_not_answering(dynamo: SyncDynamo) -> None:
    with pytest.raises(StoreUnavailable):
        Approvals("psx-test-nowhere").find("a1")


def test_a_write_and_its_event_stand_together_or_not_at_all(dynamo: SyncDynamo) -> None:
    told = event("create")
    item = transact_put(GUARD, {"pk": "x", "sk": "-"})
    assert write_audited(dynamo, AUDIT, told, [item], "psx_a", begins=True) is None
    assert write_audited(dynamo, AUDIT, told, [item], "psx_a") == Conflict((0,))
    other = transact_put(GUARD, {"pk": "y", "sk": "-"})
    # The stream is not new after all: the place is taken, and the next one is asked for.
    assert write_audited(dynamo, AUDIT, told, [other], begins=True) is None
    kept = dynamo.run(rows.entries(AUDIT, told.stream, 10, forward=True)).rows
    assert [entry.sequence for entry in kept] == [0, 1]
    assert first_broken(kept) is None


def test_what_a_setting_said_before_is_in_force_for_as_long_as_was_promised(dynamo: SyncDynamo) -> None:
    for price, at_ms in ((1, NOW), (2, NOW + 10), (3, NOW + 20)):
        known = dynamo.run(rows.read_versions(GUARD, "prices"))
        item = rows.replace_setting(GUARD, "prices", {"p": price}, at_ms, known, at_ms + 100)
        assert dynamo.run(transact([item])) is None
    stale = rows.replace_setting(GUARD, "prices", {"p": 9}, NOW + 21, known, NOW + 121)
    assert dynamo.run(transact([stale])) == Conflict((0,))
    found = dynamo.run(rows.read_versions(GUARD, "prices"))
    assert found is not None
    assert [v.get("p") for v in found.in_force(NOW + 20)] == [3, 2, 1, None]  # None: nobody had set it
    assert [v.get("p") for v in found.in_force(NOW + 100)] == [3, 2, 1]
    assert [v.get("p") for v in found.in_force(NOW + 110)] == [3, 2]
    assert [v.get("p") for v in found.in_force(NOW + 120)] == [3]


def test_what_is_wrong_stands_once_until_it_is_right_and_may_be_wrong_again(dynamo: SyncDynamo) -> None:
    assert dynamo.run(rows.open_incident(GUARD, Incident("a", "brake", "first", NOW)))
    assert not dynamo.run(rows.open_incident(GUARD, Incident("a", "brake", "again", NOW + 1)))
    assert dynamo.run(rows.close_incident(GUARD, "a", NOW + 2))
    assert not dynamo.run(rows.close_incident(GUARD, "a", NOW + 3))
    assert standing_incidents(dynamo, GUARD) == []
    assert dynamo.run(rows.open_incident(GUARD, Incident("a", "brake", "anew", NOW + 4)))
    assert standing_incidents(dynamo, GUARD) == [Incident("a", "brake", "anew", NOW + 4)]


def test_no_number_of_old_incidents_hides_one_that_stands(
    dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "INCIDENTS_PAGE", 7)
    names = [f"{kind}#{n}" for n in range(30) for kind in ("brake", "gateway")]
    for number, name in enumerate(names):
        dynamo.run(rows.open_incident(GUARD, Incident(name, "k", "old", NOW + number)))
        dynamo.run(rows.close_incident(GUARD, name, NOW + 1_000))
    unpaid = Incident("paid#base#0x1", "paid_not_served", "money", NOW - 1_000)
    dynamo.run(rows.open_incident(GUARD, unpaid))
    found = all_incidents(dynamo, GUARD)
    assert (found[0], len(found)) == (unpaid, 61)
    assert [i.opened_at_ms for i in found[1:]] == sorted((i.opened_at_ms for i in found[1:]), reverse=True)


def test_an_incident_that_an_older_version_wrote_is_read_and_can_be_closed(dynamo: SyncDynamo) -> None:
    row = {"pk": "incident", "sk": f"{NOW}#brake", "kind": "brake", "message": "old", "opened_at_ms": NOW}
    dynamo.run(put(GUARD, row))
    assert standing_incidents(dynamo, GUARD) == [Incident(f"{NOW}#brake", "brake", "old", NOW)]
    assert dynamo.run(rows.close_incident(GUARD, f"{NOW}#brake", NOW + 1))
    assert standing_incidents(dynamo, GUARD) == []


def test_live_settings_are_read_again_after_their_time(dynamo: SyncDynamo) -> None:
    clock = [NOW]
    live = LiveSettings(dynamo, GUARD, lambda: clock[0])
    assert live.get("rates") == {}
    dynamo.run(rows.write_setting(GUARD, "rates", {"mobile": 5}, NOW))
    assert live.get("rates") == {}
    clock[0] += 5_000
    assert live.get("rates") == {"mobile": 5}
