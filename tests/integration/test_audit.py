"""Audit: every mutation leaves exactly one event, and events go after 90 days."""

from typing import Any

import pytest

from functions.api.audit import RENEWALS
from shared.guard.model import AuditEvent
from shared.guard.rules import first_broken
from shared.guard.service import append_audit
from shared.guard.table import AUDIT_KEPT_S, entries
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import DynamoRequest, SyncDynamo, as_items
from tests.support.functions import PREFIX
from tests.support.routes import WRITES, documented, stored
from tests.support.tenants import Tenancy

pytestmark = pytest.mark.slow


def events() -> dict[tuple[str, str], dict[str, Any]]:
    """Events by their place; the account's copies are no events of their own."""
    rows = (r for r in stored() if r["table"] == PREFIX + "audit" and not r["pk"]["S"].startswith("log#"))
    return {(r["pk"]["S"], r["sk"]["S"]): r["event"]["M"] for r in rows}


OPERATIONS = frozenset({"put_item", "update_item", "delete_item", "transact_write_items"})
ON_ITS_OWN = {
    ("POST", "/v1/auth/sign-in"): "changes nothing",
    ("POST", "/v1/reseller/pool-keys/{pak_id}/reveal"): "changes nothing",
    ("DELETE", "/v1/gateway/pool/my-sessions"): "sessions live in Redis; told first",
    ("DELETE", "/v1/gateway/pool/my-sessions/{session_key}"): "sessions live in Redis; told first",
    ("POST", "/v1/admin/switch"): "stopping waits for no other row",
}
"""Routes whose event is in no transaction with what they do, and why."""


def tells(write: DynamoRequest[Any]) -> bool:
    """Whether a write puts an event."""
    puts = (item.get("Put", {}) for item in as_items(write)) if write.operation in OPERATIONS else ()
    return any(put.get("TableName") == PREFIX + "audit" for put in puts)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[DynamoRequest[Any]]:
    """Everything that is asked of the store, in its order."""
    found: list[DynamoRequest[Any]] = []
    run = SyncDynamo.run

    def recorded(self: SyncDynamo, request: DynamoRequest[Any]) -> Any:
        found.append(request)
        return run(self, request)

    monkeypatch.setattr(SyncDynamo, "run", recorded)
    return found


@pytest.mark.parametrize(("method", "path"), [r for r in documented() if r[0] in WRITES])
def test_every_mutation_leaves_exactly_one_event_in_its_own_transaction(
    tenancy: Tenancy, writes: list[DynamoRequest[Any]], method: str, path: str
) -> None:
    (tenant,) = tenancy("one")
    headers = tenant.headers(path)
    before = events()
    writes.clear()
    reply = tenant.call(method, path, headers=headers)
    assert reply.status in {200, 202}, reply
    after = events()
    if path not in RENEWALS and (method, path) not in ON_ITS_OWN:
        *_, told = filter(tells, writes)
        tables = {next(iter(item.values()))["TableName"] for item in as_items(told)}
        assert tables > {PREFIX + "audit"}, tables
    fresh = [event for place, event in after.items() if place not in before]
    if path in RENEWALS:
        assert fresh == []
        return
    assert len(fresh) == 1, fresh
    assert fresh[0]["request_id"]["S"] == reply.headers["x-request-id"]
    assert fresh[0]["ip"]["S"].startswith("127.20.9.")


def test_looking_leaves_no_event_and_a_repeated_decision_none_either(tenancy: Tenancy) -> None:
    (tenant,) = tenancy("one")
    approve = "/v1/admin/credits/{ident}/approve"
    second = tenant.second_admin()
    assert tenant.call("POST", approve, headers=second).status == 200
    before = events()
    assert tenant.call("POST", approve, headers=second).status == 200
    for method, path in documented():
        if method == "GET":
            assert tenant.call(method, path).status == 200, path
    assert events() == before


def test_a_password_that_is_told_is_on_record(tenancy: Tenancy) -> None:
    (tenant,) = tenancy("one")
    functions = tenant.functions
    before = events()
    path = f"/v1/gateway/credentials?pakId={tenant.ids['pak_id']}"
    assert functions.call(path, headers=tenant.reseller).body["password"].startswith("pak_")
    (fresh,) = (event for place, event in events().items() if place not in before)
    assert fresh["action"]["S"] == "reveal"


def test_a_refused_write_and_a_repeated_one_leave_none(tenancy: Tenancy) -> None:
    (tenant,) = tenancy("one")
    functions = tenant.functions
    before = events()
    path = f"/v1/reseller/pool-keys/{tenant.ids['pak_id']}"
    assert functions.call(path, "PATCH", {"trafficCapGB": 5000}, tenant.reseller).status == 400
    assert functions.call(path, "PATCH", {"label": "x"}, {"x-api-key": "psx_no"}).status == 401
    assert events() == before
    keyed = tenant.reseller | {"idempotency-key": "twice-12345"}
    for _ in range(3):
        assert functions.call(path, "PATCH", {"label": "x"}, keyed).status == 200
    assert len(events()) == len(before) + 1


def test_a_keys_events_expire_after_90_days_and_what_admins_did_stays(tenancy: Tenancy) -> None:
    (tenant,) = tenancy("one")
    functions = tenant.functions
    for row in stored():
        if row["table"] != PREFIX + "audit":
            continue
        at_ms, pk = int(row["event"]["M"]["at_ms"]["N"]), row["pk"]["S"]
        if pk.startswith(("pak#", "dev#", "log#")):
            assert int(row["ttl"]["N"]) == at_ms // 1000 + 90 * 86_400
        else:
            assert "ttl" not in row
    old = AuditEvent(f"pak#{tenant.ids['pak_id']}", "update", "x", now_ms() - AUDIT_KEPT_S * 1000 - 1)
    append_audit(functions.dynamo, PREFIX + "audit", old, tenant.ids["account_id"])
    for path in (f"/v1/reseller/pool-keys/{tenant.ids['pak_id']}/audit", "/v1/reseller/pool-keys/audit"):
        shown = functions.call(path, headers=tenant.reseller).body
        assert [e["action"] for e in shown] == ["create"]
    kept = functions.dynamo.run(
        entries(PREFIX + "audit", f"pak#{tenant.ids['pak_id']}", 10, forward=True)
    ).rows[1:]
    assert first_broken(kept, trimmed=True) is None
    assert first_broken(kept) == 0
