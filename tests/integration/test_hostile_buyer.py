"""What a hostile buyer tries against the sale; each of these once worked, or cost an honest payer its money."""

import time
from dataclasses import replace
from typing import Any

import pytest

from local.api_gateway import http_event
from local.evm import USDC
from local.goods import MODEM
from local.http_server import HttpRequest
from shared.chain.model import (
    Authorization,
    Invalid,
    InvalidReason,
    ReadFailed,
    Several,
    UnknownReason,
    Valid,
)
from shared.kernel.codes import Pool
from shared.pool.live import unlist_endpoint
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import transact
from shared.runtime.redis import command
from shared.sale import exact_table, owed_table
from shared.sale.exact_table import Stage, Transfer
from shared.sale.model import Claim, Order, Payment, Statement, Terms
from shared.sale.owed_table import Owed, Refund
from shared.sale.rules import QUOTE_TTL_S, read_port_terms, read_prices, read_terms
from shared.sale.service import pool_order, port_order
from shared.sale.verifying import REFUND_MIN_MICRO
from tests.support.chain import header
from tests.support.functions import PREFIX, RECIPIENT, FakeChain, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("open_sale")]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
HASH = "0x" + "ab" * 32
PAYER = "0x" + "cc" * 20
EVIL = "0x" + "ee" * 20
BUYER, THIEF = "127.20.0.1", "127.20.0.9"
DUE = 400_000
SALES = f"{PREFIX}sales"
AUTHORIZATION = Authorization(
    PAYER, RECIPIENT, DUE, 0, int(time.time()) + 600, "0x" + "77" * 32, "0x" + "12" * 64 + "1b"
)


def paid(functions: Functions, micro: int = DUE, **facts: Any) -> None:
    functions.chain.verdicts[HASH] = Valid(PAYER, micro, int(time.time()), **facts)


def claim(functions: Functions, source: str = BUYER, proof: str = "", query: str = QUERY) -> Reply:
    headers = {"payment-signature": HASH} | ({"x-payment-proof": proof} if proof else {})
    return functions.call(query, headers=headers, source=source)


def order_of(functions: Functions) -> Order:
    prices = read_prices(functions.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1", "country": "us"}, prices)
    assert isinstance(terms, Terms)
    return pool_order(terms, prices)


def taken_on(functions: Functions) -> Owed:
    """A signed transfer that the buyer brought, and that we are about to send."""
    requester, order = functions.sale_wiring.counter.requester(BUYER), order_of(functions)
    owed = Owed("base", AUTHORIZATION.key, "", requester, order, now_ms())
    brought = Transfer(
        AUTHORIZATION, requester, order.subject, Stage.RESERVED, now_ms(), now_ms() + 60_000, 1
    )
    items = [exact_table.reserve_item(SALES, brought), owed_table.owe_item(SALES, owed)]
    assert functions.dynamo.run(transact(items)) is None
    return owed


def forged(**change: str) -> dict[str, Any]:
    a = AUTHORIZATION
    fields = {
        "from": a.payer,
        "to": a.recipient,
        "value": str(a.amount_micro),
        "validAfter": "0",
        "validBefore": str(a.valid_before_s),
        "nonce": a.nonce,
    }
    return {"authorization": fields | change, "signature": "0x" + "34" * 64 + "1b"}


# Paid back and served


@pytest.mark.parametrize("name", [AUTHORIZATION.key, f"{HASH}#{PAYER}"])
def test_what_was_given_back_under_one_name_buys_nothing_under_another(
    functions: Functions, name: str
) -> None:
    functions.dynamo.run(owed_table.refund(SALES, Refund("base", name, HASH, PAYER, DUE, "late", 1)))
    functions.dynamo.run(transact([owed_table.decide_item(SALES, "base", name, "refunded", "sent back")]))
    functions.call(QUERY)
    paid(functions, tx_hash=HASH, authorizations=(AUTHORIZATION.key,))
    answer = claim(functions)
    assert answer.status == 409, answer.body
    assert "given back" in answer.body["message"]


def test_a_port_that_was_served_under_another_name_lacks_no_device(functions: Functions) -> None:
    query = "/v1/x402/proxy?traffic=0.1"
    paid(functions, tx_hash=HASH, authorizations=(AUTHORIZATION.key,))
    counter = functions.sale_wiring.counter
    prices = read_prices(functions.sale_wiring.live.get("prices"), "shared")
    assert prices is not None
    terms = read_port_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    assert claim(functions, proof=PAYER).status == 200, "by its hash, for something else"
    signed = Payment("base", "", authorization=AUTHORIZATION)
    facts = Valid(PAYER, DUE, int(time.time()), HASH, (AUTHORIZATION.key,))
    functions.redis.run(unlist_endpoint(Pool.MBL, MODEM))
    served = counter.serve(port_order(terms, prices), prices, signed, facts, "r")
    assert isinstance(served, Claim), "a device that is not there must not put it on the refund list"
    assert functions.call(query).status == 503


# Bare hashes of others


def test_a_standing_quote_for_the_smallest_amount_does_not_claim_a_larger_payment(
    functions: Functions,
) -> None:
    functions.call(QUERY, source=THIEF)
    paid(functions, 40 * DUE)
    stolen = claim(functions, THIEF)
    assert stolen.status == 403, stolen.body
    mine = claim(functions, "127.20.0.77", proof=PAYER)
    assert (mine.status, mine.body["credit"]["allocatedBytes"]) == (200, 4_000_000_000)


def test_a_signed_transfer_that_was_brought_to_us_is_not_anothers_by_its_hash(functions: Functions) -> None:
    for source in (BUYER, THIEF):
        functions.call(QUERY, source=source)
    taken_on(functions)
    paid(functions, tx_hash=HASH, authorizations=(AUTHORIZATION.key,))
    assert claim(functions, THIEF).status == 403
    assert claim(functions, BUYER).status == 200


def test_a_payment_that_its_payer_tagged_is_not_anybodys_by_its_hash(functions: Functions) -> None:
    for source in (BUYER, THIEF):
        functions.call(QUERY, source=source)
    paid(functions, has_tag=True)
    assert [claim(functions, source).status for source in (THIEF, BUYER)] == [403, 403]
    assert claim(functions, proof=PAYER).status == 200


def test_a_thief_who_bought_a_second_leaves_the_payer_all_its_time(functions: Functions) -> None:
    functions.call(QUERY, source=THIEF)
    paid(functions)
    stolen = claim(functions, THIEF, query=f"{QUERY}&duration=1")
    mine = claim(functions, proof=PAYER, query=f"{QUERY}&duration=86400")
    assert (stolen.status, mine.status) == (200, 200)
    assert stolen.body["proxy"]["password"] != mine.body["proxy"]["password"]
    assert mine.body["credit"]["expiresAt"] > now_ms() + 86_000_000


# Forgeries that take away what others are owed


@pytest.mark.parametrize("change", [{"value": "999"}, {"to": EVIL}])
def test_a_forged_authorization_does_not_strike_out_what_its_namesake_is_owed(
    functions: Functions, change: dict[str, str]
) -> None:
    owed = taken_on(functions)
    answer = functions.call(QUERY, headers=header(forged(**change)), source=THIEF)
    assert answer.status == 402
    assert functions.dynamo.run(owed_table.all_owed(SALES, 10)).rows == (owed,)


def test_terms_that_changed_meanwhile_do_not_ask_for_a_second_payment(functions: Functions) -> None:
    taken_on(functions)
    w = functions.sale_wiring
    hurried = replace(w.counter, exact=replace(w.counter.exact, wait_s=0.2))
    functions.sale_wiring = replace(w, counter=hurried)
    echo = {
        "scheme": "exact",
        "network": "eip155:8453",
        "amount": "399999",
        "asset": USDC,
        "payTo": RECIPIENT,
    }
    payload = forged() | {"signature": AUTHORIZATION.signature}
    answer = functions.call(QUERY, headers=header(payload, echo))
    assert answer.status == 503, answer.body


class Wallets(FakeChain):
    """One payer is a contract that says yes to every signature, or breaks the node that asks it."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.breaks = breaks

    def proves(self, statement: Statement, proof: str, payer: str, quorum: int) -> bool:
        """The contract's own way."""
        if payer == EVIL and self.breaks:
            raise ReadFailed(UnknownReason.NODES_DISAGREE)
        return payer in {EVIL, proof}


@pytest.mark.parametrize("breaks", [False, True])
def test_a_contract_that_shares_a_transaction_cannot_keep_another_payer_from_its_own(
    functions: Functions, breaks: bool
) -> None:
    w, chain = functions.sale_wiring, Wallets(breaks)
    functions.sale_wiring = replace(w, counter=replace(w.counter, chain=lambda: chain))
    now_s = int(time.time())
    chain.verdicts[HASH] = Several((Valid(EVIL, 1, now_s, HASH), Valid(PAYER, DUE, now_s, HASH)))
    answer = claim(functions, proof=PAYER)
    assert answer.status == 200, answer.body
    assert claim(functions, proof=PAYER).body["proxy"] == answer.body["proxy"]


# Honest buyers


def test_asking_again_keeps_a_quote_for_as_long_as_the_answer_says(functions: Functions) -> None:
    key = "quote:" + functions.call(QUERY).body["paymentRequirement"]["extra"]["quoteId"]
    redis = functions.redis
    redis.run(command("EXPIRE", key, 5, parse=int))
    functions.call(QUERY)
    assert redis.run(command("TTL", key, parse=int)) > QUOTE_TTL_S - 60


def test_a_transaction_whose_shares_nobody_can_tell_is_kept_for_a_human_and_not_asked_for_again(
    functions: Functions,
) -> None:
    functions.chain.verdicts[HASH] = Invalid(InvalidReason.SEVERAL_PAYERS, REFUND_MIN_MICRO)
    answer = claim(functions)
    assert answer.status == 409, answer.body
    assert "do not pay again" in answer.body["message"]
    (kept,) = functions.dynamo.run(owed_table.refunds(SALES, 10)).rows
    assert (kept.key, kept.amount_micro) == (f"{HASH}#several", REFUND_MIN_MICRO)


def test_dust_of_several_payers_makes_no_work(functions: Functions) -> None:
    functions.chain.verdicts[HASH] = Invalid(InvalidReason.SEVERAL_PAYERS, REFUND_MIN_MICRO - 1)
    assert claim(functions).status == 409
    assert functions.dynamo.run(owed_table.refunds(SALES, 10)).rows == ()


# Odd input


def test_a_payment_of_odd_types_is_malformed_and_no_fault_of_ours(functions: Functions) -> None:
    odd = {"scheme": "exact", "network": [], "amount": "1"}
    assert functions.call(QUERY, headers=header(forged(), odd)).status == 400


def test_a_body_that_nests_without_end_is_400(functions: Functions) -> None:
    request = HttpRequest(
        "POST", "/v1/x402/manage/pool/topup", (("host", "api.example"),), b"[" * 200_000, BUYER
    )
    assert functions.deliver(http_event(request))["statusCode"] == 400


def test_payments_that_are_none_open_no_more_quotes_than_asking_does(functions: Functions) -> None:
    functions.chain.verdicts[HASH] = Invalid(InvalidReason.FAILED)
    answers = [
        functions.call(QUERY.replace("0.1", f"0.{n + 10}"), headers={"payment-signature": HASH}).status
        for n in range(12)
    ]
    assert answers == [402] * 10 + [429] * 2
    opened = functions.redis.run(command("KEYS", "quote:*", parse=len))
    assert opened == 10


def test_an_empty_name_of_a_payment_is_no_name(functions: Functions) -> None:
    paid(functions)
    refused = functions.call(QUERY, headers={"payment-signature": HASH, "idempotency-key": ""})
    assert (refused.status, refused.body["code"]) == (400, "PAYMENT_MALFORMED")
