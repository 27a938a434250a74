"""Whatever names GB says what a GB is, in the same words everywhere."""

import json

import pytest

from shared.kernel.money import BYTES_PER_GB
from shared.kernel.traffic import traffic_unit, traffic_unit_text
from tests.support.functions import Functions
from tests.support.routes import Tenant, documented

pytestmark = pytest.mark.slow


def test_every_answer_that_names_gb_says_how_many_bytes_that_is(functions: Functions) -> None:
    functions.open()
    tenant = Tenant(functions, "one").furnish()
    replies = {(m, p): tenant.call(m, p) for m, p in documented() if m == "GET"}
    for path in ("/v1/x402/pool/pricing", "/v1/x402/pricing", "/v1/x402/pool?country=us&traffic=0.1"):
        replies["GET", path] = functions.call(path)
    naming = 0
    for route, reply in replies.items():
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        if "GB" not in text or route[1] == "/openapi.json":
            continue
        naming += 1
        assert str(BYTES_PER_GB) in text, route
        if isinstance(reply.body, dict) and "trafficUnit" in reply.body:
            assert reply.body["trafficUnit"] == traffic_unit()
    assert naming >= 9
    assert traffic_unit_text() in functions.call("/skill.md").body
