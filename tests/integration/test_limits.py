"""Rate limits at the API: per address, per key, per route; Redis away: reads go on, writes do not."""

from dataclasses import replace

import pytest

from functions.api.limits import PER_OBJECT, ROUTES
from functions.x402 import sale
from shared.access.live import Limit
from shared.runtime.redis import SyncRedis
from tests.support.functions import Functions
from tests.support.routes import documented

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"
HEALTH = "/health"


def narrow(functions: Functions, **limits: int) -> None:
    settings = functions.api_wiring.settings.model_copy(update=limits)
    functions.api_wiring = replace(functions.api_wiring, settings=settings)


def me(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.reseller}


def test_every_limited_route_is_a_route() -> None:
    assert {*ROUTES, *PER_OBJECT} <= set(documented())


def test_an_address_has_its_calls_and_another_one_its_own(functions: Functions) -> None:
    narrow(functions, calls_per_minute_address=3)
    replies = [functions.call(HEALTH) for _ in range(4)]
    assert [r.status for r in replies] == [200, 200, 200, 429]
    assert [r.headers["ratelimit"].split(";t=")[0] for r in replies] == [
        '"address";r=2', '"address";r=1', '"address";r=0', '"address";r=0',
    ]  # fmt: skip
    assert replies[0].headers["ratelimit-policy"] == '"address";q=3;w=60'
    refused = replies[3]
    assert (refused.body["code"], refused.headers["content-type"]) == (
        "RATE_LIMITED",
        "application/problem+json",
    )
    assert 0 < int(refused.headers["retry-after"]) <= 80
    assert functions.call(HEALTH, source="127.20.0.2").status == 200


def test_a_key_has_its_calls_from_wherever_it_is_used(functions: Functions) -> None:
    narrow(functions, calls_per_minute_key=3)
    replies = [functions.call(KEYS, headers=me(functions), source=f"127.20.0.{n}") for n in range(5)]
    assert [r.status for r in replies] == [200, 200, 200, 429, 429]
    assert '"key";r=0' in replies[4].headers["ratelimit"]
    other = {"x-api-key": functions.keys.supplier}
    assert functions.call("/v1/peer/my-devices", headers=other).status == 200


def test_a_new_secret_is_had_ten_times_an_hour_and_a_stranger_cannot_use_that_up(
    functions: Functions,
) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    path = f"{KEYS}/{made['id']}/regenerate"
    stranger = {"x-api-key": functions.keys.supplier}
    assert {functions.call(path, "POST", {}, stranger).status for _ in range(12)} == {403, 429}
    statuses = [functions.call(path, "POST", {}, me(functions)).status for _ in range(11)]
    assert statuses == [200] * 10 + [429]


def test_without_redis_reads_go_on_and_writes_do_not(functions: Functions) -> None:
    made = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me(functions)).body
    working, away = functions.api_wiring, SyncRedis("redis://127.0.0.1:9")
    functions.api_wiring = replace(working, redis=away)
    for path in (HEALTH, KEYS, f"{KEYS}/{made['id']}", "/v1/reseller/balance", f"{KEYS}/audit"):
        assert functions.call(path, headers=me(functions)).status == 200, path
    for method, path in (
        ("POST", KEYS),
        ("PATCH", f"{KEYS}/{made['id']}"),
        ("DELETE", f"{KEYS}/{made['id']}"),
    ):
        refused = functions.call(path, method, {"label": "x", "trafficCapGB": 1}, me(functions))
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
    functions.api_wiring = working
    assert functions.call(f"{KEYS}/{made['id']}", headers=me(functions)).body["label"] == "k"
    away.close()


def test_without_redis_a_price_is_told_and_no_payment_taken(functions: Functions) -> None:

    functions.open()
    away = SyncRedis("redis://127.0.0.1:9")
    functions.sale_wiring = replace(functions.sale_wiring, redis=away)
    pool = "/v1/x402/pool?country=us&traffic=0.1"
    shown = {"payment-signature": "0x" + "ab" * 32}
    refused = functions.call(pool, headers=shown)
    assert (refused.status, refused.body["code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert "do not pay again" in refused.body["message"]
    away.close()


@pytest.mark.parametrize(
    "path", ["sessions/wallet/0x1", "sessions/none/status", "manage/pool/credit", "manage/session"]
)
def test_sessions_are_looked_up_so_often_from_one_place_and_without_redis_too(
    functions: Functions, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(sale, "LOOK_LIMIT", Limit("look", 2, 60))
    headers = {"x-session-token": "x402s_" + "0" * 48}

    def look(source: str) -> int:
        return functions.call(f"/v1/x402/{path}", headers=headers, source=source).status

    first = look("127.20.0.1")
    assert first in {200, 401, 404}
    assert [look("127.20.0.1") for _ in range(3)] == [first, 429, 429]
    assert look("127.20.0.2") == first
    away = SyncRedis("redis://127.0.0.1:9")
    functions.sale_wiring = replace(functions.sale_wiring, redis=away)
    assert look("127.20.0.1") == first
    away.close()


def test_a_token_written_otherwise_and_another_address_of_a_network_are_no_other_callers(
    functions: Functions,
) -> None:
    body = {"email": "a@a.example", "password": "correct horse battery"}
    admin = {"x-api-key": functions.keys.admin}
    functions.call("/v1/admin/accounts/psx_reseller1/people", "POST", body, admin)
    token = functions.call("/v1/auth/sign-in", "POST", body).body["token"]
    narrow(functions, calls_per_minute_key=2)
    written = (f"Bearer {token}", f"Bearer   {token}", token)
    replies = [functions.call(KEYS, headers={"authorization": text}).status for text in written]
    assert replies == [200, 200, 429]
    narrow(functions, calls_per_minute_address=2)
    sources = ("2001:db8::1", "2001:db8::2", "2001:db8::3:4", "2001:db8:0:1::1")
    assert [functions.call(HEALTH, source=source).status for source in sources] == [200, 200, 429, 200]
