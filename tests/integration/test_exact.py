"""Signed transfers (`exact`) on a real EVM node: paid once, sold once, whoever sends them and whatever is tried.

How they are settled stands in `test_exact_settling.py`, what crashes and crowds do to them in `test_exact_recovery.py`.
"""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from web3 import Web3

from local.evm import FAKE_TOKEN, USDC
from local.goods import MODEM, put_goods
from shared.chain.eip3009 import LIFE_MAX_S
from shared.chain.settler import TRANSFER_GAS
from shared.kernel.codes import Pool
from shared.metering.rules import day_of
from shared.pool.live import unlist_endpoint
from shared.pool.numbers import derive, run
from shared.runtime.clock import now_ms
from shared.sale import exact_table as rows
from tests.support.chain import encoded, header
from tests.support.exact import DUE, QUERY, RECIPIENT, Shop, calldata, echo, shop, signed

__all__ = ["shop"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
THIEF = "127.20.0.9"


def test_a_signed_transfer_buys_and_is_settled_by_us(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    offered = shop.call(QUERY)
    (v1,) = offered.body["accepts"]
    assert (v1["scheme"], v1["network"], v1["extra"]) == (
        "exact",
        "base",
        {"name": "USD Coin", "version": "2"},
    )
    answer = shop.buy(signed(wallet))
    assert answer.status == 200, answer.body
    assert answer.body["payment"]["amountUSDC"] == 0.4
    told = json.loads(base64.b64decode(answer.headers["payment-response"]))
    assert (told["success"], told["network"]) == (True, "eip155:8453")
    assert told["payer"] == wallet.address.lower()
    receipt = shop.anvil.call("eth_getTransactionReceipt", told["transaction"])
    assert receipt["from"] == shop.gas_address.lower()
    assert shop.anvil.balance_of(RECIPIENT) >= DUE
    assert shop.anvil.balance_of(wallet.address) == 10_000_000 - DUE


def test_the_same_signed_transfer_again_sells_nothing_twice(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    payload = signed(wallet)
    first, again = shop.buy(payload), shop.buy(payload)
    assert (again.status, again.body["proxy"]) == (200, first.body["proxy"])
    older = shop.call(QUERY, headers=header(payload))
    assert older.body["proxy"] == first.body["proxy"]
    stolen = shop.buy(payload, source=THIEF)
    assert stolen.status == 403
    assert first.body["proxy"]["password"] not in json.dumps(stolen.body)
    assert shop.minted() == 1
    assert shop.anvil.balance_of(wallet.address) == 10_000_000 - DUE


def test_the_settling_transactions_hash_buys_nothing_more(shop: Shop) -> None:
    shop.call(QUERY)
    shop.call(QUERY, source=THIEF)
    bought = shop.buy(signed(shop.anvil.new_wallet()))
    tx_hash = bought.body["payment"]["txHash"]
    same = shop.call(QUERY, headers={"payment-signature": tx_hash})
    assert (same.status, same.body["proxy"]) == (200, bought.body["proxy"])
    assert shop.call(QUERY, headers={"payment-signature": tx_hash}, source=THIEF).status == 403
    assert shop.minted() == 1


def test_a_transfer_that_its_payer_sent_and_claimed_by_hash_is_not_sold_again(shop: Shop) -> None:
    shop.call(QUERY)
    wallet = shop.anvil.new_wallet()
    payload = signed(wallet)
    tx_hash = shop.anvil.send(wallet, USDC, calldata(payload))
    by_hash = shop.call(QUERY, headers={"payment-signature": tx_hash})
    assert by_hash.status == 200, by_hash.body
    by_signature = shop.buy(payload)
    assert (by_signature.status, by_signature.body["proxy"]) == (200, by_hash.body["proxy"])
    assert shop.minted() == 1


def test_a_transfer_that_others_sent_first_counts_as_paid(shop: Shop) -> None:
    wallet, other = shop.anvil.new_wallet(), shop.anvil.new_wallet()
    shop.call(QUERY)
    payload = signed(wallet)
    tx_hash = shop.anvil.send(other, USDC, calldata(payload))
    assert shop.buy(payload, source=THIEF).status == 403
    answer = shop.buy(payload)
    assert answer.status == 200, answer.body
    assert answer.body["payment"]["txHash"] == tx_hash
    assert shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest") == "0x0"


def test_a_front_run_between_check_and_mining_counts_as_paid(shop: Shop) -> None:
    wallet, other = shop.anvil.new_wallet(), shop.anvil.new_wallet()
    payload = signed(wallet)
    shop.anvil.call("evm_setAutomine", False)
    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(shop.buy, payload)
        while not shop.anvil.call("txpool_content")["pending"]:
            time.sleep(0.02)
        dear = other.sign_transaction(
            {
                "to": Web3.to_checksum_address(USDC),
                "data": HexStr(calldata(payload)),
                "gas": 200_000,
                "maxFeePerGas": 10**11,
                "maxPriorityFeePerGas": 10**10,
                "nonce": 0,
                "chainId": 8453,
                "value": 0,
            }
        )
        shop.anvil.call("eth_sendRawTransaction", "0x" + bytes(dear.raw_transaction).hex())
        shop.anvil.call("evm_mine")
        answer = buying.result()
    assert answer.status == 200, answer.body
    paying = shop.anvil.call("eth_getTransactionReceipt", answer.body["payment"]["txHash"])
    assert paying["from"] == other.address.lower()
    assert shop.anvil.balance_of(wallet.address) == 10_000_000 - DUE


def test_an_x402_payment_identifier_is_bound_to_its_payment(shop: Shop) -> None:
    named = {"payment-identifier": {"info": {"required": False, "id": "pay_0123456789abcdef"}}}
    payments = [signed(shop.anvil.new_wallet()) for _ in range(2)]
    headers = [
        {"payment-signature": encoded({"accepted": echo(), "payload": p, "extensions": named})}
        for p in payments
    ]
    assert [shop.call(QUERY, headers=h).status for h in headers] == [200, 409]
    assert shop.call(QUERY, headers=headers[0]).status == 200
    assert shop.minted() == 1


def test_an_identifier_under_which_nothing_was_charged_is_free_again(shop: Shop) -> None:
    named = [
        header(signed(shop.anvil.new_wallet()), echo()) | {"idempotency-key": "one-purchase"}
        for _ in range(2)
    ]
    shop.redis.run(unlist_endpoint(Pool.MBL, MODEM))
    run(shop.redis, derive())
    assert shop.call(QUERY, headers=named[0]).body["code"] == "NO_STOCK"
    put_goods(shop.redis)
    assert shop.call(QUERY, headers=named[1]).status == 200, "signed anew, because the first signature aged"


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("another recipient", {"to": "0x" + "22" * 20}, "authorization_pays_somebody_else"),
    ("one micro less", {"amount": DUE - 1}, "authorization_is_for_less_than_the_price"),
    ("expired", {"valid_before_s": 1}, "authorization_expired_or_about_to"),
    ("about to expire", {"valid_before_s": -2}, "authorization_expired_or_about_to"),
    ("not yet valid", {"valid_after_s": 2**40, "valid_before_s": 2**41}, "authorization_is_not_valid_yet"),
    (
        "valid for longer than a quote",
        {"valid_before_s": int(time.time()) + 2 * LIFE_MAX_S},
        "authorization_valid_before_is_over_an_hour_away",
    ),
    ("another token", {"token": FAKE_TOKEN}, "authorization_signature_invalid"),
    ("another chain", {"chain_id": 1}, "authorization_signature_invalid"),
    ("more than is there", {"amount": 20_000_000}, "balance_of_payer_is_too_small"),
]


@pytest.mark.parametrize(("name", "how", "reason"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_authorization_is_refused_before_anything_moves(
    shop: Shop, name: str, how: dict[str, Any], reason: str
) -> None:
    wallet = shop.anvil.new_wallet()
    if how.get("valid_before_s") == -2:
        how = {"valid_before_s": int(time.time()) + 2}
    answer = shop.buy(signed(wallet, **how))
    assert answer.status == 402, answer.body
    assert reason in answer.body["error"]
    assert shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest") == "0x0"
    assert shop.minted() == 0


@pytest.mark.parametrize(
    "altered",
    [{"amount": "1"}, {"payTo": "0x" + "22" * 20}, {"asset": FAKE_TOKEN}],
    ids=["amount", "recipient", "asset"],
)
def test_terms_that_are_not_ours_are_refused(shop: Shop, altered: dict[str, Any]) -> None:
    answer = shop.buy(signed(shop.anvil.new_wallet()), **altered)
    assert answer.status == 402
    assert "authorization_is_for_other_terms" in answer.body["error"]


@pytest.mark.parametrize("field", ["value", "to", "nonce", "validBefore", "from"])
def test_a_field_that_was_altered_after_signing_is_refused(shop: Shop, field: str) -> None:
    payload = signed(shop.anvil.new_wallet())
    other = {
        "value": str(DUE + 1),
        "to": "0x" + "22" * 20,
        "nonce": "0x" + "01" * 32,
        "validBefore": str(int(time.time()) + 9999),
        "from": shop.anvil.new_wallet().address,
    }
    payload["authorization"][field] = other[field]
    answer = shop.buy(payload)
    assert answer.status == 402, answer.body
    assert shop.minted() == 0


@pytest.mark.parametrize(
    "broken",
    [
        {"signature": "0x12"},
        {"authorization": {}},
        {"authorization": {"value": "NaN"}},
        {"authorization": {"value": "-1"}},
        {"authorization": {"nonce": "0x00"}},
        {"authorization": {"from": "nobody"}},
        {"authorization": {"value": "9" * 400}},
    ],
    ids=str,
)
def test_a_malformed_authorization_is_400(shop: Shop, broken: dict[str, Any]) -> None:
    payload = signed(shop.anvil.new_wallet())
    for name, value in broken.items():
        payload[name] = payload["authorization"] | value if value and name == "authorization" else value
    answer = shop.buy(payload)
    assert answer.status == 400
    assert "do not pay again" in answer.body["message"]


def cancel(shop: Shop, wallet: LocalAccount, payload: dict[str, Any]) -> str:
    """The payer's own transaction that makes a signature worthless; its hash."""
    nonce = payload["authorization"]["nonce"]
    domain = {"name": "USD Coin", "version": "2", "chainId": 8453, "verifyingContract": USDC}
    types = {
        "CancelAuthorization": [
            {"name": "authorizer", "type": "address"},
            {"name": "nonce", "type": "bytes32"},
        ]
    }
    message = {"authorizer": wallet.address, "nonce": bytes.fromhex(nonce[2:])}
    signature = bytes(wallet.sign_typed_data(domain, types, message).signature).hex()
    r, s, v = signature[:64], signature[64:128], signature[128:]
    call = "0x5a049a70" + wallet.address[2:].lower().rjust(64, "0") + nonce[2:] + v.rjust(64, "0") + r + s
    return str(shop.anvil.send(wallet, USDC, call))


def test_a_canceled_authorization_pays_nothing(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    payload = signed(wallet)
    cancel(shop, wallet, payload)
    answer = shop.buy(payload)
    assert answer.status == 402
    assert "authorization_was_canceled" in answer.body["error"]


def test_what_is_canceled_before_our_transaction_is_mined_burns_the_most_it_may(shop: Shop) -> None:
    counter, wallet = shop.sale_wiring.counter, shop.anvil.new_wallet()
    object.__setattr__(counter, "exact", replace(counter.exact, wait_s=0.3))
    rail, payload = counter.exact, signed(wallet)
    shop.anvil.call("evm_setAutomine", False)
    assert shop.buy(payload).status == 503
    ((ours,),) = [of.values() for of in shop.anvil.call("txpool_content")["pending"].values()]
    shop.anvil.call("anvil_dropTransaction", ours["hash"])
    shop.anvil.call("evm_setAutomine", True)
    cancel(shop, wallet, payload)
    shop.anvil.call("evm_setAutomine", False)
    answer = shop.buy(payload)
    assert (answer.status, "authorization_was_canceled" in answer.body["error"]) == (402, True), answer.body
    burned = shop.dynamo.run(rows.reverted_wei(rail.table, shop.gas_address.lower(), day_of(now_ms())))
    assert burned == TRANSFER_GAS * int(ours["maxFeePerGas"], 16)
    assert "an_earlier_signed_transfer" in shop.buy(signed(wallet)).body["error"]


def test_a_nonce_that_was_spent_on_oneself_pays_nothing(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    payload = signed(wallet)
    itself = signed(wallet, to=wallet.address, nonce=bytes.fromhex(payload["authorization"]["nonce"][2:]))
    shop.anvil.send(wallet, USDC, calldata(itself))
    answer = shop.buy(payload)
    assert answer.status == 402
    assert "authorization_nonce_was_used_for_something_else" in answer.body["error"]
