"""Idempotency-Key: the first response again, nothing done twice, whatever comes at the same time."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from functions.api.admission import KEPT_OF_STRANGERS
from functions.idempotency import _caller
from local import lab
from shared.access import idempotency as rows
from shared.access.idempotency import Operation
from shared.access.people import NOBODY, TOKEN_LIFE_S, Person, issue, person_item
from shared.access.secrets import token_hash
from shared.access.table import end_api_key_items, find_api_key, list_paks
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import Conflict, SyncDynamo, scan, transact
from shared.runtime.signing import CLOCK_LEEWAY_S
from shared.sale.live import NAMED_LIMIT
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"
TABLE = PREFIX + "access"


@pytest.fixture
def functions(dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynoxide, valkey_url, lab_files)
    yield made
    made.close()


def create(functions: Functions, key: str = "order-0001", **more: Any) -> Reply:
    headers = {"x-api-key": functions.keys.reseller, "idempotency-key": key}
    return functions.call(KEYS, "POST", {"label": "one", "trafficCapGB": 1, **more}, headers)


def count(functions: Functions) -> int:
    return len(functions.dynamo.run(list_paks(TABLE, AccountId("psx_reseller1"), 100)).rows)


def test_a_repeat_gets_the_first_response_and_makes_nothing(functions: Functions) -> None:
    first, again = create(functions), create(functions)
    assert first.status == again.status == 200
    assert first.body == again.body
    assert again.headers["idempotency-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert count(functions) == 1


def test_another_body_under_the_same_key_is_422(functions: Functions) -> None:
    create(functions)
    answer = create(functions, label="two")
    assert (answer.status, answer.body["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert count(functions) == 1


@pytest.mark.parametrize("key", ["short", "x" * 129, "with space", "ümlaut-key"])
def test_a_key_of_another_shape_is_400(functions: Functions, key: str) -> None:
    assert create(functions, key).status == 400


def test_two_callers_may_use_the_same_key(functions: Functions) -> None:
    first = create(functions)
    body = {"name": "m1", "host": "127.0.0.1", "port": 1, "username": "u", "password": "p"}
    headers = {"x-api-key": functions.keys.supplier, "idempotency-key": "order-0001"}
    assert functions.call("/v1/farmer/modems", "POST", body, headers).status == 200
    assert create(functions).body == first.body


def test_refusals_are_replayed_and_a_wrong_api_key_is_not(functions: Functions) -> None:
    assert create(functions, trafficCapGB=0).status == 400
    assert create(functions, trafficCapGB=0).headers["idempotency-replayed"] == "true"
    headers = {"x-api-key": "psx_wrong", "idempotency-key": "order-0001"}
    for _ in range(2):
        answer = functions.call(KEYS, "POST", {"label": "x", "trafficCapGB": 1}, headers)
        assert answer.status == 401
        assert "idempotency-replayed" not in answer.headers


def test_concurrent_repeats_do_the_work_once(
    functions: Functions, dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> None:
    others = [Functions(dynoxide, valkey_url, lab_files) for _ in range(7)]
    try:
        for other in others:
            other.keys = functions.keys
            other.api_wiring = functions.api_wiring
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(create, [functions, *others]))
    finally:
        for other in others:
            other.close()
    assert {a.status for a in answers} == {200}
    assert len({json.dumps(a.body, sort_keys=True) for a in answers}) == 1
    assert count(functions) == 1


def lapse(functions: Functions, operation: str) -> None:
    """As if the function had died after its work and before it kept the response."""
    found = functions.dynamo.run(rows.find(TABLE, operation))
    assert found is not None
    lapsed = Operation(operation, found.fingerprint, found.started_at_ms, 1)
    assert functions.dynamo.run(rows.take_over(TABLE, found, lapsed)) is not None


def test_a_write_that_died_before_its_response_was_kept_is_finished_not_repeated(
    functions: Functions,
) -> None:
    first = create(functions)
    operation = rows.operation_id(f"x-api-key:{functions.keys.reseller}", "order-0001")
    lapse(functions, operation)
    again = create(functions)
    assert "idempotency-replayed" not in again.headers
    assert (again.body["id"], again.body["key"]) == (first.body["id"], first.body["key"])
    assert count(functions) == 1
    headers = {"x-api-key": functions.keys.reseller, "idempotency-key": "topup-0001"}
    path = f"{KEYS}/{first.body['id']}/topup"
    assert functions.call(path, "POST", {"addTrafficGB": 1}, headers).body["trafficCapGB"] == 2
    lapse(functions, rows.operation_id(f"x-api-key:{functions.keys.reseller}", "topup-0001"))
    assert functions.call(path, "POST", {"addTrafficGB": 1}, headers).body["trafficCapGB"] == 2


def test_a_stored_response_holds_no_secret_in_the_clear(functions: Functions) -> None:
    secret = create(functions).body["key"]
    found = functions.dynamo.run(
        rows.find(TABLE, rows.operation_id(f"x-api-key:{functions.keys.reseller}", "order-0001"))
    )
    assert found is not None
    assert found.body_sealed
    assert secret not in found.body_sealed


def test_an_operation_is_written_once_by_its_marker(functions: Functions) -> None:
    item = rows.once_item(TABLE, "op", now_ms())
    assert functions.dynamo.run(transact([item])) is None
    assert functions.dynamo.run(transact([item])) == Conflict((0,))


def test_a_day_later_the_same_key_is_another_write(functions: Functions) -> None:
    first = create(functions)
    operation = rows.operation_id(f"x-api-key:{functions.keys.reseller}", "order-0001")
    found = functions.dynamo.run(rows.find(TABLE, operation))
    assert found is not None
    aged = replace(found, started_at_ms=found.started_at_ms - rows.KEPT_MS)
    functions.dynamo.run(rows.take_over(TABLE, found, aged))
    assert create(functions, label="tomorrow").body["id"] != first.body["id"]
    assert count(functions) == 2


def test_a_header_that_a_route_does_not_read_makes_no_two_callers_one() -> None:
    def operation(**headers: str) -> str:
        named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
        scope = {"type": "http", "headers": named, "client": ("127.20.0.1", 1)}
        return rows.operation_id(_caller(Request(scope)), "order-0001")

    shown = [{}, {"x_session_token": "a"}, {"x_session_token": "b"}, {"authorization": "Bearer c"}]
    assert len({operation(x_api_key="none", **more) for more in shown}) == len(shown)


def kept(functions: Functions) -> int:
    asked = scan(TABLE, "idem#", parse=lambda row: row["pk"], limit=1000)
    return len(functions.dynamo.run(asked).rows)


def test_nothing_is_kept_for_who_calls_too_often_or_has_no_valid_key(functions: Functions) -> None:
    settings = functions.api_wiring.settings.model_copy(update={"calls_per_minute_address": 2})
    functions.api_wiring = replace(functions.api_wiring, settings=settings)
    answers = [create(functions, f"order-{n:04d}").status for n in range(4)]
    assert answers == [200, 200, 429, 429]
    assert kept(functions) == 2
    headers = {"x-api-key": "psx_wrong", "idempotency-key": "order-0009"}
    assert functions.call(KEYS, "POST", {}, headers, source="127.20.0.9").status == 401
    sale = [
        functions.call("/v1/x402/pool", "POST", {}, {"idempotency-key": f"order-{n:04d}"}).status
        for n in range(NAMED_LIMIT.calls + 1)
    ]
    assert sale[-1] == 429
    assert kept(functions) == 2


def test_nothing_is_kept_for_strangers_but_where_they_may_write(functions: Functions) -> None:
    for n, path in enumerate(("/no/such/path", KEYS, f"{KEYS}/x/topup", "/v1/x402/pool")):
        functions.call(path, "POST", {"label": "x"}, {"idempotency-key": f"attack-{n:04d}"})
    assert kept(functions) == 0
    headers = {"idempotency-key": "sign-in-0001"}
    answers = [
        functions.call("/v1/peer/agents/register", "POST", {"name": "rig"}, headers)
        for _ in range(KEPT_OF_STRANGERS.calls + 1)
    ]
    assert [a.status for a in answers[:2]] == [400, 400]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert (answers[-1].status, kept(functions)) == (429, 1)


def end_key(functions: Functions, text: str) -> None:
    found = functions.dynamo.run(find_api_key(TABLE, token_hash(text)))
    assert found is not None
    assert functions.dynamo.run(transact(end_api_key_items(TABLE, found, now_ms()))) is None


def test_a_key_that_ended_reads_none_of_its_first_responses(functions: Functions) -> None:
    first = create(functions)
    end_key(functions, functions.keys.reseller)
    again = create(functions)
    assert (again.status, again.body["code"]) == (401, "API_KEY_INVALID")
    assert first.body["key"] not in str(again.body)


def test_a_registration_is_told_again_while_its_key_lives(functions: Functions) -> None:
    def register() -> Reply:
        body = {"name": "rig", "apiKey": functions.keys.supplier}
        return functions.call("/v1/peer/agents/register", "POST", body, {"idempotency-key": "rig-00001"})

    first = register()
    assert (first.status, register().body["refreshToken"]) == (200, first.body["refreshToken"])
    end_key(functions, functions.keys.supplier)
    again = register()
    assert (again.status, again.body["code"]) == (401, "API_KEY_INVALID")


def test_a_device_token_that_was_revoked_reads_none_of_its_first_responses(functions: Functions) -> None:
    body = {"name": "rig", "apiKey": functions.keys.supplier}
    device = functions.call("/v1/peer/agents/register", "POST", body).body
    path = f"/v1/peer/agents/{device['deviceId']}/wallet"
    headers = {"authorization": f"Bearer {device['jwt']}", "idempotency-key": "wallet-0001"}
    wallet = {"walletAddress": "0x" + "22" * 20}
    assert [functions.call(path, "PUT", wallet, headers).status for _ in range(2)] == [200, 200]
    owner = {"x-api-key": functions.keys.supplier}
    functions.call(f"/v1/peer/my-devices/{device['deviceId']}/revoke", "POST", {}, owner)
    again = functions.call(path, "PUT", wallet, headers)
    assert (again.status, again.body["code"]) == (401, "TOKEN_INVALID")


def keep_response(functions: Functions, authorization: str, body: Any) -> None:
    """As if this caller had had a response to `create` under the key order-0001."""
    said = rows.fingerprint("POST", f"{KEYS}?", json.dumps(body).encode())
    ident, now = rows.operation_id(f"authorization:{authorization}", "order-0001"), now_ms()
    mine = Operation(ident, said, now, now)
    assert functions.dynamo.run(rows.claim(TABLE, mine))
    sealed = functions.api_wiring.box.seal('{"key": "told"}', f"idem#{ident}")
    functions.dynamo.run(rows.finish(TABLE, mine, 200, "application/json", sealed))


@pytest.mark.parametrize(
    ("generation", "issued_ago_s", "status"),
    [(1, 0, 200), (0, 0, 401), (1, TOKEN_LIFE_S + CLOCK_LEEWAY_S + 1, 401)],
)
def test_a_sign_in_that_is_over_reads_none_of_its_first_responses(
    functions: Functions, generation: int, issued_ago_s: int, status: int
) -> None:
    person = Person("owner@example.org", AccountId("psx_reseller1"), NOBODY, 1, 0)
    functions.dynamo.run(transact([person_item(TABLE, person)]))
    private = functions.api_wiring.settings.jwt_private_key.get_secret_value()
    token = issue(replace(person, generation=generation), private, now_ms() - issued_ago_s * 1000)
    authorization, body = f"Bearer {token}", {"label": "one", "trafficCapGB": 1}
    keep_response(functions, authorization, body)
    headers = {"authorization": authorization, "idempotency-key": "order-0001"}
    again = functions.call(KEYS, "POST", body, headers)
    assert (again.status, "idempotency-replayed" in again.headers) == (status, status == 200)
    assert count(functions) == 0
