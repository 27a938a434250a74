"""Rules that hold for every route: another account's id behaves as absent, and every mutation leaves exactly one event."""

from collections.abc import Iterator
from typing import Any

import pytest

from functions.api.handler import create_app
from local import lab
from local.bootstrap import RATES
from shared.runtime.dynamo import SyncDynamo, scan
from tests.support.functions import PREFIX, Functions

pytestmark = pytest.mark.slow
POOL_KEYS = "/v1/reseller/pool-keys"
ACCOUNT_KEYS = "/v1/account/api-keys"
BODIES: dict[str, Any] = {
    "/v1/reseller/pool-keys/{pak_id}/topup": {"addTrafficGB": 1},
    "/v1/reseller/pool-keys/{pak_id}": {"label": "mine now"},
}


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    yield made
    made.close()


def admin(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.admin}


def key_of(functions: Functions, account: str, *scopes: str) -> dict[str, str]:
    path = f"/v1/admin/accounts/{account}/api-keys"
    made = functions.call(path, "POST", {"scopes": list(scopes)}, admin(functions))
    return {"x-api-key": made.body["apiKey"]}


def owned_routes(functions: Functions) -> list[tuple[str, str]]:
    """(method, path) of every route that names something of a reseller's."""
    paths = create_app(lambda: functions.api_wiring).openapi()["paths"]
    named = ("{pak_id}", "{session_key}", "{key_id}")
    return [(m.upper(), path) for path in paths for m in paths[path] if any(n in path for n in named)]


def test_what_belongs_to_another_account_is_not_there_on_any_route(functions: Functions) -> None:
    functions.call(
        "/v1/admin/accounts", "POST", {"accountId": "psx_other", "kind": "reseller"}, admin(functions)
    )
    mine = key_of(functions, "psx_reseller1", "resell", "keys")
    theirs = key_of(functions, "psx_other", "resell", "keys")
    pak = functions.call(POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, mine).body["id"]
    api_key = functions.call(ACCOUNT_KEYS, headers=mine).body["apiKeys"][0]["id"]
    routes = owned_routes(functions)
    assert len(routes) >= 11
    for method, path in routes:
        target = path.format(pak_id=pak, session_key=f"mbl:{pak}:a", key_id=api_key)
        absent = path.format(pak_id="0" * 24, session_key="mbl:none:a", key_id="0" * 16)
        body = BODIES.get(path, {}) if method in {"POST", "PATCH"} else None
        foreign = functions.call(target, method, body, theirs)
        missing = functions.call(absent, method, body, theirs)
        assert (foreign.status, foreign.body["message"]) == (404, missing.body["message"]), (method, path)
        assert functions.call(target, method, body).status == 401, (method, path)
    record = functions.call(f"{POOL_KEYS}/{pak}", headers=mine).body
    assert (record["label"], record["enabled"], record["trafficCapGB"]) == ("a", True, 1)


def events(functions: Functions) -> int:
    """Entries of all streams; copies in accounts' logs are not counted."""
    page = functions.dynamo.run(scan(PREFIX + "audit", "", parse=lambda row: row["pk"], limit=1000))
    return sum(not pk.startswith("log#") for pk in page.rows)


def test_every_mutation_leaves_exactly_one_event_and_looking_leaves_none(functions: Functions) -> None:
    ops = key_of(functions, "psx_reseller1", "resell", "keys")
    second = key_of(functions, "psx_admin", "admin")

    def does(method: str, path: str, body: Any, headers: dict[str, str], left: int = 1) -> Any:
        before = events(functions)
        answer = functions.call(path, method, body, headers)
        assert answer.status < 300, (method, path, answer.body)
        assert events(functions) - before == left, (method, path)
        return answer.body

    pak = does("POST", POOL_KEYS, {"label": "a", "trafficCapGB": 1}, ops)["id"]
    path = f"{POOL_KEYS}/{pak}"
    does("PATCH", path, {"label": "b"}, ops)
    does("POST", f"{path}/topup", {"addTrafficGB": 1}, ops)
    does("POST", f"{path}/regenerate", {}, ops)
    does("POST", f"{path}/reveal", {}, ops)
    does("GET", f"/v1/gateway/credentials?pakId={pak}", None, ops)
    for looked in (path, f"{path}/usage", f"{path}/audit", POOL_KEYS, "/v1/gateway/pool/my-stats"):
        does("GET", looked, None, ops, left=0)
    does("DELETE", path, None, ops)
    made = does("POST", ACCOUNT_KEYS, {"scopes": ["resell"]}, ops)["id"]
    rotated = does("POST", f"{ACCOUNT_KEYS}/{made}/rotate", {}, ops)["id"]
    does("DELETE", f"{ACCOUNT_KEYS}/{rotated}", None, ops)
    does("POST", "/v1/admin/accounts", {"accountId": "psx_new", "kind": "admin"}, admin(functions))
    third = key_of(functions, "psx_new", "admin")
    person = {"email": "a@b.example", "password": "a long password"}
    does("POST", "/v1/admin/accounts/psx_new/people", person, second)
    does("PUT", "/v1/admin/settings/rates", RATES, second)
    does("POST", "/v1/admin/switch", {"stopped": False, "reason": "x"}, second)
    credit = {"trafficGB": 1, "reason": "wire"}
    asked = does("POST", "/v1/admin/resellers/psx_reseller1/credits", credit, second)["approvalId"]
    does("POST", f"/v1/admin/credits/{asked}/approve", {}, third)
    does("POST", f"/v1/admin/credits/{asked}/approve", {}, third, left=0)
