"""A copy of the whole database opens nothing, whatever was done with keys before it was taken."""

import json
import time
from typing import Any

import boto3
import pytest

from shared.access.envelope import Envelope, LocalKeyRing
from shared.access.secrets import SealBroken
from tests.support.functions import Functions

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"


def stolen() -> list[dict[str, Any]]:
    client: Any = boto3.client("dynamodb")
    names = client.list_tables()["TableNames"]
    return [row for name in names for row in client.scan(TableName=name)["Items"]]


def test_no_row_of_any_table_holds_or_opens_a_secret(functions: Functions) -> None:
    me = {"x-api-key": functions.keys.reseller, "idempotency-key": "leak-test-1"}
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me).body
    again = functions.call(
        f"{KEYS}/{made['id']}/regenerate", "POST", {}, me | {"idempotency-key": "leak-test-2"}
    )
    del me["idempotency-key"]
    assert functions.call(f"{KEYS}/{made['id']}/reveal", "POST", {}, me).body["key"] == again.body["key"]
    rows = stolen()
    text = json.dumps(rows, default=str)
    for secret in (made["key"], again.body["key"], functions.keys.reseller, functions.keys.admin):
        assert secret not in text
    sealed = [r["secret_sealed"]["S"] for r in rows if "secret_sealed" in r]
    sealed += [r["body_sealed"]["S"] for r in rows if "body_sealed" in r]
    assert len(sealed) == 3
    thief = Envelope(LocalKeyRing(b"t" * 32), b"p" * 32, time.monotonic)
    for one in sealed:
        with pytest.raises(SealBroken):
            thief.open(one, f"pak#{made['id']}")
