"""Requests made from what `/openapi.json` says of the sale: none gets a 5xx but a 503 that says what to do."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from functions.api.handler import create_app
from local import lab
from local.sale_document import sale_document
from shared.chain.model import Valid
from shared.runtime.dynamo import SyncDynamo
from tests.fuzz.test_api_document import send
from tests.support.functions import Functions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
EXAMPLES = 8
HASH = "0x" + "ab" * 32
DOCUMENT = {**create_app(lambda: None).openapi(), **sale_document()}  # type: ignore[arg-type, return-value]
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
BOUGHT = {"pool": "/v1/x402/pool?traffic=0.1", "port": "/v1/x402/proxy?traffic=0.1"}


@pytest.fixture
def shop(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    made.open()
    yield made
    made.close()


def tokens(shop: Functions) -> Iterator[str]:
    """Session tokens of pool access and of a port."""
    for number, path in enumerate(BOUGHT.values(), 1):
        paid = {"payment-signature": f"0x{number:064x}"}
        assert shop.call(path).status == 402
        shop.chain.verdicts[paid["payment-signature"]] = Valid("0x" + "cc" * 20, 400_000, int(time.time()))
        yield str(shop.call(path, headers=paid).body["sessionToken"])


def checked(shop: Functions, case: Any, headers: dict[str, str], number: int) -> int:
    """One request of an address of its own, and what every answer must be."""
    answer = send(
        shop, case, headers, f"127.{21 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
    )
    status, told = answer["statusCode"], answer["headers"]
    assert status < 500 or status == 503, (answer, case)
    assert told["x-request-id"]
    if status == 402:
        assert json.loads(answer["body"])["paymentRequirement"]["accepts"]
        assert told["payment-required"]
    elif status >= 400:
        problem = json.loads(answer["body"])
        assert told["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code", "message", "requestId"} <= problem.keys()
        assert status != 503 or ("retry-after" in told and "not" in problem["message"]), answer
    return int(status)


class Tried:
    """All requests of a run: each comes from an address of its own, because one address may not ask so often."""

    def __init__(self, shop: Functions) -> None:
        self._shop = shop
        self._count = 0
        self.statuses = set[int]()

    def all_of(self, path: str, method: str, headers: dict[str, str]) -> None:
        """Right and wrong requests of one route."""
        described = DOCUMENT["paths"][path][method]
        shapes = [parameter["schema"] for parameter in described.get("parameters", ())]
        bounded = any(shape.get("type") == "integer" or "pattern" in shape for shape in shapes)
        can_be_wrong = "requestBody" in described or bounded
        for mode in (GenerationMode.POSITIVE, *((GenerationMode.NEGATIVE,) if can_be_wrong else ())):
            strategy = SCHEMA[path][method].as_strategy(generation_mode=mode)

            @settings(
                max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=strategy)
            def check(case: Any) -> None:
                self._count += 1
                self.statuses.add(checked(self._shop, case, headers, self._count))

            check()


def test_no_request_that_can_be_made_from_the_document_fails_without_a_word(shop: Functions) -> None:
    (pool, port), tried = tokens(shop), Tried(shop)
    for path, methods in DOCUMENT["paths"].items():
        headers = {"x-session-token": port if "/session" in path or "/ports" in path else pool}
        if "/admin/" in path:
            headers = {"x-api-key": shop.keys.admin}
        if path.endswith("/balance"):
            headers = {"x-api-key": shop.keys.reseller}
        for method in methods:
            tried.all_of(path, method, headers if "/manage/" in path or "x-api-key" in headers else {})
    assert {200, 400, 402} <= tried.statuses
