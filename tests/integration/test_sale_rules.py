"""Every route of the sale: what changes something leaves exactly one event, and nobody's token opens anything of another's.

A route that nobody described here fails: none can be forgotten.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from functions.x402.app import create_app
from local import lab
from shared.chain.model import Valid
from shared.kernel.codes import Pool
from shared.kernel.ids import EndpointId
from shared.pool.live import unlist_endpoint
from shared.runtime.dynamo import SyncDynamo
from shared.sale import owed_table
from shared.sale.owed_table import Refund
from tests.integration.test_audit import events
from tests.integration.test_ports import list_modems
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.routes import WRITES

pytestmark = pytest.mark.slow
PAYER = "0x" + "cc" * 20
POOL, PORT, BALANCE = "/v1/x402/pool", "/v1/x402/proxy", "/v1/x402/balance"
MANAGE, ADMIN = "/v1/x402/manage", "/v1/x402/admin"
REFUND = f"{ADMIN}/refunds/{{network}}/{{key}}"
BOUGHT = {
    POOL: ("?traffic=0.1", 400_000),
    PORT: ("?traffic=0.1", 400_000),
    BALANCE: ("?traffic=1", 4_000_000),
}
BODIES: dict[str, Any] = {
    f"{MANAGE}/pool/topup": {"addDurationSeconds": 60},
    f"{MANAGE}/session/topup": {"addDurationSeconds": 60},
    f"{MANAGE}/pool/regenerate": {},
    f"{MANAGE}/ports/replace": {},
    f"{ADMIN}/peer-tiers": {"on": False},
    REFUND: {"state": "dismissed", "reference": "test"},
}
FREE = (
    f"{POOL}/pricing",
    "/v1/x402/pricing",
    "/v1/x402/countries",
    "/v1/x402/sessions/wallet/{address}",
    "/v1/x402/sessions/{session_id}/status",
)
"""What anybody may read; no credential is ever in it (test_sale_operations.py)."""


def _documented() -> list[tuple[str, str]]:
    """(method, path) of every route. Two methods of one function make its document warn, which nobody reads here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = create_app(lambda: None).openapi()  # type: ignore[arg-type, return-value]  # nothing is wired to list routes
    return sorted((method.upper(), path) for path, found in document["paths"].items() for method in found)


ROUTES = _documented()
MANAGED = [(method, path) for method, path in ROUTES if path.startswith(MANAGE)]


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    made.open(stocked=False)
    list_modems(made, "m1", "m2")
    yield made
    made.close()


def pay(functions: Functions, path: str, number: int, method: str = "POST") -> Reply:
    query, micro = BOUGHT[path]
    headers = {"x-api-key": functions.keys.reseller} if path == BALANCE else {}
    source, tx_hash = f"127.20.3.{number}", "0x" + f"{number:064x}"
    assert functions.call(path + query, method, {}, headers, source).status == 402
    functions.chain.verdicts[tx_hash] = Valid(PAYER, micro, int(time.time()))
    return functions.call(path + query, method, {}, {**headers, "payment-signature": tx_hash}, source)


def test_every_route_is_described() -> None:
    described = {
        *BOUGHT,
        *BODIES,
        *FREE,
        *(p for m, p in ROUTES if m == "GET" and p.startswith((MANAGE, ADMIN))),
    }
    assert {path for _, path in ROUTES} == described


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[0] in WRITES or r[1] in BOUGHT])
def test_every_mutation_leaves_exactly_one_event(functions: Functions, method: str, path: str) -> None:
    port = pay(functions, PORT, 1)
    pool = pay(functions, POOL, 2)
    functions.dynamo.run(owed_table.refund(f"{PREFIX}sales", Refund("base", "k", "k", PAYER, 1, "late", 1)))
    session = port if path.endswith(("session/topup", "ports/replace")) else pool
    headers = {"x-session-token": session.body["sessionToken"], "x-api-key": functions.keys.admin}
    if path.endswith("replace"):
        for name in ("m1", "m2"):
            functions.redis.run(unlist_endpoint(Pool.MBL, EndpointId(name)))
        list_modems(functions, "m3")
    before = events()
    if path in BOUGHT:
        reply = pay(functions, path, 3, method)
    else:
        reply = functions.call(path.format(network="base", key="k"), method, BODIES[path], headers)
    assert reply.status in {200, 202}, reply
    fresh = [event for place, event in events().items() if place not in before]
    assert len(fresh) == 1, fresh


@pytest.mark.parametrize(("method", "path"), MANAGED)
def test_a_token_opens_its_own_session_and_no_other(functions: Functions, method: str, path: str) -> None:
    mine, other = pay(functions, PORT, 1).body, pay(functions, PORT, 2).body
    target = path + ("?addTrafficGB=1" if path.endswith("calculate") else "")
    for wrong in ("", "x402s_" + "0" * 48, other["proxy"]["password"], functions.keys.admin):
        refused = functions.call(target, method, BODIES.get(path), {"x-session-token": wrong})
        assert (refused.status, refused.body["code"]) == (401, "SESSION_TOKEN_INVALID")
    shown = functions.call(target, method, BODIES.get(path), {"x-session-token": mine["sessionToken"]})
    assert shown.status in {200, 409}, shown
    text = str(shown.body)
    for secret in (other["proxy"]["password"], other["proxy"]["username"], other["sessionToken"]):
        assert secret not in text


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[1].startswith(ADMIN)])
def test_what_admins_do_is_nobody_elses(functions: Functions, method: str, path: str) -> None:
    target, before = path.format(network="base", key="k"), events()
    for key, status in (("", 401), ("psx_no", 401), (functions.keys.reseller, 403)):
        assert functions.call(target, method, BODIES.get(path), {"x-api-key": key}).status == status
    assert events() == before
