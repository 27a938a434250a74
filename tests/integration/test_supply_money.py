"""Wallets that change slowly, and withdrawals of what a device earned."""

import pytest

from shared.runtime.clock import now_ms
from shared.supply.rules import FAMILIES_MAX, WALLET_COOLING_MS
from tests.support.functions import Functions
from tests.support.supply import (
    HOME,
    NEW,
    OLD,
    PHONE,
    TERMS,
    device,
    enrolled,
    owner,
    served,
    set_field,
)

pytestmark = pytest.mark.slow


def test_a_new_wallet_waits_a_week_while_the_old_one_is_told_and_paid(functions: Functions) -> None:
    body = enrolled(functions, walletAddress=OLD)
    path = f"/v1/peer/agents/{body['deviceId']}"
    asked = functions.call(f"{path}/wallet", "PUT", {"walletAddress": NEW}, device(body)).body
    assert (asked["walletAddress"], asked["pendingWalletAddress"]) == (OLD, NEW)
    assert 0 < asked["walletChangesAt"] - now_ms() - WALLET_COOLING_MS + 60_000 < 120_000
    status = functions.call(f"{path}/status", headers=owner(functions)).body
    assert (status["walletAddress"], status["pendingWalletAddress"]) == (OLD, NEW)
    set_field(functions, body["deviceId"], "pending_wallet", {"wallet": NEW, "from_ms": now_ms() - 1})
    status = functions.call(f"{path}/status", headers=owner(functions)).body
    assert (status["walletAddress"], status["pendingWalletAddress"]) == (NEW, None)
    back = functions.call(f"{path}/wallet", "PUT", {"walletAddress": OLD}, device(body)).body
    assert (back["walletAddress"], back["pendingWalletAddress"]) == (NEW, OLD)
    kept = functions.call(f"{path}/wallet", "PUT", {"walletAddress": NEW}, device(body)).body
    assert (kept["walletAddress"], kept["pendingWalletAddress"]) == (NEW, None)
    bad = functions.call(f"{path}/wallet", "PUT", {"walletAddress": "mine"}, device(body))
    assert (bad.status, bad.body["message"].partition(":")[0]) == (400, "walletAddress")


def test_a_devices_own_token_cannot_choose_the_first_wallet_at_once(functions: Functions) -> None:
    body = enrolled(functions)
    path = f"/v1/peer/agents/{body['deviceId']}/wallet"
    asked = functions.call(path, "PUT", {"walletAddress": NEW}, device(body)).body
    assert (asked["walletAddress"], asked["pendingWalletAddress"]) == (None, NEW)
    set_by_owner = functions.call(path, "PUT", {"walletAddress": OLD}, owner(functions)).body
    assert (set_by_owner["walletAddress"], set_by_owner["pendingWalletAddress"]) == (OLD, None)


def test_whoever_knows_a_wallet_cannot_redirect_what_it_earns(functions: Functions) -> None:
    """A wallet is public, so anybody may register its devices: they can only ever earn for it."""
    body = {"name": "w", "walletAddress": OLD}
    first = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE).body
    thief = functions.call("/v1/peer/agents/register", "POST", body, source=HOME).body
    assert thief["deviceId"] == first["deviceId"]
    path = f"/v1/peer/agents/{first['deviceId']}/wallet"
    refused = functions.call(path, "PUT", {"walletAddress": NEW}, device(thief))
    assert refused.body["code"] == "WALLET_FIXED"
    same = functions.call(path, "PUT", {"walletAddress": OLD.upper().replace("X", "x")}, device(first))
    assert same.body["walletAddress"] == OLD


def test_whoever_knows_a_wallet_and_a_name_decides_nothing(functions: Functions) -> None:
    body = {"name": "w", "walletAddress": OLD}
    first = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE).body
    path = f"/v1/peer/agents/{first['deviceId']}"
    for number in range(
        FAMILIES_MAX + 2
    ):  # more than a device keeps: the owner's own registration must outlive them
        more = {**body, "consent": {**TERMS, "method": "dialog"}}
        thief = functions.call("/v1/peer/agents/register", "POST", more, source=f"127.10.2.{number + 1}").body
    assert thief["consentRecorded"] is False
    mine = f"/v1/peer/my-devices/{first['deviceId']}"
    asked = {"refreshToken": thief["refreshToken"]}
    thief = functions.call(f"{path}/refresh", "POST", asked, source=HOME).body
    for target, method, given in (
        (f"{path}/consent", "DELETE", None),
        (f"{path}/consent", "POST", TERMS),
        (f"{mine}/consent", "DELETE", None),
        (f"{mine}/listing", "PATCH", {"listed": False}),
        (f"{mine}/revoke", "POST", {}),
    ):
        refused = functions.call(target, method, given, device(thief))
        assert (refused.status, refused.body["code"]) == (403, "OWNERSHIP_NOT_SHOWN"), target
    assert functions.call(f"{path}/status", headers=device(thief)).status == 200
    renewed = functions.call(f"{path}/refresh", "POST", {"refreshToken": first["refreshToken"]}, source=PHONE)
    assert (
        functions.call(f"{path}/consent", "POST", TERMS, device(renewed.body)).body["consentRecorded"] is True
    )
    assert functions.call(f"{path}/consent", "DELETE", headers=device(renewed.body)).status == 200
    again = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE)
    assert again.body["code"] == "CONSENT_WITHDRAWN"


def test_one_place_fills_no_strangers_wallet_with_ghosts(functions: Functions) -> None:
    answers = [
        functions.call(
            "/v1/peer/agents/register", "POST", {"name": f"g{n}", "walletAddress": OLD}, source=HOME
        )
        for n in range(31)
    ]
    assert [a.status for a in answers] == [200] * 30 + [429]
    known = {"name": "g1", "walletAddress": OLD}
    assert functions.call("/v1/peer/agents/register", "POST", known, source=HOME).status == 200


def test_a_device_withdraws_what_it_earned_once_and_to_its_wallet(functions: Functions) -> None:
    body = enrolled(functions, walletAddress=OLD)
    ident = body["deviceId"]
    path = f"/v1/peer/agents/{ident}"
    served(functions, ident, 10)
    earned = functions.call(f"/v1/peer/earnings/{ident}", headers=device(body)).body
    assert (earned["earnedUSDC"], earned["availableUSDC"], earned["servedBytes"]) == ("12", "12", 10**10)
    assert earned["accountPendingMicroUSDC"] == "12000000"
    for amount, word in ((4.99, "at least 5"), (12.01, "more than"), (5.0000001, "six decimal")):
        refused = functions.call(f"{path}/withdraw", "POST", {"amount": amount}, device(body))
        assert refused.status == 400
        assert word in refused.body["message"]
    asked = functions.call(f"{path}/withdraw", "POST", {"amount": "7.5"}, device(body)).body
    assert (asked["amountUSDC"], asked["walletAddress"], asked["status"]) == ("7.5", OLD, "requested")
    again = functions.call(f"{path}/withdraw", "POST", {"amount": 7.5}, device(body))
    assert again.status == 400
    earned = functions.call(f"{path}/earnings", headers=owner(functions)).body
    assert earned["availableUSDC"] == "4.5"
    assert [w["withdrawalId"] for w in earned["withdrawals"]] == [asked["withdrawalId"]]
    served(functions, ident, 1, 1)
    rest = functions.call(f"{path}/withdraw", "POST", None, device(body)).body
    assert rest["amountUSDC"] == "5.7"


def test_a_device_draws_nothing_of_what_its_neighbours_earned(functions: Functions) -> None:
    rich, poor = enrolled(functions, "rich"), enrolled(functions, "poor", walletAddress=OLD)
    served(functions, rich["deviceId"], 100)
    asked = functions.call(
        f"/v1/peer/agents/{poor['deviceId']}/withdraw", "POST", {"amount": 5}, device(poor)
    )
    assert (asked.status, asked.body["message"].partition(":")[0]) == (400, "amount")
    walletless = functions.call(f"/v1/peer/agents/{rich['deviceId']}/withdraw", "POST", {}, device(rich))
    assert walletless.body["code"] == "WALLET_MISSING"


def test_an_sdk_device_withdraws_ten_at_least(functions: Functions) -> None:
    registered = {"deviceId": "android-1", "apiKey": functions.keys.supplier}
    body = functions.call("/v1/peer/register", "POST", registered, source=PHONE).body
    path = "/v1/peer/agents/android-1"
    functions.call(f"{path}/wallet", "PUT", {"walletAddress": OLD}, owner(functions))
    served(functions, "android-1", 10)
    refused = functions.call(f"{path}/withdraw", "POST", {"amount": 9}, device(body))
    assert "at least 10" in refused.body["message"]
    assert functions.call(f"{path}/withdraw", "POST", {"amount": 10}, device(body)).status == 200


def test_a_byte_served_to_others_takes_a_device_out_of_the_unproven_count(functions: Functions) -> None:
    body = enrolled(functions)
    path = f"/v1/peer/agents/{body['deviceId']}/status"
    served(functions, body["deviceId"], 1, customer="psx_supplier1")
    assert functions.call(path, headers=device(body)).body["proven"] is False
    served(functions, body["deviceId"], 1, 1)
    assert functions.call(path, headers=device(body)).body["proven"] is True
