"""Humans with passwords and fresh authentication; API keys with scopes, rotation and an end."""

from collections.abc import Iterator
from typing import Any

import pytest

from local import lab
from local.bootstrap import ADMIN
from shared.access import people
from shared.access.live import Limit
from shared.access.people import SignedIn, get_person, issue
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = pytest.mark.slow
KEYS = "/v1/account/api-keys"
POOL_KEYS = "/v1/reseller/pool-keys"
EMAIL = "ann@shop.example"
PASSWORD = "correct horse battery"


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    admin = {"x-api-key": made.keys.admin}
    body = {"email": EMAIL, "password": PASSWORD}
    assert made.call("/v1/admin/accounts/psx_reseller1/people", "POST", body, admin).status == 200
    yield made
    made.close()


def sign_in(functions: Functions, password: str = PASSWORD, email: str = EMAIL, **more: Any) -> Reply:
    return functions.call("/v1/auth/sign-in", "POST", {"email": email, "password": password}, **more)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def stale(functions: Functions, email: str = EMAIL) -> dict[str, str]:
    """A token whose owner gave the password six minutes ago."""
    person = functions.dynamo.run(get_person(PREFIX + "access", email))
    assert person is not None
    private = functions.api_wiring.settings.jwt_private_key.get_secret_value()
    return bearer(issue(person, private, now_ms() - people.FRESH_MS - 60_000))


def test_a_human_signs_in_and_works_as_the_account(functions: Functions) -> None:
    told = sign_in(functions, email=EMAIL.upper())
    assert (told.status, told.body["accountId"]) == (200, "psx_reseller1")
    headers = bearer(told.body["token"])
    made = functions.call(POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, headers)
    assert made.status == 200
    history = functions.call(f"{POOL_KEYS}/{made.body['id']}/audit", headers=headers).body
    assert [e["authMethod"] for e in history] == ["password"]
    body = {"stopped": True, "reason": "x"}
    assert functions.call("/v1/admin/switch", "POST", body, headers).status == 403


def test_wrong_passwords_and_unknown_addresses_get_one_answer_and_are_limited(functions: Functions) -> None:
    wrong, nobody = sign_in(functions, "wrong password!"), sign_in(functions, email="x@y.example")
    assert (wrong.status, wrong.body["message"]) == (nobody.status, nobody.body["message"])
    assert wrong.status == 401
    answers = [sign_in(functions, "wrong password!", source="127.20.0.2") for _ in range(6)]
    assert [a.status for a in answers] == [401] * 5 + [429]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_strangers_lock_nobody_out_and_are_slowed_when_they_are_many(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.api.auth.SIGN_IN_CROWD", Limit("sign_in_crowd", 3, 3600))
    for number in range(4):
        assert sign_in(functions, "wrong password!", source=f"127.20.1.{number}").status == 401
    assert sign_in(functions, source="127.20.2.1").status == 200  # from a place that nobody tried from
    answers = [sign_in(functions, "wrong password!", source="127.20.2.2").status for _ in range(2)]
    assert answers == [401, 429]
    assert sign_in(functions, source="127.20.2.3").status == 200


def test_what_is_dangerous_needs_a_fresh_password(functions: Functions) -> None:
    made = functions.call(
        POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, bearer(sign_in(functions).body["token"])
    )
    old = stale(functions)
    path = f"{POOL_KEYS}/{made.body['id']}"
    assert functions.call(path, headers=old).status == 200
    refused = functions.call(f"{path}/reveal", "POST", {}, old)
    assert (refused.status, refused.body["code"]) == (403, "FRESH_AUTH_REQUIRED")
    for method, target in (
        ("POST", f"{path}/regenerate"),
        ("DELETE", path),
        ("GET", f"/v1/gateway/credentials?pakId={made.body['id']}"),
    ):
        assert functions.call(target, method, {}, old).body["code"] == "FRESH_AUTH_REQUIRED"
    assert functions.call(KEYS, "POST", {"scopes": ["read"]}, old).body["code"] == "FRESH_AUTH_REQUIRED"
    wrong = {**old, "x-confirm-password": "wrong password!"}
    assert functions.call(f"{path}/reveal", "POST", {}, wrong).status == 403
    right = {**old, "x-confirm-password": PASSWORD}
    assert functions.call(f"{path}/reveal", "POST", {}, right).body["key"] == made.body["key"]


def test_another_password_ends_every_token(functions: Functions) -> None:
    first = bearer(sign_in(functions).body["token"])
    body = {"password": PASSWORD, "newPassword": "another long password"}
    changed = functions.call("/v1/auth/password", "POST", body, first)
    assert changed.status == 200
    assert functions.call(POOL_KEYS, headers=first).status == 401
    assert functions.call(POOL_KEYS, headers=bearer(changed.body["token"])).status == 200
    assert sign_in(functions).status == 401


def test_tokens_of_devices_and_humans_are_never_mistaken(functions: Functions) -> None:
    body = {"name": "rig-1", "type": "custom", "apiKey": functions.keys.supplier}
    device = functions.call("/v1/peer/agents/register", "POST", body, source="127.10.1.7").body
    assert functions.call(POOL_KEYS, headers=bearer(device["jwt"])).status == 401
    human = bearer(sign_in(functions).body["token"])
    assert functions.call(f"/v1/peer/agents/{device['deviceId']}/status", headers=human).status == 403
    public = functions.api_wiring.settings.jwt_public_key.get_secret_value()
    assert people.verify("x.y.z", public) is None
    assert isinstance(people.verify(human["authorization"][7:], public), SignedIn)


def manager(functions: Functions) -> dict[str, str]:
    """An API key that may sell and manage keys."""
    headers = bearer(sign_in(functions).body["token"])
    made = functions.call(KEYS, "POST", {"scopes": ["resell", "keys"], "label": "ops"}, headers)
    assert made.status == 200
    return {"x-api-key": made.body["apiKey"]}


def test_a_key_gives_no_more_than_it_has(functions: Functions) -> None:
    ops = manager(functions)
    assert functions.call(KEYS, "POST", {"scopes": ["admin"]}, ops).body["code"] == "SCOPE_MISSING"
    assert functions.call(KEYS, "POST", {"scopes": []}, ops).status == 400
    made = functions.call(KEYS, "POST", {"scopes": ["resell"]}, ops).body
    plain = {"x-api-key": made["apiKey"]}
    assert functions.call(POOL_KEYS, headers=plain).status == 200
    assert functions.call(KEYS, headers=plain).status == 403
    assert made["apiKey"] not in str(functions.call(KEYS, headers=ops).body)


def test_a_read_key_looks_and_changes_nothing(functions: Functions) -> None:
    headers = bearer(sign_in(functions).body["token"])
    made = functions.call(KEYS, "POST", {"scopes": ["read"]}, headers)
    reader = {"x-api-key": made.body["apiKey"]}
    assert functions.call(POOL_KEYS, headers=reader).status == 200
    assert functions.call(POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, reader).status == 403
    assert functions.call("/v1/admin/resellers/psx_reseller1/balance", headers=reader).status == 403


def test_an_account_has_a_bounded_number_of_keys_however_they_are_made(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.access.table.API_KEYS_PER_ACCOUNT_MAX", 3)
    ops, admin = manager(functions), {"x-api-key": functions.keys.admin}
    made = functions.call(KEYS, "POST", {"scopes": ["resell"]}, ops).body
    by_admin = "/v1/admin/accounts/psx_reseller1/api-keys"
    assert functions.call(KEYS, "POST", {"scopes": ["resell"]}, ops).body["code"] == "TOO_MANY_KEYS"
    assert functions.call(by_admin, "POST", {"scopes": ["resell"]}, admin).body["code"] == "TOO_MANY_KEYS"
    rotated = functions.call(f"{KEYS}/{made['id']}/rotate", "POST", {}, ops)
    assert rotated.status == 200
    assert functions.call(f"{KEYS}/{rotated.body['id']}", "DELETE", headers=ops).status == 200
    assert functions.call(by_admin, "POST", {"scopes": ["resell"]}, admin).status == 200


def test_a_rotated_key_ends_after_its_grace_and_an_ended_one_at_once(functions: Functions) -> None:
    ops = manager(functions)
    old = functions.call(KEYS, "POST", {"scopes": ["resell"], "label": "shop"}, ops).body
    path = f"{KEYS}/{old['id']}"
    fresh = functions.call(f"{path}/rotate", "POST", {"graceSeconds": 3600}, ops).body
    assert (fresh["scopes"], fresh["label"]) == (["resell"], "shop")
    for text in (old["apiKey"], fresh["apiKey"]):
        assert functions.call(POOL_KEYS, headers={"x-api-key": text}).status == 200
    assert functions.call(f"{path}/rotate", "POST", {}, ops).status == 404
    again = functions.call(f"{KEYS}/{fresh['id']}/rotate", "POST", {}, ops).body
    assert functions.call(POOL_KEYS, headers={"x-api-key": fresh["apiKey"]}).status == 401
    assert functions.call(f"{KEYS}/{again['id']}", "DELETE", headers=ops).status == 200
    assert functions.call(POOL_KEYS, headers={"x-api-key": again["apiKey"]}).status == 401
    admin = {"x-api-key": functions.keys.admin}
    body = {"email": "bob@other.example", "password": PASSWORD}
    functions.call("/v1/admin/accounts/psx_supplier1/people", "POST", body, admin)
    bob = bearer(sign_in(functions, email="bob@other.example").body["token"])
    kept = functions.call(KEYS, headers=ops).body["apiKeys"]
    assert functions.call(f"{KEYS}/{kept[0]['id']}", "DELETE", headers=bob).status == 404


def test_a_refusal_for_want_of_a_fresh_password_does_not_stand_under_its_idempotency_key(
    functions: Functions,
) -> None:
    headers = {"x-api-key": functions.keys.reseller}
    made = functions.call(POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, headers)
    path = f"{POOL_KEYS}/{made.body['id']}/regenerate"
    keyed = stale(functions) | {"idempotency-key": "regenerate-0001"}
    assert functions.call(path, "POST", {}, keyed).body["code"] == "FRESH_AUTH_REQUIRED"
    confirmed = keyed | {"x-confirm-password": PASSWORD}
    assert functions.call(path, "POST", {}, confirmed).status == 200


ADMIN_WRITES = [
    ("POST", "/v1/admin/accounts", {"accountId": "psx_new", "kind": "admin"}),
    ("POST", "/v1/admin/accounts/psx_reseller1/api-keys", {"scopes": ["admin"]}),
    ("POST", "/v1/admin/accounts/psx_reseller1/people", {"email": "b@b.example", "password": PASSWORD}),
    ("PUT", "/v1/admin/settings/wholesale", {"steps": [[0, 1]]}),
    ("POST", "/v1/admin/switch", {"stopped": False, "reason": "x"}),
    ("PUT", "/v1/admin/ip-classes/AS64501", {"ipType": "mobile", "reason": "x"}),
]


def test_a_class_is_taken_back_with_a_fresh_password_only(functions: Functions) -> None:
    path, key = "/v1/admin/ip-classes/AS64501", {"x-api-key": functions.keys.admin}
    person = {"email": "root@psx.example", "password": PASSWORD}
    assert functions.call(f"/v1/admin/accounts/{ADMIN}/people", "POST", person, key).status == 200
    assert functions.call(path, "PUT", {"ipType": "mobile", "reason": "x"}, key).status == 200
    old = stale(functions, person["email"])
    assert functions.call(path, "DELETE", None, old).body["code"] == "FRESH_AUTH_REQUIRED"
    assert functions.call(path, "DELETE", None, old | {"x-confirm-password": PASSWORD}).status == 200


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_WRITES)
def test_an_admins_old_token_gives_nobody_rights(
    functions: Functions, method: str, path: str, body: dict[str, Any]
) -> None:
    root, admin = "root@psx.example", {"x-api-key": functions.keys.admin}
    account = {"accountId": "psx_admin9", "kind": "admin"}
    assert functions.call("/v1/admin/accounts", "POST", account, admin).status == 200
    person = {"email": root, "password": PASSWORD}
    assert functions.call("/v1/admin/accounts/psx_admin9/people", "POST", person, admin).status == 200
    old = stale(functions, root)
    refused = functions.call(path, method, body, old)
    assert (refused.status, refused.body["code"]) == (403, "FRESH_AUTH_REQUIRED")
    stop = {"stopped": True, "reason": "fire"}
    assert functions.call("/v1/admin/switch", "POST", stop, old).status == 200
    assert functions.call(path, method, body, old | {"x-confirm-password": PASSWORD}).status == 200


def test_a_key_that_may_only_look_is_told_no_password_and_can_be_rotated(functions: Functions) -> None:
    reseller = bearer(sign_in(functions).body["token"])
    pak = functions.call(POOL_KEYS, "POST", {"label": "a", "trafficCapGB": 1}, reseller).body
    look = functions.call(KEYS, "POST", {"scopes": ["read"]}, reseller).body
    looks = {"x-api-key": look["apiKey"]}
    assert functions.call(f"{POOL_KEYS}/{pak['id']}", headers=looks).status == 200
    refused = functions.call(f"/v1/gateway/credentials?pakId={pak['id']}", headers=looks)
    assert (refused.status, refused.body["code"]) == (403, "SCOPE_MISSING")
    assert pak["key"] not in str(refused.body)
    assert functions.call(f"{KEYS}/{look['id']}/rotate", "POST", {}, reseller).status == 200
