"""What we rely on in DynamoDB, asked of every server that stands for it here, Amazon's own among them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from shared.access import table as access
from shared.access.model import ApiKey, DisabledReason, Pak
from shared.access.prepaid import credit_items, get_prepaid, move_items
from shared.access.settling import SETTLE_AFTER_MS, due_keys, settle_items, settle_later_item
from shared.guard import table as guard
from shared.guard.model import AuditEvent
from shared.guard.rules import first_broken
from shared.guard.service import write_audited
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import (
    Conflict,
    Contended,
    SyncDynamo,
    get_item,
    put,
    put_new,
    query,
    transact,
    transact_put,
    transact_update,
    update,
)
from tests.unit.access.test_access import GOOD, NOW, OWNER

pytestmark = pytest.mark.slow

ACCESS, GUARD, AUDIT = "psx-test-access", "psx-test-guard", "psx-test-audit"


def row(dynamo: SyncDynamo, pk: str) -> Any:
    return dynamo.run(get_item(ACCESS, pk, parse=lambda found: found))


def paks(count: int) -> list[Pak]:
    return [
        replace(
            GOOD, pak_id=PakId(f"p{n}"), secret_hash=f"h{n}", created_at_ms=NOW + n, expires_at_ms=NOW + n
        )
        for n in range(count)
    ]


def test_a_condition_that_fails_writes_nothing_and_says_so(any_dynamo: SyncDynamo) -> None:
    run = any_dynamo.run
    assert (
        run(put_new(ACCESS, {"pk": "a", "sk": "-", "n": 1})),
        run(put_new(ACCESS, {"pk": "a", "sk": "-"})),
    ) == (
        True,
        False,
    )
    asked = update(
        ACCESS, "a", "-", "SET n = :two", {":two": 2, ":three": 3}, parse=dict, condition="n = :three"
    )
    assert run(asked) is None
    assert row(any_dynamo, "a")["n"] == 1


def test_a_transaction_is_whole_and_names_every_condition_that_failed(any_dynamo: SyncDynamo) -> None:
    run = any_dynamo.run
    run(put(ACCESS, {"pk": "there", "sk": "-"}))
    items = [
        transact_put(ACCESS, {"pk": "fresh", "sk": "-"}),
        transact_put(ACCESS, {"pk": "there", "sk": "-"}),
        transact_update(ACCESS, "none", "-", "SET n = :n", {":n": 1}, condition="attribute_exists(pk)"),
    ]
    assert run(transact(items)) == Conflict((1, 2))
    assert row(any_dynamo, "fresh") is None


def test_numbers_keep_all_their_38_digits(any_dynamo: SyncDynamo) -> None:
    large = 10**38 - 1
    any_dynamo.run(put(ACCESS, {"pk": "n", "sk": "-", "n": large - 5}))
    asked = update(ACCESS, "n", "-", "ADD n :five", {":five": 5}, parse=lambda found: found["n"])
    assert any_dynamo.run(asked) == large


def test_pages_go_on_where_they_ended_in_a_table_and_in_an_index(any_dynamo: SyncDynamo) -> None:
    for pak in paks(5):
        assert any_dynamo.run(access.mint(ACCESS, pak)) is None
    found, start = list[str](), None
    while True:
        page = any_dynamo.run(access.list_paks(ACCESS, OWNER, 2, start))
        found += [pak.pak_id for pak in page.rows]
        start = page.next_key
        if start is None:
            break
    assert found == ["p4", "p3", "p2", "p1", "p0"]


def test_keys_leave_the_index_of_those_that_end_when_they_were_turned_off(any_dynamo: SyncDynamo) -> None:
    for pak in paks(3):
        any_dynamo.run(access.mint(ACCESS, pak))
    assert any_dynamo.run(access.expired_paks(ACCESS, NOW + 1, 10)).rows == ("p0", "p1")
    first = any_dynamo.run(access.get_pak(ACCESS, PakId("p0")))
    assert first is not None
    off = access.suspend_expired_item(ACCESS, first, NOW + 1)
    assert any_dynamo.run(transact([off])) is None
    assert any_dynamo.run(transact([off])) == Conflict((0,))
    assert any_dynamo.run(access.expired_paks(ACCESS, NOW + 1, 10)).rows == ("p1",)
    on = access.top_up_item(ACCESS, PakId("p0"), 1, NOW + 9, NOW, reenable=True)
    assert any_dynamo.run(transact([on])) is None
    assert any_dynamo.run(access.expired_paks(ACCESS, NOW + 9, 10)).rows == ("p1", "p2", "p0")


def test_a_balance_is_credited_once_drawn_while_it_lasts_and_settled_once(any_dynamo: SyncDynamo) -> None:
    run = any_dynamo.run
    assert run(transact(credit_items(ACCESS, OWNER, "c1", 100, {}))) is None
    assert run(transact(credit_items(ACCESS, OWNER, "c1", 100, {}))) == Conflict((0,))
    prepaid = run(get_prepaid(ACCESS, OWNER))
    pak = replace(GOOD, drawn_bytes=80, enabled=False, disabled_reason=DisabledReason.DELETED)
    assert run(transact([*access.mint_items(ACCESS, pak), *move_items(ACCESS, prepaid, 80)])) is None
    assert run(transact(move_items(ACCESS, prepaid, 21))) == Conflict((0,))
    run(transact([settle_later_item(ACCESS, pak, NOW)]))
    assert run(due_keys(ACCESS, NOW + SETTLE_AFTER_MS - 1, 9)).rows == ()
    ((place, pak_id),) = run(due_keys(ACCESS, NOW + SETTLE_AFTER_MS + 1, 9)).rows
    assert pak_id == pak.pak_id
    items = settle_items(ACCESS, place, pak, prepaid, 30, NOW)
    assert run(transact(items)) is None
    assert run(transact(items)) == Conflict((0, 1))
    left = run(get_prepaid(ACCESS, OWNER))
    assert left is not None
    assert left.available_bytes == 70


def test_an_account_has_no_more_keys_than_it_may(
    any_dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "API_KEYS_PER_ACCOUNT_MAX", 2)
    keys = [ApiKey(f"{n}" * 64, AccountId("psx_a"), frozenset(), NOW + n) for n in range(3)]
    assert [any_dynamo.run(access.put_api_key(ACCESS, key)) for key in keys] == [True, True, False]
    assert any_dynamo.run(transact(access.end_api_key_items(ACCESS, keys[0], NOW))) is None
    assert any_dynamo.run(transact(access.end_api_key_items(ACCESS, keys[0], NOW))) == Conflict((0,))
    assert any_dynamo.run(access.put_api_key(ACCESS, keys[2]))


def test_a_write_and_its_event_stand_together_and_the_chain_holds(any_dynamo: SyncDynamo) -> None:
    def write(number: int) -> Conflict | None:
        item = transact_put(GUARD, {"pk": f"w{number}", "sk": "-"})
        event = AuditEvent("acct#psx_a", "create", "me", NOW + number)
        return write_audited(any_dynamo, AUDIT, event, [item], "psx_a", begins=number == 0)

    assert [write(n) for n in (0, 1, 0, 2)] == [None, None, Conflict((0,)), None]
    kept = any_dynamo.run(guard.entries(AUDIT, "acct#psx_a", 10, forward=True)).rows
    assert ([e.event.at_ms - NOW for e in kept], first_broken(kept)) == ([0, 1, 2], None)
    assert len(any_dynamo.run(guard.account_log(AUDIT, "psx_a", 10)).rows) == 3


def test_a_setting_is_replaced_only_as_it_was_read(any_dynamo: SyncDynamo) -> None:
    run = any_dynamo.run
    first = guard.replace_setting(GUARD, "prices", {"p": 1}, NOW, None, NOW + 5)
    assert (run(transact([first])), run(transact([first]))) == (None, Conflict((0,)))
    known = run(guard.read_versions(GUARD, "prices"))
    second = guard.replace_setting(GUARD, "prices", {"p": 2}, NOW + 1, known, NOW + 9)
    assert (run(transact([second])), run(transact([second]))) == (None, Conflict((0,)))
    found = run(guard.read_versions(GUARD, "prices"))
    assert found is not None
    assert found.in_force(NOW + 2) == ({"p": 2}, {"p": 1}, {})


def test_of_many_at_once_each_adds_exactly_once(request: pytest.FixtureRequest) -> None:
    """On Amazon's own server alone: moto has no atomic transactions under threads."""
    dynamo: SyncDynamo = request.getfixturevalue("amazon")

    def add(number: int) -> None:
        items = [
            transact_put(ACCESS, {"pk": f"once#{number % 10}", "sk": "-"}),
            transact_update(ACCESS, "sum", "-", "ADD n :one", {":one": 1}),
        ]
        while True:
            try:
                dynamo.run(transact(items))
                return
            except Contended:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert row(dynamo, "sum")["n"] == 10
    rows = dynamo.run(query(ACCESS, "pk = :pk", {":pk": "once#3"}, parse=lambda r: r["pk"], limit=5)).rows
    assert rows == ("once#3",)
