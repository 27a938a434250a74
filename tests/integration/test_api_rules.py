"""What belongs to another account is not there, on any route that the OpenAPI document has."""

from typing import Any

import pytest

from tests.support.functions import Reply
from tests.support.routes import ABSENT, PUBLIC, documented, rows_about
from tests.support.tenants import Tenancy

pytestmark = pytest.mark.slow
OPEN = ("/v1/peer/agents/{device_id}/refresh", "/v1/peer/token/{device_id}/refresh")
"""Routes whose body is the credential: nobody is signed in there."""
QUERIED = (
    ("GET", "/v1/gateway/pool/my-sessions"),
    ("DELETE", "/v1/gateway/pool/my-sessions"),
    ("GET", "/v1/gateway/credentials"),
)
"""Routes that take the id of a key as `pakId`."""


def said(reply: Reply) -> tuple[int, Any]:
    """An answer without what is different in every one."""
    body = (
        {k: v for k, v in reply.body.items() if k != "requestId"}
        if isinstance(reply.body, dict)
        else reply.body
    )
    return reply.status, body


NAMING = [
    (m, p)
    for m, p in documented()
    if "{" in p and not p.startswith("/v1/admin/settings") and (m, p) not in PUBLIC
]


@pytest.mark.parametrize(("method", "path"), NAMING)
def test_anothers_id_behaves_as_one_that_nobody_has(tenancy: Tenancy, method: str, path: str) -> None:
    victim, stranger = tenancy("victim", "other")
    headers = stranger.reseller if path.startswith("/v1/admin/") else stranger.headers(path)
    if path in OPEN:
        headers = {}
    victim_rows = rows_about(victim)
    foreign = stranger.call(method, path, victim.ids, headers)
    assert said(foreign) == said(stranger.call(method, path, ABSENT, headers))
    assert foreign.status in ({401} if path in OPEN else {403} if path.startswith("/v1/admin/") else {404})
    assert not any(text in str(foreign.body) for text in victim.ids.values())
    assert rows_about(victim) == victim_rows
    nobody = stranger.call(method, path, victim.ids, {})
    assert nobody.status == 401
    assert rows_about(victim) == victim_rows


@pytest.mark.parametrize(("method", "path"), QUERIED)
def test_anothers_key_finds_nothing_where_it_is_asked_for(tenancy: Tenancy, method: str, path: str) -> None:
    victim, stranger = tenancy("victim", "other")
    functions = victim.functions
    asked = [
        functions.call(f"{path}?pakId={ident}", method, None, stranger.reseller)
        for ident in (victim.ids["pak_id"], ABSENT["pak_id"])
    ]
    assert said(asked[0]) == said(asked[1])
    mine = functions.call("/v1/gateway/pool/my-sessions", headers=victim.reseller).body
    assert mine["count"] == 1


def test_a_cursor_of_another_account_is_refused(tenancy: Tenancy) -> None:
    victim, stranger = tenancy("victim", "other")
    functions = victim.functions
    path = "/v1/reseller/pool-keys"
    functions.call(path, "POST", {"label": "b", "trafficCapGB": 1}, victim.reseller)
    cursor = functions.call(f"{path}?limit=1", headers=victim.reseller).headers["x-next-cursor"]
    assert functions.call(f"{path}?limit=1&cursor={cursor}", headers=victim.reseller).status == 200
    assert functions.call(f"{path}?limit=1&cursor={cursor}", headers=stranger.reseller).status == 400
