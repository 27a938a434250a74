"""Who enrols as what, how fast, and what a token of one device is worth with another."""

from dataclasses import replace
from functools import partial
from typing import Any, Final

import pytest

from functions.api import enrolling
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, DeviceId
from shared.pool.live import listed_ids
from shared.pool.presence import RevokedBelow, may_serve, put_presence, renew_presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.supply.live import read_regions
from shared.supply.tokens import Claims, TokenFault, verify
from tests.support.functions import Functions, Reply
from tests.support.pool import presence
from tests.support.supply import (
    NEW,
    PHONE,
    TERMS,
    admin,
    device,
    enrolled,
    list_now,
    owner,
    probed,
    register,
    seen,
    stranger,
)

__all__ = ["list_now"]
pytestmark = pytest.mark.slow


def test_the_regions_are_a_setting_that_devices_follow(functions: Functions) -> None:
    held = enrolled(functions)
    moved = {
        "mia": {"url": "wss://mia.example/", "countries": ["us"]},
        "eu": {"url": "wss://eu.example/", "countries": ["*"]},
    }
    path = "/v1/admin/settings/relays"
    assert functions.call(path, "PUT", moved, admin(functions)).status == 200
    assert functions.call(path, "PUT", {"mia": {"url": "wss://m/"}}, admin(functions)).status == 400
    functions.api_wiring.live._kept.clear()
    assert functions.redis.run(read_regions()) == moved
    body = {"refreshToken": held["refreshToken"]}
    fresh = functions.call(f"/v1/peer/token/{held['deviceId']}/refresh", "POST", body, source=PHONE)
    assert (fresh.body["relay"], fresh.body["relays"]) == (
        "wss://mia.example/",
        ["wss://mia.example/", "wss://eu.example/"],
    )


def test_a_token_of_one_device_opens_no_other_and_nobodys_key_another_account(functions: Functions) -> None:
    mine, other = enrolled(functions, "mine"), enrolled(functions, "other")
    thief = stranger(functions)
    theirs = other["deviceId"]
    for method, path, body in (
        ("GET", f"/v1/peer/agents/{theirs}/status", None),
        ("GET", f"/v1/peer/agents/{theirs}/earnings", None),
        ("PUT", f"/v1/peer/agents/{theirs}/wallet", {"walletAddress": NEW}),
        ("POST", f"/v1/peer/agents/{theirs}/withdraw", {"amount": 5}),
        ("PATCH", f"/v1/peer/my-devices/{theirs}/listing", {"listed": False}),
        ("GET", f"/v1/peer/my-devices/{theirs}/verification", None),
        ("POST", f"/v1/peer/my-devices/{theirs}/revoke", None),
        ("DELETE", f"/v1/peer/agents/{theirs}/consent", None),
        ("POST", f"/v1/peer/my-devices/{theirs}/consent", TERMS),
    ):
        for headers in (device(mine), thief):
            assert functions.call(path, method, body, headers).status == 404, (method, path)
        assert functions.call(path, method, body).status == 401, (method, path)
    assert functions.call("/v1/peer/my-devices", headers=thief).body["devices"] == []
    itself = functions.call("/v1/peer/my-devices", headers=device(mine)).body["devices"]
    assert [d["deviceId"] for d in itself] == [mine["deviceId"]]
    for path in ("list-all", "revoke-all"):
        refused = functions.call(f"/v1/peer/my-devices/{path}", "POST", headers=device(mine))
        assert refused.status == 401
    assert functions.call("/v1/peer/consent", "DELETE", headers=device(mine)).status == 401
    path = f"/v1/peer/agents/{theirs}/refresh"
    stolen = functions.call(path, "POST", {"refreshToken": mine["refreshToken"]})
    assert stolen.body["code"] == "REFRESH_INVALID"
    assert functions.call(path, "POST", {"refreshToken": other["refreshToken"]}).status == 200


def test_an_sdk_device_cannot_take_the_name_of_an_agent_or_of_another_account(functions: Functions) -> None:
    body = {"deviceId": "android-1", "apiKey": functions.keys.supplier}
    assert functions.call("/v1/peer/register", "POST", body).status == 200
    thief = {**body, "apiKey": stranger(functions)["x-api-key"]}
    assert functions.call("/v1/peer/register", "POST", thief).body["code"] == "NAME_TAKEN"
    assert register(functions, "android-1").body["code"] == "NAME_TAKEN", "an agent is no SDK device"
    for reserved in ("agent_0123", "modem_0123"):
        refused = functions.call("/v1/peer/register", "POST", {**body, "deviceId": reserved})
        assert refused.body["message"].startswith("deviceId:")


def test_a_key_without_the_scope_enrols_nothing(functions: Functions) -> None:
    assert register(functions, apiKey=functions.keys.reseller).status == 403


BAD_INPUT: Final[list[tuple[str, Any, str]]] = [
    ("agents/register", {"apiKey": "k"}, "name"),
    ("agents/register", {"name": 7, "apiKey": "k"}, "name"),
    ("agents/register", {"name": "-x", "apiKey": "k"}, "name"),
    ("agents/register", {"name": "a\nb", "apiKey": "k"}, "name"),
    ("agents/register", {"name": "x"}, "apiKey"),
    ("agents/register", {"name": "x", "apiKey": "k" * 300}, "apiKey"),
    ("agents/register", {"name": "x", "walletAddress": "0x12"}, "walletAddress"),
    ("agents/register", {"name": "x", "walletAddress": "0" * 40}, "walletAddress"),
    ("agents/register", {"name": "x", "apiKey": "k", "consent": {}}, "consent.termsVersion"),
    (
        "agents/register",
        {"name": "x", "apiKey": "k", "consent": {"termsVersion": "1999"}},
        "consent.termsVersion",
    ),
    (
        "agents/register",
        {"name": "x", "apiKey": "k", "consent": {**TERMS, "method": "<b>"}},
        "consent.method",
    ),
    (
        "agents/register",
        {"name": "x", "apiKey": "k", "consent": {**TERMS, "acceptedAt": -1}},
        "consent.acceptedAt",
    ),
    ("agents/register", [], "body"),
    ("register", {"apiKey": "k"}, "deviceId"),
    ("register", {"deviceId": "x"}, "apiKey"),
    ("register", {"deviceId": "../x", "apiKey": "k"}, "deviceId"),
    ("agents/x/refresh", {}, "refreshToken"),
    ("token/x/refresh", {"refreshToken": None}, "refreshToken"),
]


def test_bad_input_is_a_400_that_names_the_field(functions: Functions) -> None:
    for path, body, field in BAD_INPUT:
        answer = functions.call(f"/v1/peer/{path}", "POST", body)
        assert answer.status == 400, (path, body)
        assert answer.body["message"].startswith(f"{field}:"), answer.body


def test_a_fleet_behind_one_address_waits_and_one_subscriber_of_ipv6_is_one_source(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolling, "now_ms", partial(int, now_ms()))
    answers = [
        register(functions, f"v6-{n}", f"2001:db8:1:1::{n:x}").status
        for n in range(functions.api_wiring.settings.registrations_per_minute + 1)
    ]
    assert answers.count(429) == 1
    assert register(functions, "neighbour", "2001:db8:1:2::1").status == 200
    limited = register(functions, "late", "2001:db8:1:1:ffff::1")
    assert 0 < int(limited.headers["retry-after"]) <= 60
    monkeypatch.setattr(enrolling, "SITE_FACTOR", 1)
    assert register(functions, "site", "2001:db8:1:3::1").status == 429, "a site is one source too"
    assert register(functions, "elsewhere", "2001:db8:2:3::1").status == 200


def test_a_registration_costs_few_calls_of_the_stores(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bounds how fast a fleet comes up: the function scales, each call of a store takes its milliseconds."""
    asked: list[str] = []
    for kind in (SyncDynamo, SyncRedis):

        def run(self: Any, request: Any, inner: Any = kind.run) -> Any:
            asked.append(getattr(request, "operation", "redis"))
            return inner(self, request)

        monkeypatch.setattr(kind, "run", run)
    enrolled(functions, "warm", consent=TERMS)
    asked.clear()
    enrolled(functions, "measured", consent=TERMS)
    assert sorted(asked) == sorted(["redis"] * 3 + ["get_item"] * 3 + ["transact_write_items"]), (
        "key, owner and name are read; the device and its event are one transaction"
    )


def test_an_owner_ends_every_token_of_every_device_at_once(functions: Functions) -> None:
    held = enrolled(functions)
    path = f"/v1/peer/agents/{held['deviceId']}/status"
    assert functions.call(path, headers=device(held)).status == 200
    assert functions.call("/v1/peer/my-devices/revoke-all", "POST", headers=owner(functions)).status == 200
    assert functions.call(path, headers=device(held)).status == 404
    body = {"refreshToken": held["refreshToken"]}
    assert functions.call(f"/v1/peer/agents/{held['deviceId']}/refresh", "POST", body).status == 401
    again = enrolled(functions)
    assert functions.call(path, headers=device(again)).status == 200
    one = functions.call(f"/v1/peer/my-devices/{held['deviceId']}/revoke", "POST", headers=owner(functions))
    assert one.status == 200
    assert functions.call(path, headers=device(again)).status == 404


def test_strangers_cannot_keep_a_device_from_refreshing(functions: Functions) -> None:
    held = enrolled(functions)
    path = f"/v1/peer/agents/{held['deviceId']}/refresh"
    for number in range(40):
        guess = {"refreshToken": f"{number:016x}.{'0' * 48}"}
        assert functions.call(path, "POST", guess, source="127.10.9.9").body["code"] == "REFRESH_INVALID"
    assert functions.call(path, "POST", {"refreshToken": held["refreshToken"]}).status == 200


def test_one_place_makes_few_wallet_accounts_and_knows_those_it_made(functions: Functions) -> None:
    def wallet(number: int) -> Reply:
        body = {"name": "w", "walletAddress": f"0x{number:040x}"}
        return functions.call("/v1/peer/agents/register", "POST", body, source=PHONE)

    answers = [wallet(number).status for number in range(31)]
    assert answers == [200] * 30 + [429]
    assert wallet(0).status == 200


@pytest.mark.parametrize("path", ["/v1/peer/my-devices/{}/revoke", "/v1/peer/my-devices/revoke-all"])
def test_a_revocation_that_no_relay_could_hear_of_is_not_called_done_and_its_sockets_serve_nobody(
    functions: Functions, list_now: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    ident, run = DeviceId(enrolled(functions, consent=TERMS)["deviceId"]), SyncRedis.run
    mine = replace(presence(ident), account_id=AccountId("psx_supplier1"))
    functions.redis.run(put_presence(mine))
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert list_now()["newly_listed"] == [ident]

    def away(self: SyncRedis, call: Any) -> Any:
        if "revoke" in repr(call):
            raise StoreUnavailable("redis: away")
        return run(self, call)

    with monkeypatch.context() as while_away:
        while_away.setattr(SyncRedis, "run", away)
        refused = functions.call(path.format(ident), "POST", headers=owner(functions))
        assert (refused.status, refused.body["code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    functions.redis.run(renew_presence([ident], mine.relay_id))
    assert list_now()["reasons"] == {"tokens_revoked": 1}
    assert functions.redis.run(listed_ids(Pool.PEER)) == frozenset()
    assert functions.redis.run(may_serve([ident])) == [False]
    assert functions.call(path.format(ident), "POST", headers=owner(functions)).status == 200
    told: RevokedBelow = functions.redis.run(put_presence(mine))
    assert max(told) == 2, "a repeat reaches relays"


def test_what_a_relay_sees_of_a_device_decides_nothing_for_its_owner(functions: Functions) -> None:
    body = enrolled(functions, consent=TERMS, ownerTokens=True)
    ident, public = body["deviceId"], functions.api_wiring.settings.jwt_public_key.get_secret_value()
    acts: list[tuple[str, str, Any]] = [
        ("PUT", f"/v1/peer/agents/{ident}/wallet", {"walletAddress": NEW}),
        ("PATCH", f"/v1/peer/my-devices/{ident}/listing", {"listed": False}),
        ("POST", f"/v1/peer/my-devices/{ident}/revoke", None),
        ("DELETE", f"/v1/peer/agents/{ident}/consent", None),
    ]
    refresh = f"/v1/peer/agents/{ident}/refresh"
    seen = functions.call(refresh, "POST", {"refreshToken": body["refreshToken"]}).body
    for held in (body, seen):
        claims = verify(held["token"], public)
        assert isinstance(claims, Claims)
        assert claims.owned, "a relay prefers its owner's sockets"
        assert functions.call(f"/v1/peer/agents/{ident}/status", headers=device(held)).status == 200
        for method, path, given in acts:
            refused = functions.call(path, method, given, device(held))
            assert (refused.status, refused.body["code"]) == (403, "OWNERSHIP_NOT_SHOWN"), path
    asked = {"refreshToken": seen["refreshToken"], "purpose": "owner"}
    owners = functions.call(refresh, "POST", asked).body
    assert verify(owners["token"], public) is TokenFault.INVALID, "no relay takes it"
    method, path, given = acts[-1]
    assert functions.call(path, method, given, device(owners)).status == 200
