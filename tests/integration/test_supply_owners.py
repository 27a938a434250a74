"""What owners decide through the API function: lists, wishes, consent and its withdrawal."""

from base64 import b64encode
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import pytest

from local.api_gateway import http_event
from local.http_server import HttpRequest
from shared.grading import table as grades
from shared.grading.live import ask_probe
from shared.grading.model import Bar, Failure, ProbeResult
from shared.grading.rules import ADVICE
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import DeviceId
from shared.pool.live import listed_ids
from shared.pool.presence import may_serve, put_presence
from shared.runtime.clock import now_ms
from shared.supply.table import get_device
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.pool import presence
from tests.support.supply import (
    HOME,
    OLD,
    TERMS,
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


# Owners


def test_an_owner_pages_through_devices_and_only_through_their_own(functions: Functions) -> None:
    for number in range(5):
        enrolled(functions, f"rig-{number}", f"127.10.1.{number + 1}")
    found, cursor = [], ""
    while True:
        page = functions.call(f"/v1/peer/my-devices?limit=2&cursor={cursor}", headers=owner(functions)).body
        found += [d["name"] for d in page["devices"]]
        assert page["total"] == 5
        if not page["more"]:
            break
        cursor = page["nextCursor"]
    assert sorted(found) == [f"rig-{n}" for n in range(5)]
    thief = stranger(functions)
    assert functions.call(f"/v1/peer/my-devices?limit=2&cursor={cursor}", headers=thief).status == 400


def test_one_call_unlists_every_device_and_a_later_word_on_one_of_them_holds(
    functions: Functions, list_now: Any
) -> None:
    idents = []
    for number in range(3):
        ident = enrolled(functions, f"rig-{number}", consent=TERMS)["deviceId"]
        functions.redis.run(put_presence(presence(ident)))
        probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
        idents.append(ident)
    assert list_now()["listed"] == 3
    path = "/v1/peer/my-devices/list-all"
    told = functions.call(path, "POST", {"listed": False}, owner(functions)).body
    assert (told["listed"], told["devices"]) == (False, 3)
    assert list_now()["reasons"] == {"owner_said_no": 3}
    functions.call(f"/v1/peer/my-devices/{idents[1]}/listing", "PATCH", {"listed": True}, owner(functions))
    assert list_now()["newly_listed"] == [idents[1]]
    assert functions.call(path, "POST", headers=owner(functions)).body["listed"] is True
    assert list_now()["listed"] == 3


def test_preferences_decide_for_devices_to_come(functions: Functions) -> None:
    path = "/v1/peer/my-preferences"
    assert functions.call(path, headers=owner(functions)).body["autoList"] is True
    assert functions.call(path, "PATCH", {"autoList": False}, owner(functions)).body["autoList"] is False
    assert functions.call(path, "PATCH", {}, owner(functions)).status == 400
    quiet = enrolled(functions)
    status = functions.call(f"/v1/peer/agents/{quiet['deviceId']}/status", headers=device(quiet)).body
    assert status["listingWanted"] is False


def test_an_owner_sees_the_failing_check_the_next_probe_and_what_to_do(functions: Functions) -> None:
    body = enrolled(functions)
    ident = DeviceId(body["deviceId"])
    path = f"/v1/peer/my-devices/{ident}/verification"
    asked_at = now_ms()
    functions.redis.run(ask_probe(ident, 60_000))
    probed(functions, ident, ProbeResult(asked_at, Failure.TLS_DROPPED, connect_ms=12))
    told = functions.call(path, headers=owner(functions)).body
    assert told["probe"]["probeMode"] == "connect_v2"
    assert (told["probe"]["failureReason"], told["probe"]["connectMs"]) == ("tls_dropped_mid_handshake", 12)
    shown = told["verification"]
    assert (shown["failingCheck"], shown["consecutiveFailures"]) == ("tls", 1)
    assert shown["whatToDo"] == ADVICE[Failure.TLS_DROPPED]
    assert 59_000 <= shown["nextProbeAt"] - asked_at <= 120_000
    assert not {"exitIp", "exit_ip", "exitMark"} & {*told["probe"], *shown}, "an address is nobody's business"


def test_an_owner_sees_that_customers_were_let_down_until_when_and_what_to_do(functions: Functions) -> None:
    ident = DeviceId(enrolled(functions)["deviceId"])
    path = f"/v1/peer/my-devices/{ident}/verification"
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert functions.call(path, headers=owner(functions)).body["verification"]["offSaleUntil"] is None
    until_ms = now_ms() + 60_000
    functions.dynamo.run(grades.set_bar(PREFIX + "grades", ident, Bar(), Bar(1, until_ms)))
    shown = functions.call(path, headers=owner(functions)).body["verification"]
    assert (shown["failingCheck"], shown["offSaleUntil"]) == ("customers", until_ms)
    assert "offSaleUntil" in shown["whatToDo"]


def test_hours_are_kept_told_and_taken_back(functions: Functions) -> None:
    path, nights = "/v1/peer/my-preferences", {"hours": "22:00-06:00", "timeZone": "Europe/Berlin"}
    assert functions.call(path, headers=owner(functions)).body["schedule"] is None
    told = functions.call(path, "PATCH", {"schedule": nights}, owner(functions)).body
    assert (told["schedule"], told["autoList"]) == (nights, True)
    assert functions.call(path, "PATCH", {"autoList": True}, owner(functions)).body["schedule"] == nights
    for wrong in ({"hours": "22-6", "timeZone": "UTC"}, {"hours": "22:00-06:00", "timeZone": "Nowhere"}, 5):
        assert functions.call(path, "PATCH", {"schedule": wrong}, owner(functions)).status == 400
    assert functions.call(path, "PATCH", {"schedule": None}, owner(functions)).body["schedule"] is None


# Consent


def test_a_device_without_consent_is_never_listed_until_its_owner_agrees_for_all(
    functions: Functions, list_now: Any
) -> None:
    ident = enrolled(functions)["deviceId"]
    enrolled(functions, "second")
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert list_now()["reasons"] == {"no_consent": 2}
    assert functions.redis.run(may_serve([DeviceId(ident)])) == [False], "not even its own account reaches it"
    for headers in ({}, {"x-api-key": functions.keys.reseller}):
        assert functions.call("/v1/peer/consent", "POST", TERMS, headers).status in {401, 403}
    old = functions.call("/v1/peer/consent", "POST", {"termsVersion": "1999"}, owner(functions))
    assert old.body["message"].startswith("termsVersion:")
    given = functions.call("/v1/peer/consent", "POST", TERMS, owner(functions)).body
    assert (given["termsVersion"], given["devices"]) == ("2026-11", 2)
    assert given["acceptedBy"].startswith("key ")
    assert list_now()["newly_listed"] == [ident]
    assert functions.redis.run(may_serve([DeviceId(ident)])) == [True]
    assert enrolled(functions)["consentRecorded"] is True


def test_withdrawal_ends_everything_at_once_and_only_agreement_brings_it_back(
    functions: Functions, list_now: Any
) -> None:
    body = enrolled(functions, consent={**TERMS, "method": "dialog", "acceptedAt": 5})
    ident = body["deviceId"]
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert list_now()["listed"] == 1
    gone = functions.call(f"/v1/peer/agents/{ident}/consent", "DELETE", headers=device(body)).body
    assert (gone["consentRecorded"], [r["action"] for r in gone["receipts"]]) == (
        False,
        ["withdrawn", "accepted"],
    )
    assert functions.redis.run(listed_ids(Pool.PEER)) == frozenset()
    assert functions.redis.run(put_presence(presence(ident), 0)).device == 1
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert list_now()["reasons"] == {"no_consent": 1}
    functions.call("/v1/peer/consent", "POST", TERMS, owner(functions))
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    back = functions.call(f"/v1/peer/my-devices/{ident}/consent", "POST", TERMS, owner(functions)).body
    assert back["consentRecorded"] is True
    assert back["receipts"][0]["by"].startswith("key ")
    assert register(functions).status == 200


def test_an_owner_withdraws_for_all_devices(functions: Functions, list_now: Any) -> None:
    body = enrolled(functions, consent=TERMS)
    ended = functions.call("/v1/peer/consent", "DELETE", headers=owner(functions)).body
    assert (ended["termsVersion"], ended["receipts"][0]["devices"]) == (None, 1)
    assert functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).status == 404
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert list_now()["reasons"] == {"no_consent": 1}
    functions.call("/v1/peer/consent", "POST", TERMS, owner(functions))
    assert register(functions).status == 200


def test_anybody_learns_what_a_device_id_is_and_nothing_of_its_owner(functions: Functions) -> None:
    ident = enrolled(functions, consent=TERMS, walletAddress=OLD)["deviceId"]
    told = functions.call(f"/v1/peer/devices/{ident}")
    assert (told.body["known"], told.body["consent"]["recorded"]) == (True, True)
    assert any("/consent" in step for step in told.body["howToWithdraw"])
    for secret in (OLD, "psx_supplier1", "rig-1", "127.", "US"):
        assert secret not in str({k: v for k, v in told.body.items() if k != "howToWithdraw"})
    assert functions.call("/v1/peer/devices/nobody").body["known"] is False
    page = functions.call(f"/peer/device?id={ident}")
    assert page.headers["content-type"].startswith("text/html")
    assert "Its owner agreed" in page.body
    style = page.body.partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"], "browsers would drop it"
    assert "No device of psx" in functions.call("/peer/device?id=nobody").body
    attack = functions.call("/peer/device?id=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>" not in attack.body
    limited = [functions.call(f"/v1/peer/devices/guess-{n}").status for n in range(31)]
    assert 429 in limited


def test_the_page_stops_a_device_for_whoever_has_its_accounts_key_and_for_nobody_else(
    functions: Functions,
) -> None:
    ident = enrolled(functions, consent=TERMS)["deviceId"]
    form = {"content-type": "application/x-www-form-urlencoded"}

    def stop(key: str, device_id: str = ident, **headers: str) -> Reply:
        body = urlencode({"id": device_id, "key": key}).encode()
        event = http_event(
            HttpRequest("POST", "/peer/device", tuple({**form, **headers}.items()), body, HOME)
        )
        answer = functions.deliver(event)
        return Reply(answer["statusCode"], answer["headers"], answer["body"])

    wrong = stop("psx_0", "<script>")
    assert (wrong.status, "Nothing was changed" in wrong.body, "<script>" in wrong.body) == (401, True, False)
    for key in (stranger(functions)["x-api-key"], functions.keys.reseller):
        assert stop(key).status == 404
    assert stop(functions.keys.supplier, "nobody").status == 404
    assert stop("").status == 400
    assert functions.call(f"/v1/peer/devices/{ident}").body["consent"]["recorded"] is True
    done = stop(functions.keys.supplier)
    assert (done.status, "takes no part any more" in done.body) == (200, True)
    assert functions.keys.supplier not in done.body
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert "its owner withdrew" in functions.call(f"/peer/device?id={ident}").body
    receipts = functions.call(f"/v1/peer/my-devices/{ident}/consent", headers=owner(functions)).body[
        "receipts"
    ]
    assert (receipts[0]["action"], receipts[0]["method"]) == ("withdrawn", "page")
    assert 429 in [stop("psx_0").status for _ in range(10)]


def test_receipts_hold_our_time_and_theirs(functions: Functions) -> None:
    body = enrolled(functions, consent={**TERMS, "method": "flag", "acceptedAt": 1_700_000_000_000})
    (receipt,) = functions.call(f"/v1/peer/agents/{body['deviceId']}/consent", headers=device(body)).body[
        "receipts"
    ]
    assert (receipt["method"], receipt["claimedAt"]) == ("flag", 1_700_000_000_000)
    assert abs(receipt["at"] - now_ms()) < 60_000
    stored = functions.dynamo.run(get_device(f"{PREFIX}devices", DeviceId(body["deviceId"])))
    assert stored is not None
    assert stored.consent is not None
    assert stored.consent.accepted_at_ms == receipt["at"]
