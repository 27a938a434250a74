"""A reseller with curl: whatever is sent, the answer is a typed refusal that names the field, and nothing half-done."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from local import lab
from shared.access import table as access
from shared.kernel.ids import PakId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import Conflict, SyncDynamo, transact
from tests.support.functions import PREFIX, Functions

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"
DAY_MS = 86_400_000


def me(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.reseller}


@pytest.mark.parametrize(
    "cap", ["1e3", "NaN", -1, True, 10**40, 0, 1000.0000001, "0.0000000001", [], {}, "\uff11", "1" * 100]
)
def test_a_cap_is_a_plain_number_of_gb(functions: Functions, cap: Any) -> None:
    refused = functions.call(KEYS, "POST", {"label": "x", "trafficCapGB": cap}, me(functions))
    assert (refused.status, refused.body["code"]) == (400, "INVALID_FIELD")
    assert refused.body["message"].startswith("trafficCapGB: ")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"expiresAt": 10**40}, "expiresAt"),
        ({"expiresAt": -5}, "expiresAt"),
        ({"expiresAt": True}, "expiresAt"),
        ({"expiresAt": "1"}, "expiresAt"),
        ({"label": "a\x00b"}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": ""}, "label"),
        ({"qualityTier": "best"}, "qualityTier"),
        ({"trafficCapGB": None}, "trafficCapGB"),
    ],
)
def test_a_change_is_refused_by_its_field_and_changes_nothing(
    functions: Functions, body: Any, field: str
) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    path = f"{KEYS}/{made['id']}"
    before = functions.call(path, headers=me(functions)).body
    refused = functions.call(path, "PATCH", body, me(functions))
    assert (refused.status, refused.body["message"].partition(":")[0]) == (400, field)
    assert functions.call(path, headers=me(functions)).body == before


@pytest.mark.parametrize("body", [{}, {"addTrafficGB": 0}, {"extendDays": -1}, {"addTrafficGB": 1000}])
def test_a_top_up_that_adds_nothing_or_too_much_is_refused(functions: Functions, body: Any) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    assert functions.call(f"{KEYS}/{made['id']}/topup", "POST", body, me(functions)).status == 400


def test_a_day_to_begin_at_is_a_day(functions: Functions) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    path = f"{KEYS}/{made['id']}/usage"
    assert functions.call(f"{path}?since=2026-11-21", headers=me(functions)).status == 200
    refused = functions.call(f"{path}?since=yesterday", headers=me(functions))
    assert (refused.status, refused.body["message"].partition(":")[0]) == (400, "since")


def test_extensions_at_once_all_count(dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> None:
    containers = [Functions(dynoxide, valkey_url, lab_files) for _ in range(3)]
    for one in containers[1:]:
        one.api_wiring = containers[0].api_wiring
    headers = me(containers[-1])
    made = containers[0].call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, headers).body
    path, began = f"{KEYS}/{made['id']}", now_ms()

    def extend(number: int) -> None:
        keyed = headers | {"idempotency-key": f"extend-{number:03d}"}
        while containers[number % 3].call(f"{path}/topup", "POST", {"extendDays": 1}, keyed).status != 200:
            pass

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(extend, range(9)))
    for number in range(9):
        extend(number)
    ends = containers[0].call(path, headers=headers).body["expiresAt"]
    assert 0 <= ends - began - 9 * DAY_MS < 60_000
    for one in containers:
        one.close()


def test_top_ups_at_once_stay_within_the_largest_cap(
    dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> None:
    containers = [Functions(dynoxide, valkey_url, lab_files) for _ in range(4)]
    for one in containers[1:]:
        one.api_wiring = containers[0].api_wiring
    headers = me(containers[-1])
    made = containers[0].call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, headers).body
    path = f"{KEYS}/{made['id']}"
    for one in containers:  # a container's first request builds its routes
        assert one.call(f"{path}/topup", "POST", {}, headers).status == 400

    def top_up(number: int) -> int:
        return containers[number].call(f"{path}/topup", "POST", {"addTrafficGB": 990}, headers).status

    with ThreadPoolExecutor(4) as threads:
        answers = sorted(threads.map(top_up, range(4)))
    assert (answers[0], set(answers[1:]) <= {400, 409, 503}) == (200, True)
    assert containers[0].call(path, headers=headers).body["trafficCapGB"] == 991
    for one in containers:
        one.close()


def test_a_change_does_not_bring_back_a_key_that_is_deleted_in_the_same_moment(
    functions: Functions,
) -> None:
    table = PREFIX + "access"
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    pak_id = PakId(made["id"])
    before = functions.dynamo.run(access.get_pak(table, pak_id))
    assert before is not None
    assert functions.call(f"{KEYS}/{pak_id}", "DELETE", headers=me(functions)).status == 200
    items = (
        access.change_item(table, before, {"cap_bytes": 5}, now_ms()),
        access.top_up_item(table, pak_id, 5, None, now_ms(), reenable=False),
    )
    for item in items:
        assert functions.dynamo.run(transact([item])) == Conflict((0,))
    assert functions.dynamo.run(access.change(table, pak_id, {"enabled": True}, now_ms())) is None
    after = functions.dynamo.run(access.get_pak(table, pak_id))
    assert after is not None
    assert (after.enabled, after.cap_bytes) == (False, 10**9)


def cursor(**other: dict[str, str]) -> str:
    key = {"pk": {"S": "pak#x"}, "sk": {"S": "-"}, "account_id": {"S": "psx_reseller1"}} | {
        "created_at": {"N": "1"}
    }
    return base64.urlsafe_b64encode(json.dumps(key | other).encode()).decode()


LONG = "a" * 2100
CURSORS = [
    {"created_at": {"N": "\u00b2"}},
    {"created_at": {"N": "\u0663"}},
    {"created_at": {"N": "9" * 60}},
    {"created_at": {"S": "x"}},
    {"pk": {"N": "1"}},
    {"pk": {"S": ""}},
]
MADE_UP = [
    *((f"{KEYS}?cursor={cursor(**other)}", 400) for other in CURSORS),
    (f"{KEYS}?cursor={base64.urlsafe_b64encode(b'[' * 700).decode()}", 400),
    (f"{KEYS}?cursor={cursor()}", 200),
    (f"{KEYS}/audit?before=%C2%B2", 400),
    (f"{KEYS}/audit?before={'x' * 1100}", 400),
    (f"{KEYS}/audit?before=17", 200),
    (f"{KEYS}/{LONG}", 404),
    (f"{KEYS}/{LONG}/audit", 404),
    (f"/v1/gateway/pool/my-sessions?pakId={LONG}", 200),
    (f"/v1/gateway/credentials?pakId={LONG}", 404),
]


@pytest.mark.parametrize(("path", "status"), MADE_UP, ids=range(len(MADE_UP)))
def test_made_up_places_and_ids_are_refused_before_the_store_sees_them(
    dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles, path: str, status: int
) -> None:
    functions = Functions(dynoxide, valkey_url, lab_files)
    assert functions.call(path, headers=me(functions)).status == status
    functions.close()


@pytest.mark.parametrize("before", ["-1", "9" * 2000, "\u00b2"])
def test_a_place_in_a_keys_history_is_a_number_of_it(functions: Functions, before: str) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    path = f"{KEYS}/{made['id']}/audit?before={quote(before)}"
    refused = functions.call(path, headers=me(functions))
    assert (refused.status, refused.body["message"].partition(":")[0]) == (400, "before")
