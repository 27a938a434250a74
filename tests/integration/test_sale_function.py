"""The sale through its function: one payment, one key, for whoever asked before paying."""

import base64
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from functions.x402 import app
from functions.x402.validate import validate_sale
from local import lab
from local.bootstrap import HOUSE
from shared.access import table as access
from shared.access.model import DisabledReason
from shared.chain.model import Invalid, InvalidReason, Unknown, UnknownReason, Valid
from shared.guard.settings import STALE, VALIDATED_MAX_MS
from shared.guard.table import write_setting
from shared.kernel.ids import PakId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo, transact
from shared.sale.model import Bought, Offer, Payment, Refused, Session, Terms
from shared.sale.rules import read_prices, read_terms
from shared.sale.service import pool_order
from shared.sale.table import session_items
from tests.support.functions import PREFIX, RECIPIENT, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("open_sale")]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
HASH = "0x" + "ab" * 32
SOLANA_HASH = "5" * 88
PAYER = "0x" + "cc" * 20
THIEF = "127.20.0.9"
TOPUP = "/v1/x402/manage/pool/topup"


def paid(functions: Functions, tx_hash: str = HASH, micro: int = 400_000, payer: str = PAYER) -> None:
    functions.chain.verdicts[tx_hash] = Valid(payer, micro, int(time.time()))


def claim(
    functions: Functions, tx_hash: str = HASH, source: str = "127.20.0.1", query: str = QUERY, proof: str = ""
) -> Reply:
    headers = {"payment-signature": tx_hash} | ({"x-payment-proof": proof} if proof else {})
    return functions.call(query, headers=headers, source=source)


def bought(functions: Functions) -> dict[str, Any]:
    assert functions.call(QUERY).status == 402
    paid(functions)
    answer = claim(functions)
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.body
    return body


def test_the_402_is_a_price_sheet_for_every_client_family(functions: Functions) -> None:
    answer = functions.call(QUERY)
    assert answer.status == 402
    requirement = answer.body["paymentRequirement"]
    assert [a["network"] for a in requirement["accepts"]] == ["base", "solana"]
    first = requirement["accepts"][0]
    assert (first["scheme"], first["chainId"], first["maxAmountRequired"], first["payTo"]) == (
        "txhash",
        8453,
        "400000",
        RECIPIENT,
    )
    assert {"resource", "description", "mimeType", "maxTimeoutSeconds", "asset"} <= first.keys()
    assert answer.body["caveats"]
    header = answer.headers["payment-required"]
    assert len(header) < 2048
    v2 = json.loads(base64.b64decode(header))
    assert (v2["x402Version"], v2["accepts"][0]["network"], v2["accepts"][0]["amount"]) == (
        2,
        "eip155:8453",
        "400000",
    )
    assert answer.headers["x-request-id"]
    assert (
        functions.call(QUERY).body["paymentRequirement"]["extra"]["quoteId"]
        == requirement["extra"]["quoteId"]
    )


def test_a_payment_buys_a_key_that_is_capped_at_what_was_paid(functions: Functions) -> None:
    body = bought(functions)
    proxy = body["proxy"]
    assert proxy["password"].startswith("pak_")
    assert proxy["username"] == "psx_x402pool-mbl-us-rot-auto10"
    assert proxy["http"] == f"http://{proxy['username']}:{proxy['password']}@gw.example:7000"
    assert proxy["socks5"] is None
    assert body["sessionToken"].startswith("x402s_")
    assert (body["credit"]["allocatedGB"], body["credit"]["usedGB"], body["credit"]["enabled"]) == (
        0.1,
        0,
        True,
    )
    assert body["payment"] == {"network": "base", "txHash": HASH, "amountUSDC": 0.4}


def test_the_same_payment_again_gives_the_same_credentials(functions: Functions) -> None:
    first = bought(functions)
    upper = claim(functions, "0X" + "AB" * 32)
    assert (upper.body["proxy"], upper.body["sessionToken"]) == (first["proxy"], first["sessionToken"])
    old_client = functions.call(
        QUERY, headers={"x-payment": json.dumps({"transactionHash": HASH, "network": "base", "payer": PAYER})}
    )
    assert old_client.body["proxy"] == first["proxy"]
    v2 = base64.b64encode(
        json.dumps({"x402Version": 2, "payload": {"transactionHash": HASH}, "network": "base"}).encode()
    )
    assert claim(functions, v2.decode()).body["proxy"] == first["proxy"]


def test_somebody_else_with_the_hash_gets_nothing_before_or_after(functions: Functions) -> None:
    functions.call(QUERY)
    paid(functions)
    before = claim(functions, source=THIEF)
    assert before.status == 403
    assert "X-Payment-Proof" in before.body["message"]
    first = claim(functions)
    assert first.status == 200
    after = claim(functions, source=THIEF)
    assert after.status == 403
    assert first.body["proxy"]["password"] not in json.dumps(after.body)


def test_a_quote_that_was_asked_after_the_payment_claims_nothing(functions: Functions) -> None:
    functions.chain.verdicts[HASH] = Valid(PAYER, 400_000, int(time.time()) - 600)
    functions.call(QUERY, source=THIEF)
    assert claim(functions, source=THIEF).status == 403


def test_the_payers_signature_is_honoured_from_anywhere(functions: Functions) -> None:
    paid(functions)
    assert claim(functions, source=THIEF, proof="somebody else").status == 403
    first = claim(functions, source=THIEF, proof=PAYER)
    assert first.status == 200
    assert claim(functions, source="127.20.0.8", proof=PAYER).body["proxy"] == first.body["proxy"]


@pytest.mark.parametrize(
    ("micro", "status", "allocated"),
    [
        (391_999, 402, 0),
        (392_000, 200, 100_000_000),
        (400_000, 200, 100_000_000),
        (408_000, 200, 102_000_000),
    ],
)
def test_two_percent_less_is_enough_and_more_is_credited(
    functions: Functions, micro: int, status: int, allocated: int
) -> None:
    functions.call(QUERY)
    paid(functions, micro=micro)
    answer = claim(functions)
    assert answer.status == status
    if status == 200:
        assert answer.body["credit"]["allocatedBytes"] == allocated
    else:
        assert "PAYMENT_TOO_SMALL" in answer.body["error"]


def test_an_unknown_payment_is_never_a_402_and_consumes_nothing(functions: Functions) -> None:
    functions.call(QUERY)
    functions.chain.verdicts[HASH] = Unknown(UnknownReason.NODE_UNREACHABLE)
    answer = claim(functions)
    assert answer.status == 503
    assert "do not pay again" in answer.body["message"]
    assert answer.headers["retry-after"] == "2"
    functions.chain.verdicts[HASH] = Unknown(UnknownReason.NOT_FOUND)
    unseen = claim(functions)
    assert unseen.status == 503
    for words in ("do not pay again", HASH, "eip155:8453", "within 2 minutes"):
        assert words in unseen.body["message"]
    paid(functions)
    assert claim(functions).status == 200


def test_a_transaction_that_is_no_payment_is_a_402_with_its_reason(functions: Functions) -> None:
    functions.call(QUERY)
    functions.chain.verdicts[HASH] = Invalid(InvalidReason.NO_TRANSFER)
    answer = claim(functions)
    assert answer.status == 402
    assert "no_transfer_of_usdc_to_us" in answer.body["error"]


def test_parallel_claims_of_one_payment_mint_one_key(
    dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> None:
    functions = Functions(dynoxide, valkey_url, lab_files)
    counter, prices = functions.sale_wiring.counter, read_prices(functions.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    counter.quote(pool_order(terms, prices), "127.20.0.1")
    paid(functions)

    def buy(_: int) -> Bought | Refused:
        return counter.buy([Offer(pool_order(terms, prices), prices)], Payment("base", HASH), "127.20.0.1")

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(buy, range(50)))
    assert all(isinstance(a, Bought) for a in answers)
    assert len({a.secret for a in answers if isinstance(a, Bought)}) == 1
    assert [a.repeated for a in answers if isinstance(a, Bought)].count(False) == 1
    assert len(dynoxide.run(access.list_paks(f"{PREFIX}access", HOUSE, 10)).rows) == 1
    functions.close()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("traffic=abc", "traffic"),
        ("traffic=NaN", "traffic"),
        ("traffic=-1", "traffic"),
        ("traffic=1e9", "traffic"),
        ("traffic=0.01", "traffic"),
        ("tier=zzz", "tier"),
        ("country=ZZZ", "country"),
        ("country=ZZ", "country"),
        ("country=", "country"),
        ("country=uk", "country"),
        ("traffic=", "traffic"),
        ("traffic=Infinity", "traffic"),
        ("traffic=0x10", "traffic"),
        ("traffic=٣", "traffic"),
        ("traffic=0.1000000001", "traffic"),
        ("traffic=1001", "traffic"),
        ("duration=0", "duration"),
        ("duration=-1", "duration"),
        ("duration=7776000.5", "duration"),
        ("tier=", "tier"),
        ("sid=", "sid"),
        ("duration=7776001", "duration"),
        ("duration=x", "duration"),
        ("sid=a-b", "sid"),
        ("rot=never", "rot"),
        ("trafficGB=5", "trafficGB"),
        ("country=us&country=de", "country"),
        ("country=de&countryCode=de", "countryCode"),
    ],
)
def test_bad_terms_are_400_naming_the_field(functions: Functions, query: str, field: str) -> None:
    answer = functions.call(f"/v1/x402/pool?{query}")
    assert answer.status == 400
    assert answer.body["message"].startswith(f"{field}: allowed is")


@pytest.mark.parametrize("path", ["/v1/x402/pool", "/v1/x402/proxy"])
def test_terms_in_a_body_are_not_dropped_in_silence(functions: Functions, path: str) -> None:
    answer = functions.call(path, "POST", {"country": "de", "traffic": "1"})
    assert (answer.status, answer.body["message"].startswith("body: allowed is")) == (400, True)


def test_who_pays_is_served_though_their_query_says_more_than_is_read(functions: Functions) -> None:
    assert functions.call(QUERY, "POST", {}).status == 402
    paid(functions)
    paying = {"payment-signature": HASH}
    assert functions.call(QUERY + "&source=bot", "POST", {"note": "x"}, paying).status == 200


@pytest.mark.parametrize("value", ["nonsense", "0x12", base64.b64encode(b"[]").decode(), "A" * 9000])
def test_a_malformed_payment_is_told_not_to_pay_again(functions: Functions, value: str) -> None:
    answer = claim(functions, value)
    assert answer.status == 400
    assert "do not pay again" in answer.body["message"]


def test_a_hash_of_the_other_network_is_not_mixed_up(functions: Functions) -> None:
    functions.call(QUERY)
    paid(functions, SOLANA_HASH, payer="wallet")
    answer = claim(functions, SOLANA_HASH)
    assert answer.body["payment"]["network"] == "solana"


def test_the_sale_is_closed_until_it_is_validated(functions: Functions) -> None:
    functions.dynamo.run(write_setting(f"{PREFIX}guard", "sale", {"ok": False}, 0))
    assert functions.call(QUERY).status == 503
    assert functions.call(TOPUP, "POST", {"addTrafficGB": 1}, {"x-session-token": "x402s_x"}).status == 503
    assert functions.call("/v1/x402/pool/pricing").status == 200
    assert functions.call("/v1/x402/proxy").status == 503


def test_the_sale_closes_when_its_validation_stands_still(functions: Functions) -> None:
    assert functions.call("/health").body["sale"] == {"open": True, "faults": []}
    functions.validated_at(now_ms() - VALIDATED_MAX_MS - 1)
    answer = functions.call(QUERY)
    assert (answer.status, answer.body["code"]) == (503, "SALE_NOT_VALIDATED")
    assert functions.call("/health").body["sale"] == {"open": False, "faults": [STALE]}


def test_validation_names_what_is_missing_and_keeps_the_sale_closed(functions: Functions) -> None:
    report = validate_sale(functions.sale_wiring)
    assert report["ok"] is False
    assert [f for f in report["faults"] if f.startswith(("evm:", "solana:"))] == [
        "evm: chain_node_unreachable",
        "solana: chain_node_unreachable",
    ]


def test_prices_may_be_asked_for_ten_times_a_minute_and_payments_shown_more_often(
    functions: Functions,
) -> None:
    answers = [functions.call(QUERY, source="2001:db8::1") for _ in range(10)]
    assert {a.status for a in answers} == {402}
    refused = functions.call(QUERY, source="2001:db8::2")
    assert refused.status == 429
    assert 0 < int(refused.headers["retry-after"]) <= 66
    assert "do not pay again" in refused.body["message"]
    assert functions.call(QUERY, source="2001:db8:0:1::1").status == 402
    paid(functions)
    assert claim(functions, source="2001:db8::1").status == 200


def test_a_buyers_name_for_a_payment_stands_for_that_payment_alone(functions: Functions) -> None:
    functions.call(QUERY)
    paid(functions)
    other = "0x" + "cd" * 32
    paid(functions, other)
    named = {"idempotency-key": "order-0001"}
    first = functions.call(QUERY, headers={"payment-signature": HASH, **named})
    assert first.status == 200
    again = functions.call(QUERY, headers={"payment-signature": HASH, **named})
    assert again.body["proxy"] == first.body["proxy"]
    for query, tx_hash in ((QUERY, other), (QUERY + "&sid=x", HASH)):
        refused = functions.call(query, headers={"payment-signature": tx_hash, **named})
        assert refused.status == 409
    assert functions.call(QUERY, headers={"payment-signature": other}).status == 200
    assert claim(functions, "0x" + "ef" * 32, proof="").status == 503


def test_a_name_is_kept_while_money_may_have_moved_and_free_when_it_has_not(functions: Functions) -> None:
    functions.call(QUERY)
    first, second = "0x" + "c1" * 32, "0x" + "c2" * 32
    named = {"idempotency-key": "order-0002"}
    functions.chain.verdicts[first] = Unknown(UnknownReason.NOT_CONFIRMED)
    paid(functions, second)
    assert functions.call(QUERY, headers={"payment-signature": first, **named}).status == 503
    assert functions.call(QUERY, headers={"payment-signature": second, **named}).status == 409
    functions.chain.verdicts[first] = Invalid(InvalidReason.FAILED)
    assert functions.call(QUERY, headers={"payment-signature": first, **named}).status == 402
    assert functions.call(QUERY, headers={"payment-signature": second, **named}).status == 200


@pytest.mark.parametrize("name", ["short", "x" * 129, "with space"])
def test_a_name_that_cannot_be_one_is_400(functions: Functions, name: str) -> None:
    answer = functions.call(QUERY, headers={"payment-signature": HASH, "idempotency-key": name})
    assert answer.status == 400


# Managing


def token(body: dict[str, Any]) -> dict[str, str]:
    return {"x-session-token": body["sessionToken"]}


def pak_of(functions: Functions, body: dict[str, Any]) -> PakId:
    found = functions.sale_wiring.counter.session(body["sessionToken"])
    assert found is not None
    return found[1].pak_id


def test_a_top_up_is_quoted_paid_and_turns_the_key_on_again(functions: Functions) -> None:
    body = bought(functions)
    pak_id = pak_of(functions, body)
    functions.dynamo.run(
        access.change(
            f"{PREFIX}access", pak_id, {"enabled": False, "disabled_reason": DisabledReason.CAP.value}, 1
        )
    )
    quoted = functions.call(TOPUP, "POST", {"addTrafficGB": 0.25}, token(body))
    assert quoted.status == 402
    assert quoted.body["paymentRequirement"]["accepts"][0]["maxAmountRequired"] == "1000000"
    other = "0x" + "cd" * 32
    paid(functions, other, 1_000_000)
    headers = token(body) | {"payment-signature": other}
    first = functions.call(TOPUP, "POST", {"addTrafficGB": 0.25}, headers)
    assert first.status == 200, first.body
    assert (first.body["credit"]["allocatedBytes"], first.body["credit"]["enabled"]) == (350_000_000, True)
    again = functions.call(TOPUP, "POST", {"addTrafficGB": 0.25}, headers)
    assert again.body["credit"]["allocatedBytes"] == 350_000_000


def test_the_time_of_a_paid_top_up_is_added_once_though_its_first_answer_was_lost(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, other = bought(functions), "0x" + "cd" * 32
    more = {"addTrafficGB": 0.1, "addDurationSeconds": 86_400}
    assert functions.call(TOPUP, "POST", more, token(body)).status == 402
    paid(functions, other)
    headers = token(body) | {"payment-signature": other}

    def away(*_: object) -> Any:
        raise StoreUnavailable("update_item: away")

    with monkeypatch.context() as patched:
        patched.setattr(type(functions.sale_wiring.counter), "extend", away)
        assert functions.call(TOPUP, "POST", more, headers).status == 503
    for _ in range(2):
        credit = functions.call(TOPUP, "POST", more, headers).body["credit"]
        assert credit["allocatedBytes"] == 200_000_000
        assert credit["expiresAt"] == body["credit"]["expiresAt"] + 86_400_000


def test_a_payment_serves_one_product(functions: Functions) -> None:
    body = bought(functions)
    reused = functions.call(TOPUP, "POST", {"addTrafficGB": 0.1}, token(body) | {"payment-signature": HASH})
    assert reused.status == 409
    other = "0x" + "cd" * 32
    functions.call(TOPUP, "POST", {"addTrafficGB": 0.1}, token(body))
    paid(functions, other)
    assert (
        functions.call(
            TOPUP, "POST", {"addTrafficGB": 0.1}, token(body) | {"payment-signature": other}
        ).status
        == 200
    )
    assert claim(functions, other).status == 409


def test_more_time_is_free_and_bounded(functions: Functions) -> None:
    body = bought(functions)
    answer = functions.call(TOPUP, "POST", {"addDurationSeconds": 7_776_000}, token(body))
    assert answer.status == 200
    ninety_days_ms = 90 * 86_400_000
    assert abs(answer.body["credit"]["expiresAt"] - (time.time() * 1000 + ninety_days_ms)) < 60_000


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"addTrafficGB": "x"},
        {"addTrafficGB": 1e-9},
        {"addTrafficGB": [1]},
        {"addDurationSeconds": -1},
        {"addDurationSeconds": "1"},
    ],
)
def test_bad_top_ups_are_400(functions: Functions, body: Any) -> None:
    assert functions.call(TOPUP, "POST", body, token(bought(functions))).status == 400


def test_a_session_token_recovers_credentials_and_regenerates_the_secret(functions: Functions) -> None:
    body = bought(functions)
    same = functions.call("/v1/x402/manage/pool/connection", headers=token(body))
    assert same.body["proxy"] == body["proxy"]
    fresh = functions.call("/v1/x402/manage/pool/regenerate", "POST", {}, token(body))
    assert fresh.body["proxy"]["username"] == body["proxy"]["username"]
    assert fresh.body["proxy"]["password"] != body["proxy"]["password"]
    assert (
        functions.call("/v1/x402/manage/pool/connection", headers=token(body)).body["proxy"]
        == fresh.body["proxy"]
    )
    assert (
        functions.call("/v1/x402/manage/pool/credit", headers=token(body)).body["credit"]["remainingGB"]
        == 0.1
    )
    usage = functions.call("/v1/x402/manage/pool/usage", headers=token(body)).body
    assert (usage["usage"], usage["usedBytes"]) == ([], 0)


def test_top_ups_and_new_secrets_have_their_own_limits(functions: Functions) -> None:
    body = bought(functions)
    top_ups = [functions.call(TOPUP, "POST", {"addTrafficGB": 1}, token(body)).status for _ in range(6)]
    assert top_ups == [402] * 5 + [429]
    route = "/v1/x402/manage/pool/regenerate"
    assert [functions.call(route, "POST", {}, token(body)).status for _ in range(4)] == [200] * 3 + [429]


@pytest.mark.parametrize("days", ["0", "91", "x", "-1", "1e1"])
def test_usage_is_asked_for_by_days(functions: Functions, days: str) -> None:
    body = bought(functions)
    assert functions.call(f"/v1/x402/manage/pool/usage?days={days}", headers=token(body)).status == 400
    assert functions.call("/v1/x402/manage/pool/usage?days=7", headers=token(body)).status == 200


@pytest.mark.parametrize("value", ["", "x402s_wrong", "psx_wrong"])
def test_manage_routes_need_their_token(functions: Functions, value: str) -> None:
    assert functions.call("/v1/x402/manage/pool/credit", headers={"x-session-token": value}).status == 401


def test_sessions_are_public_without_anything_that_works_as_a_credential(functions: Functions) -> None:
    body = bought(functions)
    listed = functions.call(f"/v1/x402/sessions/wallet/{PAYER.upper().replace('0X', '0x')}")
    (session,) = listed.body["sessions"]
    status = functions.call(f"/v1/x402/sessions/{session['sessionId']}/status")
    assert status.body["txHash"] == HASH
    assert (session["status"], status.body["status"]) == ("active", "active")
    of_wallet = f"/v1/x402/sessions/wallet/{PAYER}?status="
    counts = [functions.call(of_wallet + s).body["count"] for s in ("active", "expired", "all")]
    assert counts == [1, 0, 1]
    assert functions.call(of_wallet + "zzz").status == 400
    text = json.dumps([listed.body, status.body])
    assert body["sessionToken"] not in text
    assert body["proxy"]["password"] not in text
    assert functions.call("/v1/x402/sessions/none/status").status == 404


def test_a_wallets_sessions_are_read_page_by_page(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "WALLET_SESSIONS_MAX", 2)
    table, kept = PREFIX + "sales", [f"{n:024x}" for n in range(5)]
    for name in kept:
        session = Session(name, PakId("p"), "u", "", "base", "k", HASH, 1, PAYER, 0, 0)
        assert functions.dynamo.run(transact(session_items(table, session, name))) is None
    found, path = list[str](), f"/v1/x402/sessions/wallet/{PAYER}"
    page = functions.call(path).body
    while True:
        assert page["count"] <= 2
        found += [session["sessionId"] for session in page["sessions"]]
        if page["nextCursor"] is None:
            break
        page = functions.call(f"{path}?cursor={page['nextCursor']}").body
    assert found == kept
    assert functions.call(f"{path}?cursor=x").status == 400


@pytest.mark.parametrize("path", ["x402/sessions/wallet/{}", "x402/sessions/{}/status", "peer/devices/{}"])
def test_a_path_that_no_key_of_a_store_could_hold_is_refused(functions: Functions, path: str) -> None:
    assert functions.call("/v1/" + path.format("a" * 900)).status in {200, 404}
    refused = functions.call("/v1/" + path.format("a" * 3000))
    assert (refused.status, refused.body["code"]) == (404, "NOT_FOUND")


def test_prices_and_countries_are_public(functions: Functions) -> None:
    sheet = functions.call("/v1/x402/pool/pricing").body
    assert (sheet["product"], sheet["defaultTier"], sheet["durationFree"], sheet["bytesPerGB"]) == (
        "pool",
        "mbl",
        True,
        10**9,
    )
    assert sheet["tiers"][0]["pricePerGB"] == 4
    assert sheet["tiers"][0]["minPurchaseGB"] == 0.1
    proxy = functions.call("/v1/x402/pricing").body["proxy"]
    assert [(t["tier"], t["pricePerGB"]) for t in proxy["tiers"]] == [("private", 8), ("shared", 4)]
    assert functions.call("/v1/x402/countries").body == {"countries": {"US": 1}}
    assert functions.call("/v1/x402/nothing").status == 404


def test_loading_the_sale_loads_no_chain_sdk() -> None:
    sdks = ("web3", "solana", "solders", "eth_account")
    code = f"import sys, functions.x402.handler; print([m for m in {sdks} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
