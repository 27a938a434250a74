"""What a 402 told its reader holds for as long as it said, whatever admins change meanwhile, and for nobody else."""

import time
from typing import Any

import pytest
from eth_account import Account

from local.bootstrap import PRICES, RESELLER
from local.evm import sign_authorization
from shared.access.prepaid import get_prepaid
from shared.chain.model import Network, Valid
from shared.guard.model import Versions
from shared.guard.settings import PROMISE_S
from shared.guard.table import read_versions, replace_setting, write_setting
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import transact
from shared.sale.model import Statement
from tests.integration.test_ports import list_modems
from tests.support.chain import header
from tests.support.functions import PREFIX, RECIPIENT, SOLANA_RECIPIENT, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("open_sale")]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
HASH = "0x" + "ab" * 32
PAYER = "0x" + "cc" * 20
ELSEWHERE = "127.20.0.77"


def priced(**change: Any) -> dict[str, Any]:
    """The catalogue with other terms of pool access."""
    whole = {k: change.pop(k) for k in ("tolerance_bp",) if k in change}
    return {**PRICES, **whole, "tiers": {"mbl": {**PRICES["tiers"]["mbl"], **change}}}


def change(functions: Functions, value: Any, name: str = "prices") -> Reply:
    headers = {"x-api-key": functions.keys.admin}
    reply = functions.call(f"/v1/admin/settings/{name}", "PUT", value, headers)
    forget(functions)
    return reply


def forget(functions: Functions) -> None:
    """What a container forgets within five seconds."""
    object.__setattr__(functions.sale_wiring.live, "_kept", {})


def pay(functions: Functions, micro: int, *, tagged: bool = False) -> None:
    functions.chain.verdicts[HASH] = Valid(PAYER, micro, int(time.time()), tagged=tagged, has_tag=tagged)


def claim(functions: Functions, query: str = QUERY, source: str = "127.20.0.1", **headers: str) -> Reply:
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return functions.call(query, headers={"payment-signature": HASH, **shown}, source=source)


def test_a_price_that_rose_is_not_due_by_who_was_quoted_the_old_one(functions: Functions) -> None:
    assert functions.call(QUERY).body["amountUSDC"] == "0.4"
    assert change(functions, priced(price_micro_per_gb=5_000_000)).status == 200
    pay(functions, 400_000)
    bought = claim(functions)
    assert (bought.status, bought.body["credit"]["allocatedBytes"]) == (200, 10**8)
    assert functions.call(QUERY, source=ELSEWHERE).body["amountUSDC"] == "0.5"


def test_what_exceeds_a_frozen_price_is_credited_at_that_price(functions: Functions) -> None:
    functions.call(QUERY)
    change(functions, priced(price_micro_per_gb=5_000_000))
    pay(functions, 404_000)
    assert claim(functions).body["credit"]["allocatedBytes"] == 101_000_000


def test_a_price_that_fell_gives_what_was_quoted_and_no_free_traffic(functions: Functions) -> None:
    functions.call(QUERY)
    change(functions, priced(price_micro_per_gb=2_000_000))
    functions.call(QUERY)
    pay(functions, 400_000)
    assert claim(functions).body["credit"]["allocatedBytes"] == 10**8


def test_old_terms_are_nobody_elses(functions: Functions) -> None:
    functions.call(QUERY)
    change(functions, priced(price_micro_per_gb=5_000_000))
    functions.call(QUERY, source=ELSEWHERE)
    pay(functions, 400_000)
    refused = claim(functions, source=ELSEWHERE)
    assert (refused.status, refused.body["error"].split(":")[0]) == (402, "PAYMENT_TOO_SMALL")


def test_the_secret_of_a_quote_carries_its_terms_to_another_address(functions: Functions) -> None:
    extra = functions.call(QUERY).body["paymentRequirement"]["extra"]
    change(functions, priced(price_micro_per_gb=5_000_000))
    pay(functions, 400_000, tagged=True)
    bought = claim(functions, source=ELSEWHERE, x_quote_secret=extra["quoteSecret"])
    assert (bought.status, bought.body["credit"]["allocatedBytes"]) == (200, 10**8)


def signs(functions: Functions, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """The payer signs this line of a text; what was tried against it."""
    tried = list[str]()

    def proves(statement: Statement, *_: object) -> bool:
        tried.append(f"quote: {statement.quote}")
        return tried[-1] == text

    monkeypatch.setattr(functions.chain, "proves", proves)
    return tried


def told_line(reply: Reply) -> str:
    """The line of a 402's text to sign that names the terms."""
    text = str(reply.body["paymentRequirement"]["extra"]["textToSign"])
    return next(line for line in text.splitlines() if line.startswith("quote: "))


@pytest.mark.parametrize("source", ["127.20.0.1", ELSEWHERE])
def test_who_signs_the_text_of_a_402_gets_its_terms_wherever_they_are(
    functions: Functions, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    line = told_line(functions.call(QUERY))
    change(functions, priced(price_micro_per_gb=5_000_000))
    tried = signs(functions, monkeypatch, line)
    pay(functions, 400_000)
    bought = claim(functions, source=source, x_payment_proof="signed")
    assert (bought.status, bought.body["credit"]["allocatedBytes"]) == (200, 10**8)
    assert len(tried) == 2
    again = claim(functions, source="127.20.0.78", x_payment_proof="signed")
    assert again.body["proxy"] == bought.body["proxy"]


def test_who_signs_a_size_that_went_off_sale_gets_it_wherever_they_are(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = told_line(functions.call(QUERY))
    change(functions, priced(min_bytes=10**9))
    signs(functions, monkeypatch, line)
    pay(functions, 400_000)
    assert claim(functions, source=ELSEWHERE).status == 403
    assert claim(functions, source=ELSEWHERE, x_payment_proof="signed").status == 200


@pytest.mark.parametrize(
    "line", ["quote: pool for 400000 micro-USDC", "quote: pool for 400000 micro-USDC, 00"]
)
def test_nobody_signs_terms_of_their_own_making(
    functions: Functions, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    functions.call(QUERY)
    change(functions, priced(price_micro_per_gb=5_000_000))
    functions.call(QUERY, source=ELSEWHERE)
    signs(functions, monkeypatch, line)
    pay(functions, 400_000)
    refused = claim(functions, source=ELSEWHERE, x_payment_proof="signed")
    assert (refused.status, refused.body["error"].split(":")[0]) == (402, "PAYMENT_TOO_SMALL")


def test_the_tolerance_of_a_quote_holds_too(functions: Functions) -> None:
    functions.call(QUERY)
    change(functions, priced(tolerance_bp=0))
    pay(functions, 392_000)
    functions.call(QUERY, source=ELSEWHERE)
    assert claim(functions, source=ELSEWHERE).status == 402
    assert claim(functions).status == 200


def test_what_went_off_sale_is_sold_to_who_was_quoted_it(functions: Functions) -> None:
    functions.call(QUERY)
    change(functions, priced(min_bytes=10**9))
    pay(functions, 400_000)
    assert functions.call(QUERY).status == 400
    stranger = claim(functions, source=ELSEWHERE)
    assert (stranger.status, stranger.body["code"]) == (403, "PAYMENT_NOT_PROVEN_YOURS")
    assert claim(functions).status == 200
    assert claim(functions).body["credit"]["allocatedBytes"] == 10**8


def test_a_port_that_went_off_sale_is_sold_to_who_was_quoted_it(functions: Functions) -> None:
    query = "/v1/x402/proxy?traffic=0.1&country=us&tier=private"
    list_modems(functions, "m1")
    assert functions.call(query).status == 402
    assert change(functions, {k: v for k, v in PRICES.items() if k != "ports"}).status == 200
    assert functions.call(query).status == 503
    pay(functions, 800_000)
    assert claim(functions, query, ELSEWHERE).body["code"] == "PAYMENT_NOT_PROVEN_YOURS"
    bought = claim(functions, query)
    assert (bought.status, bought.body["credit"]["allocatedBytes"]) == (200, 10**8)


RESIDENTIAL = {
    "price_micro_per_gb": 2_000_000,
    "min_bytes": 10**8,
    "max_bytes": 10**12,
    "quality": "standard",
    "ip_type": "residential",
}
WITH_PEERS = {**PRICES, "tiers": {**PRICES["tiers"], "res": RESIDENTIAL}}
OF_PEERS = QUERY + "&tier=res"


def turn(functions: Functions, *, on: bool) -> None:
    """What the test of the peer tiers says of them."""
    flag = {"on": on, "tested": ["residential"]}
    functions.dynamo.run(write_setting(f"{PREFIX}guard", "peer_tiers", flag, now_ms()))
    forget(functions)


def waiting(functions: Functions) -> list[str]:
    """Payments that are owed."""
    headers = {"x-api-key": functions.keys.admin}
    return [row["key"] for row in functions.call("/v1/x402/admin/owed", headers=headers).body["owed"]]


def test_who_paid_for_a_tier_of_peers_that_was_turned_off_since_is_owed_it(functions: Functions) -> None:
    change(functions, WITH_PEERS)
    turn(functions, on=True)
    assert functions.call(OF_PEERS).status == 402
    turn(functions, on=False)
    signed = functions.call(
        OF_PEERS, headers=header(sign_authorization(Account.create(), RECIPIENT, 200_000))
    )
    assert (signed.status, "nothing was charged" in signed.body["message"], waiting(functions)) == (
        503,
        True,
        [],
    )
    pay(functions, 200_000)
    told = claim(functions, OF_PEERS)
    assert (told.status, "do not pay again" in told.body["message"]) == (503, True)
    assert (functions.call(OF_PEERS).status, waiting(functions)) == (400, [HASH])
    turn(functions, on=True)
    assert (claim(functions, OF_PEERS).status, waiting(functions)) == (200, [])


def test_a_tier_of_peers_that_left_the_prices_is_sold_to_who_was_quoted_it(functions: Functions) -> None:
    change(functions, WITH_PEERS)
    turn(functions, on=True)
    functions.call(OF_PEERS)
    assert change(functions, PRICES).status == 200
    pay(functions, 200_000)
    assert claim(functions, OF_PEERS, ELSEWHERE).body["code"] == "PAYMENT_NOT_PROVEN_YOURS"
    bought = claim(functions, OF_PEERS)
    assert (bought.status, bought.body["proxy"]["allowed"]["ipTypes"]) == (200, ["residential"])
    token = {"x-session-token": bought.body["sessionToken"]}
    path, more = "/v1/x402/manage/pool/topup", {"addTrafficGB": 0.1}
    unpaid = functions.call(path, "POST", more, token)
    assert (unpaid.status, "do not pay now" in unpaid.body["message"]) == (503, True)


def test_a_top_up_of_peers_that_left_the_prices_is_sold_to_who_was_quoted_it(functions: Functions) -> None:
    change(functions, WITH_PEERS)
    turn(functions, on=True)
    functions.call(OF_PEERS)
    pay(functions, 200_000)
    token = {"x-session-token": claim(functions, OF_PEERS).body["sessionToken"]}
    path, more, other = "/v1/x402/manage/pool/topup", {"addTrafficGB": 0.1}, "0x" + "cd" * 32
    assert functions.call(path, "POST", more, token).body["amountUSDC"] == "0.2"
    change(functions, PRICES)
    functions.chain.verdicts[other] = Valid(PAYER, 200_000, int(time.time()))
    topped = functions.call(path, "POST", more, {**token, "payment-signature": other})
    assert (topped.status, topped.body["credit"]["allocatedBytes"]) == (200, 2 * 10**8)


def test_too_little_for_what_went_off_sale_is_kept_for_a_human_and_asks_for_no_payment(
    functions: Functions,
) -> None:
    functions.call(QUERY)
    change(functions, priced(min_bytes=10**9))
    pay(functions, 300_000)
    refused = claim(functions)
    assert (refused.status, refused.body["code"]) == (409, "PAYMENT_TOO_SMALL")
    listed = functions.call("/v1/x402/admin/refunds", headers={"x-api-key": functions.keys.admin}).body
    assert [row["amountUSDC"] for row in listed["refunds"]] == ["0.3"]


def test_terms_end_when_their_time_is_over(functions: Functions) -> None:
    functions.call(QUERY)
    known = functions.dynamo.run(read_versions(f"{PREFIX}guard", "prices"))
    dearer, now = priced(price_micro_per_gb=5_000_000), now_ms()
    over = replace_setting(f"{PREFIX}guard", "prices", dearer, now - 2, known, now - 1)
    assert functions.dynamo.run(transact([over])) is None
    forget(functions)
    pay(functions, 400_000)
    assert claim(functions).body["code"] == "PAYMENT_NOT_PROVEN_YOURS"
    functions.call(QUERY)
    assert claim(functions).body["error"].startswith("PAYMENT_TOO_SMALL")


def test_a_name_stands_for_the_same_payment_after_a_change_of_prices(functions: Functions) -> None:
    functions.call(QUERY)
    named = {"idempotency_key": "payment-0001"}
    assert claim(functions, **named).status == 503  # nobody has seen it yet
    change(functions, priced(price_micro_per_gb=5_000_000))
    pay(functions, 400_000)
    assert claim(functions, **named).status == 200


def test_a_balance_is_credited_at_the_discount_that_was_quoted(functions: Functions) -> None:
    path, key = "/v1/x402/balance?traffic=10", {"x-api-key": functions.keys.reseller}
    assert functions.call(path, "POST", {}, key).body["amountUSDC"] == "36"
    assert change(functions, {"steps": [[0, 5_000_000]]}, "wholesale").status == 200
    pay(functions, 36_000_000)
    assert functions.call(path, "POST", {}, {**key, "payment-signature": HASH}).status == 200
    found = functions.dynamo.run(get_prepaid(f"{PREFIX}access", RESELLER))
    assert found is not None
    assert found.available_bytes == 10 * 10**9


def test_money_that_is_on_its_way_to_the_address_before_still_counts(functions: Functions) -> None:
    guard, other, now = f"{PREFIX}guard", "0x" + "22" * 20, now_ms()
    before = Versions({"base": [RECIPIENT], "solana": [SOLANA_RECIPIENT]}, 1)
    first = replace_setting(guard, "recipients", before.value, 1, None, 0)
    assert functions.dynamo.run(transact([first])) is None
    moved = {"base": [other], "solana": [SOLANA_RECIPIENT]}
    changed = replace_setting(guard, "recipients", moved, now, before, now + PROMISE_S * 1000)
    assert functions.dynamo.run(transact([changed])) is None
    forget(functions)
    recipients = functions.sale_wiring.chains._recipients(Network.BASE)
    assert tuple(recipients) == (other, RECIPIENT)
    assert functions.sale_wiring.rails[0].recipient == other


def test_prices_change_only_as_often_as_promises_can_be_kept(functions: Functions) -> None:
    answers = [change(functions, priced(price_micro_per_gb=n)).status for n in range(1, 11)]
    assert answers == [200] * 8 + [429] * 2
