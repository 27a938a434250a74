"""What admins do with the sale and what resellers buy from it: refunds, recipients, prepaid balances; repeats of writes."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from functions.x402.balance import wholesale
from functions.x402.validate import validate_sale
from local.bootstrap import ADMIN, PRICES, RESELLER
from shared.access.model import ApiKey, Scope
from shared.access.people import Person, hash_password, person_item
from shared.access.prepaid import get_prepaid
from shared.access.secrets import new_api_key, token_hash
from shared.access.table import put_api_key
from shared.chain.model import Valid
from shared.guard.table import entries
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import transact
from shared.sale import owed_table
from shared.sale.model import Prices
from shared.sale.owed_table import Owed
from shared.sale.service import balance_order
from tests.support.functions import PREFIX, RECIPIENT, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("open_sale")]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
BALANCE = "/v1/x402/balance?traffic=10"
HASH = "0x" + "ab" * 32
OTHER = "0x" + "cd" * 32
PAYER = "0x" + "cc" * 20
REFUNDS = "/v1/x402/admin/refunds"
SOLANA = "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"


def paid(functions: Functions, tx_hash: str, micro: int) -> None:
    functions.chain.verdicts[tx_hash] = Valid(PAYER, micro, int(time.time()))


def admin(functions: Functions, target: str, method: str = "GET", body: Any = None) -> Reply:
    return functions.call(target, method, body, {"x-api-key": functions.keys.admin})


def prices(functions: Functions) -> Prices:
    found = wholesale(functions.sale_wiring, 10 * 10**9, {})
    assert found is not None
    return found


# Refunds


def test_refunds_are_listed_and_decided_once_and_both_are_on_record(functions: Functions) -> None:
    functions.call(QUERY)
    paid(functions, HASH, 300_000)
    assert functions.call(QUERY, headers={"payment-signature": HASH}).status == 402
    (listed,) = admin(functions, REFUNDS).body["refunds"]
    assert (listed["payer"], listed["amountUSDC"], listed["state"]) == (PAYER, "0.3", "open")
    decision = {"state": "refunded", "reference": "0xfeed"}
    done = admin(functions, f"{REFUNDS}/base/{HASH}", "POST", decision)
    assert (done.status, done.body["state"]) == (200, "refunded")
    assert admin(functions, f"{REFUNDS}/base/{HASH}", "POST", decision).status == 409
    states = [admin(functions, f"{REFUNDS}?state={s}").body["refunds"] for s in ("open", "refunded")]
    assert list(map(len, states)) == [0, 1]
    paid(functions, HASH, 400_000)
    again = functions.call(QUERY, headers={"payment-signature": HASH})
    assert (again.status, "given back" in again.body["message"]) == (409, True)
    page = functions.dynamo.run(entries(f"{PREFIX}audit", f"acct#{ADMIN}", 10))
    assert {"refund_list", "refund_refunded"} <= {e.event.action for e in page.rows}


def test_the_lists_are_paged_and_for_admins_alone(functions: Functions) -> None:
    for number in range(3):
        order = balance_order(RESELLER, 10**9, prices(functions))
        name = "0x" + f"{number:064x}"
        functions.dynamo.run(
            owed_table.owe(f"{PREFIX}sales", Owed("base", name, name, "secret-requester", order, now_ms()))
        )
    first = admin(functions, "/v1/x402/admin/owed?limit=2")
    assert len(first.body["owed"]) == 2
    rest = admin(functions, "/v1/x402/admin/owed?limit=2&after=" + first.body["next"].replace("#", "%23"))
    assert (len(rest.body["owed"]), rest.body["next"]) == (1, None)
    assert "secret-requester" not in json.dumps(first.body)
    for target in (REFUNDS, "/v1/x402/admin/owed"):
        assert functions.call(target).status == 401
        assert functions.call(target, headers={"x-api-key": functions.keys.reseller}).status == 403
    assert admin(functions, "/v1/x402/admin/owed?limit=101").status == 400


# Settings


def setting(functions: Functions, name: str, value: Any) -> Reply:
    reply = admin(functions, f"/v1/admin/settings/{name}", "PUT", value)
    object.__setattr__(functions.sale_wiring.live, "_kept", {})
    return reply


def people(functions: Functions, *names: str, created_at_ms: int = 0) -> list[dict[str, str]]:
    """Signed-in persons of the admin's account."""
    found = []
    for name in names:
        email = f"{name}@example.org"
        person = Person(email, ADMIN, hash_password("correct horse battery"), 0, created_at_ms)
        functions.dynamo.run(transact([person_item(f"{PREFIX}access", person)]))
        body = {"email": email, "password": "correct horse battery"}
        token = functions.call("/v1/auth/sign-in", "POST", body).body["token"]
        found.append({"authorization": f"Bearer {token}"})
    return found


def proposed(functions: Functions, value: Any, by: dict[str, str]) -> Reply:
    return functions.call("/v1/admin/settings/recipients", "PUT", value, by)


def recipients_set(functions: Functions, value: Any) -> None:
    """As two persons do it."""
    one, other = people(functions, "one", "other")
    asked = proposed(functions, value, one)
    assert asked.status == 202, asked.body
    path = f"/v1/admin/proposals/{asked.body['proposalId']}/approve"
    assert functions.call(path, "POST", {}, other).status == 200
    object.__setattr__(functions.sale_wiring.live, "_kept", {})


MOVED = {"base": ["0x" + "22" * 20, RECIPIENT], "solana": [SOLANA]}


def test_another_recipient_takes_two_persons_and_no_api_key(functions: Functions) -> None:
    one, other = people(functions, "one", "other")
    assert setting(functions, "recipients", MOVED).body["code"] == "HUMANS_ONLY"
    asked = proposed(functions, MOVED, one)
    assert (asked.status, asked.body["state"]) == (202, "proposed")
    path = f"/v1/admin/proposals/{asked.body['proposalId']}"
    assert admin(functions, "/v1/admin/settings/recipients").body["value"] is None
    assert functions.call(f"{path}/approve", "POST", {}, one).body["code"] == "SECOND_PERSON_NEEDED"
    assert admin(functions, f"{path}/approve", "POST", {}).body["code"] == "HUMANS_ONLY"
    assert functions.call(f"{path}/approve", "POST", {}, other).body["state"] == "approved"
    assert admin(functions, "/v1/admin/settings/recipients").body["value"] == MOVED
    assert functions.call(f"{path}/approve", "POST", {}, other).status == 200
    assert functions.call(f"{path}/reject", "POST", {}, other).body["code"] == "DECIDED_ALREADY"
    page = functions.dynamo.run(entries(f"{PREFIX}audit", f"acct#{ADMIN}", 10))
    told = [(e.event.action, e.event.actor) for e in page.rows if "setting" in e.event.action]
    assert told == [("setting_change", "other@example.org"), ("setting_propose", "one@example.org")]


def test_a_rejected_recipient_changes_nothing(functions: Functions) -> None:
    one, other = people(functions, "one", "other")
    path = f"/v1/admin/proposals/{proposed(functions, MOVED, one).body['proposalId']}"
    assert functions.call(f"{path}/reject", "POST", {}, other).body["state"] == "rejected"
    assert functions.call(f"{path}/approve", "POST", {}, other).status == 409
    assert admin(functions, "/v1/admin/settings/recipients").body["value"] is None


def test_a_person_that_an_api_key_made_a_moment_ago_decides_nothing(functions: Functions) -> None:
    (old,) = people(functions, "old")
    (new,) = people(functions, "new", created_at_ms=now_ms())
    assert proposed(functions, MOVED, new).body["code"] == "TOO_NEW"
    path = f"/v1/admin/proposals/{proposed(functions, MOVED, old).body['proposalId']}/approve"
    assert functions.call(path, "POST", {}, new).body["code"] == "TOO_NEW"
    assert functions.call("/v1/admin/proposals/nothing", headers=old).status == 404


def test_another_recipient_closes_the_sale_until_it_is_validated(functions: Functions) -> None:
    other = MOVED["base"][0]
    recipients_set(functions, MOVED)
    assert functions.call(QUERY).status == 503
    functions.open()
    object.__setattr__(functions.sale_wiring.live, "_kept", {})
    assert functions.call(QUERY).body["paymentRequirement"]["accepts"][0]["payTo"] == other


@pytest.mark.parametrize(
    "value",
    [
        {"base": [], "solana": [SOLANA]},
        {"base": ["0x12"], "solana": [SOLANA]},
        {"base": [SOLANA], "solana": [SOLANA]},
        {"base": [RECIPIENT]},
        {"base": [RECIPIENT], "solana": ["0OIl"]},
        {"base": [RECIPIENT], "solana": [SOLANA], "tron": []},
        {"base": [RECIPIENT] * 9, "solana": [SOLANA]},
    ],
)
def test_a_recipient_that_cannot_be_one_is_refused(functions: Functions, value: Any) -> None:
    assert setting(functions, "recipients", value).status == 400


def test_a_recipient_with_a_wrong_checksum_is_named_by_the_validation(
    functions: Functions, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "0x52908400098527886E0F7030069857D2E4169Ee7"
    recipients_set(functions, {"base": [wrong], "solana": [SOLANA]})
    faults = validate_sale(functions.sale_wiring)["faults"]
    assert "evm: a recipient is not an address, or its checksum is wrong" in faults
    assert "sale closed" in caplog.messages  # an alarm counts this line: infra/functions/watch.yml
    assert functions.call("/health").body["sale"] == {"open": False, "faults": faults}


def test_prices_are_read_live(functions: Functions) -> None:
    tiers = {"mbl": {**PRICES["tiers"]["mbl"], "price_micro_per_gb": 5_000_000}}
    assert setting(functions, "prices", {**PRICES, "tiers": tiers}).status == 200
    assert functions.call(QUERY).body["amountUSDC"] == "0.5"
    assert admin(functions, "/v1/admin/settings/prices").body["value"]["tiers"]["mbl"]["min_bytes"] == 10**8


# Repeats of writes


def session_of(functions: Functions) -> dict[str, str]:
    functions.call(QUERY)
    paid(functions, OTHER, 400_000)
    token = functions.call(QUERY, headers={"payment-signature": OTHER}).body["sessionToken"]
    return {"x-session-token": token}


def test_a_repeated_regenerate_answers_with_the_first_secret(functions: Functions) -> None:
    named = {**session_of(functions), "idempotency-key": "again-0001"}
    regenerate = "/v1/x402/manage/pool/regenerate"
    first, again = (functions.call(regenerate, "POST", {}, named) for _ in range(2))
    assert (first.status, again.status) == (200, 200)
    assert again.body["proxy"]["password"] == first.body["proxy"]["password"]
    assert again.headers["idempotency-replayed"] == "true"
    fresh = functions.call(regenerate, "POST", {}, {**named, "idempotency-key": "again-0002"})
    assert fresh.body["proxy"]["password"] != first.body["proxy"]["password"]


def test_more_time_is_given_once_per_idempotency_key_and_another_body_is_422(functions: Functions) -> None:
    named = {**session_of(functions), "idempotency-key": "again-0003"}
    top_up = "/v1/x402/manage/pool/topup"
    first, again = (functions.call(top_up, "POST", {"addDurationSeconds": 60}, named) for _ in range(2))
    assert first.body["credit"]["expiresAt"] == again.body["credit"]["expiresAt"]
    assert functions.call(top_up, "POST", {"addDurationSeconds": 61}, named).status == 422


def test_a_402_is_never_kept(functions: Functions) -> None:
    named = {**session_of(functions), "idempotency-key": "again-0004"}
    top_up, body = "/v1/x402/manage/pool/topup", {"addTrafficGB": 0.1}
    assert functions.call(top_up, "POST", body, named).status == 402
    paid(functions, HASH, 400_000)
    done = functions.call(top_up, "POST", body, {**named, "payment-signature": HASH})
    assert (done.status, done.body["credit"]["allocatedBytes"]) == (200, 2 * 10**8)
    again = functions.call(top_up, "POST", body, {**named, "payment-signature": HASH})
    assert again.body["credit"]["allocatedBytes"] == 2 * 10**8


# Sessions


def test_sessions_by_wallet_and_by_id_hold_nothing_that_works_as_a_credential(functions: Functions) -> None:
    functions.call(QUERY)
    paid(functions, HASH, 400_000)
    bought = functions.call(QUERY, headers={"payment-signature": HASH}).body
    listed = functions.call(f"/v1/x402/sessions/wallet/{PAYER}").body
    ident = listed["sessions"][0]["sessionId"]
    shown = json.dumps([listed, functions.call(f"/v1/x402/sessions/{ident}/status").body])
    proxy = bought["proxy"]
    for secret in (proxy["password"], bought["sessionToken"], proxy["username"], "sealed", "pak"):
        assert secret not in shown


# Prepaid balances


def buy_balance(functions: Functions, tx_hash: str = "", key: str = "", source: str = "127.20.0.1") -> Reply:
    headers = {"x-api-key": key or functions.keys.reseller}
    if tx_hash:
        headers["payment-signature"] = tx_hash
    return functions.call(BALANCE, "POST", {}, headers, source)


def test_a_reseller_buys_a_balance_once_at_the_price_of_its_size(functions: Functions) -> None:
    quoted = buy_balance(functions)
    assert quoted.status == 402
    (base, _) = quoted.body["paymentRequirement"]["accepts"]
    assert (base["maxAmountRequired"], base["resource"]) == (
        "36000000",
        "https://api.example/v1/x402/balance",
    )
    paid(functions, HASH, 36_000_000)
    bought = buy_balance(functions, HASH, source="127.20.0.44")
    assert bought.status == 200, bought.body
    assert (bought.body["creditedGB"], bought.body["balance"]["availableGB"]) == (10, 10)
    again = buy_balance(functions, HASH)
    assert (again.status, again.body["repeated"], again.body["balance"]["availableGB"]) == (200, True, 10)
    found = functions.dynamo.run(get_prepaid(f"{PREFIX}access", RESELLER))
    assert found is not None
    assert (found.credited_bytes, found.available_bytes) == (10 * 10**9, 10 * 10**9)
    shown = functions.call("/v1/reseller/balance", headers={"x-api-key": functions.keys.reseller})
    assert shown.body["availableGB"] == 10


def test_a_payment_for_a_balance_buys_nothing_else_and_for_nobody_else(functions: Functions) -> None:
    buy_balance(functions)
    functions.call("/v1/x402/pool?traffic=9")
    paid(functions, HASH, 36_000_000)
    other = new_api_key()
    account = "psx_other1"
    admin(functions, "/v1/admin/accounts", "POST", {"accountId": account, "kind": "reseller"})
    functions.dynamo.run(
        put_api_key(
            f"{PREFIX}access",
            ApiKey(token_hash(other), account, frozenset({Scope.RESELL}), 0),  # type: ignore[arg-type]
        )
    )
    assert buy_balance(functions, HASH, other).status == 403
    assert buy_balance(functions, HASH).status == 200
    stolen = buy_balance(functions, HASH, other)
    assert (stolen.status, stolen.body["code"]) == (409, "PAYMENT_USED_FOR_ANOTHER_PURCHASE")
    pool = functions.call("/v1/x402/pool?traffic=9", headers={"payment-signature": HASH})
    assert pool.status in {403, 409}
    assert functions.call(BALANCE, "POST", {}).status == 401
    assert buy_balance(functions, key=functions.keys.supplier).status == 403


@pytest.mark.parametrize("traffic", ["", "abc", "0", "-1", "100001", "1e3"])
def test_a_size_that_is_no_size_is_400(functions: Functions, traffic: str) -> None:
    reply = functions.call(
        f"/v1/x402/balance?traffic={traffic}", "POST", {}, {"x-api-key": functions.keys.reseller}
    )
    assert (reply.status, reply.body["message"].split(":")[0]) == (400, "traffic")


def test_a_balance_that_a_crash_left_unpaid_out_is_credited_by_the_job(functions: Functions) -> None:
    from functions.x402.serve_owed import serve_owed

    order = balance_order(RESELLER, 10 * 10**9, prices(functions))
    owed = Owed("base", HASH, HASH, "r", order, now_ms() - 70_000)
    functions.dynamo.run(owed_table.owe(f"{PREFIX}sales", owed))
    paid(functions, HASH, 36_000_000)
    assert serve_owed(functions.sale_wiring)["served"] == 1
    found = functions.dynamo.run(get_prepaid(f"{PREFIX}access", RESELLER))
    assert found is not None
    assert found.available_bytes == 10 * 10**9
    functions.dynamo.run(owed_table.owe(f"{PREFIX}sales", replace(owed, key=HASH)))
    serve_owed(functions.sale_wiring)
    again = functions.dynamo.run(get_prepaid(f"{PREFIX}access", RESELLER))
    assert again == found


def test_the_price_sheet_tells_the_volume_discount(functions: Functions) -> None:
    steps = functions.call("/v1/x402/pricing").body["balance"]["steps"]
    assert (steps[0], steps[-1]) == ({"fromGB": 0, "pricePerGB": 4}, {"fromGB": 250, "pricePerGB": 2.4})
