"""Requests made from the OpenAPI document, right and wrong ones: none gets a 5xx, every refusal is a problem document."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from functions.api.handler import create_app
from local.api_gateway import http_event
from local.http_server import HttpRequest
from tests.support.examples import of_each_route
from tests.support.functions import Functions
from tests.support.routes import documented
from tests.support.tenants import Tenancy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
EXAMPLES = of_each_route()
DOCUMENT = create_app(lambda: None).openapi()  # type: ignore[arg-type, return-value]  # nothing is wired to read it
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
BASE = "https://api.example"
PAGES = frozenset({"/peer/device"})
"""What people read: errors there are pages too."""


def unlimited(functions: Functions) -> Functions:
    """Without limits of calls."""
    wide = {
        "calls_per_minute_address": 10**9,
        "calls_per_minute_key": 10**9,
        "registrations_per_minute": 10**9,
    }
    wiring = functions.api_wiring
    functions.api_wiring = replace(wiring, settings=wiring.settings.model_copy(update=wide))
    return functions


def send(functions: Functions, case: Any, headers: dict[str, str], source: str = "127.20.0.9") -> Any:
    """A made request through Mangum, as API Gateway would hand it over."""
    made = case.as_transport_kwargs(base_url=BASE)
    made["headers"] = {str(k): str(v) for k, v in dict(made.get("headers") or {}).items()} | headers
    prepared = requests.Request(**{k: v for k, v in made.items() if k != "cookies"}).prepare()
    body = prepared.body if isinstance(prepared.body, bytes) else (prepared.body or "").encode()
    found = {
        k.lower(): quote(v, safe=" !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\") for k, v in prepared.headers.items()
    }
    target = str(prepared.url).removeprefix(BASE)
    event = http_event(HttpRequest(case.method.upper(), target, tuple(found.items()), body, source))
    return functions.deliver(event)


def made() -> Iterator[tuple[str, str, GenerationMode]]:
    """Every route with right requests, and with wrong ones where something can be wrong: a body, a number."""
    for method, path in documented():
        described = DOCUMENT["paths"][path][method.lower()]
        yield method, path, GenerationMode.POSITIVE
        numbers = [p for p in described.get("parameters", ()) if p["schema"].get("type") == "integer"]
        if "requestBody" in described or numbers:
            yield method, path, GenerationMode.NEGATIVE


@pytest.mark.parametrize(("method", "path", "mode"), list(made()))
def test_no_request_that_can_be_made_from_the_document_gets_a_5xx(
    tenancy: Tenancy, method: str, path: str, mode: GenerationMode
) -> None:
    (tenant,) = tenancy("one")
    functions = unlimited(tenant.functions)
    headers = tenant.headers(path)
    strategy = SCHEMA[path][method.lower()].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=strategy, own=st.booleans())
    def check(case: Any, own: bool) -> None:
        if own and case.path_parameters:
            case.path_parameters = {k: tenant.ids.get(k, v) for k, v in case.path_parameters.items()}
        answer = send(functions, case, headers)
        assert answer["statusCode"] < 500, (answer, case)
        if answer["statusCode"] >= 400 and path in PAGES:
            assert answer["headers"]["content-type"].startswith("text/html")
        elif answer["statusCode"] >= 400:
            problem = json.loads(answer["body"])
            assert answer["headers"]["content-type"] == "application/problem+json"
            assert {"type", "title", "status", "detail", "code", "message", "requestId"} <= problem.keys()
        assert answer["headers"]["x-request-id"]

    check()
