"""Signed transfers (`exact`) on a real EVM node: paid once, sold once, whoever sends them and whatever is tried.

What crashes and crowds do to them stands in `test_exact_recovery.py`.
"""

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from web3 import Web3

from local import lab
from local.bootstrap import HOUSE
from local.evm import FAKE_TOKEN, USDC, new_address, sign_authorization
from local.goods import MODEM, put_goods
from shared.access import table as access
from shared.chain.eip3009 import LIFE_MAX_S, read_authorization, transfer_calldata
from shared.chain.model import SHALLOW, Invalid, InvalidReason, Unknown, UnknownReason, Valid, Verdict
from shared.chain.settler import TRANSFER_GAS
from shared.guard.service import standing_incidents
from shared.kernel.codes import Pool
from shared.kernel.ids import Country
from shared.metering.rules import day_of
from shared.pool.live import unlist_endpoint
from shared.pool.numbers import derive, run
from shared.pool.ports import PortWish, could_hold
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import Conflict, Contended, DynamoRequest, SyncDynamo
from shared.sale import exact_table as rows
from shared.sale.exact import UNDER_WAY_MAX
from shared.sale.exact_table import Payer, Transfer
from shared.sale.model import Terms
from shared.sale.owed_table import Owed
from shared.sale.rules import read_prices, read_terms
from shared.sale.service import pool_order
from tests.support.chain import Anvil, encoded, header
from tests.support.functions import PREFIX, Functions, Reply, validate_sale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
DUE = 400_000
THIEF = "127.20.0.9"
RECIPIENT = new_address()


def echo(amount: int = DUE) -> dict[str, Any]:
    """What a 402 offered, as clients send it back."""
    told = {"scheme": "exact", "network": "eip155:8453", "asset": USDC, "payTo": RECIPIENT}
    return told | {"amount": str(amount)}


class Shop(Functions):
    """The sale on a real chain, with a gas wallet."""

    def __init__(self, dynamo: SyncDynamo, redis_url: str, files: lab.LabFiles, anvil: Anvil) -> None:
        gas = Account.create()
        super().__init__(dynamo, redis_url, files, anvil.url, gas.key.hex(), RECIPIENT)
        anvil.call("anvil_setBalance", gas.address, hex(10**18))
        self.gas_address: str = gas.address
        self.anvil = anvil
        self.open(exact=True)

    def buy(self, payload: dict[str, Any], source: str = "127.20.0.1", **accepted: Any) -> Reply:
        """One request that pays by a signed transfer."""
        return self.call(QUERY, headers=header(payload, echo() | accepted), source=source)

    def minted(self) -> int:
        """How many keys were minted."""
        return len(self.dynamo.run(access.list_paks(f"{PREFIX}access", HOUSE, 1000)).rows)


@pytest.fixture
def shop(dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles, anvil: Anvil) -> Iterator[Shop]:
    made = Shop(dynoxide, valkey_url, lab_files, anvil)
    yield made
    made.close()


def signed(wallet: LocalAccount, amount: int = DUE, to: str = RECIPIENT, **how: Any) -> dict[str, Any]:
    return sign_authorization(wallet, to, amount, **how)


def calldata(payload: dict[str, Any]) -> str:
    found = read_authorization(payload)
    assert found is not None
    return transfer_calldata(found)


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


Settle = Callable[[dict[str, Any]], Verdict]
Settling = tuple[Shop, Settle]


@pytest.fixture
def settling(shop: Shop) -> Settling:
    """The rail alone, which answers at once."""
    counter = shop.sale_wiring.counter
    rail = replace(counter.exact, wait_s=0.0)
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    order = pool_order(terms, prices)

    def settle(payload: dict[str, Any]) -> Verdict:
        found = read_authorization(payload)
        assert found is not None
        owed = Owed("base", found.key, "", counter.requester("127.20.0.1"), order, counter.now_ms())
        return rail.settle(found, owed, SHALLOW).verdict

    return shop, settle


def test_a_transfer_that_reverts_after_our_check_moves_nothing_and_says_so(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet(DUE)
    payload = signed(wallet)
    shop.anvil.call("evm_setAutomine", False)
    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(shop.buy, payload)
        while not shop.anvil.call("txpool_content")["pending"]:
            time.sleep(0.02)
        shop.anvil.set_balance(USDC, wallet.address, 0)
        shop.anvil.call("evm_mine")
        answer = buying.result()
    assert answer.status == 402, answer.body
    assert "transfer_was_reverted" in answer.body["error"]
    assert "transfer_was_reverted" in shop.buy(payload).body["error"]
    shop.anvil.call("evm_setAutomine", True)
    shop.anvil.set_balance(USDC, wallet.address, DUE)
    again = shop.buy(signed(wallet))
    assert (again.status, "an_earlier_signed_transfer" in again.body["error"]) == (402, True), again.body
    assert shop.buy(signed(shop.anvil.new_wallet())).status == 200, "others are not concerned"
    assert int(shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest"), 16) == 2


def test_a_payer_has_a_few_transfers_under_way_whatever_its_balance(settling: Settling) -> None:
    shop, settle = settling
    wallet = shop.anvil.new_wallet(100 * DUE)
    shop.anvil.call("evm_setAutomine", False)
    try:
        payloads = [signed(wallet) for _ in range(UNDER_WAY_MAX + 1)]
        told = [settle(payload) for payload in payloads]
    finally:
        shop.anvil.call("evm_setAutomine", True)
    assert told == [Unknown(UnknownReason.NOT_SETTLED)] * UNDER_WAY_MAX + [Unknown(UnknownReason.PAYER_BUSY)]
    shop.anvil.call("evm_mine")
    assert all(isinstance(until_final(settle, payload), Valid) for payload in payloads)


# When the chain cannot say


def test_one_balance_stands_behind_one_transfer_at_a_time(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, settle = settling
    rail, wallet = shop.sale_wiring.counter.exact, shop.anvil.new_wallet()
    shop.anvil.set_balance(USDC, wallet.address, DUE)
    first, second = signed(wallet), signed(wallet)
    shop.anvil.call("evm_setAutomine", False)
    try:
        assert settle(first) == Unknown(UnknownReason.NOT_SETTLED)
        assert settle(second) == Unknown(UnknownReason.PAYER_BUSY)
    finally:
        shop.anvil.call("evm_setAutomine", True)
    shop.anvil.call("evm_mine")
    counted_off, busy = rows.uncount, iter((True, True))

    def contended(table: str, transfer: Transfer, *more: Any) -> DynamoRequest[Conflict | None]:
        if next(busy, False):
            raise Contended("another transfer of this payer became final in the same moment")
        return counted_off(table, transfer, *more)

    monkeypatch.setattr(rows, "uncount", contended)
    assert isinstance(settle(first), Valid), "whose money moved is not told to wait"
    assert settle(second) == Invalid(InvalidReason.AUTH_BALANCE)
    assert shop.dynamo.run(rows.get_payer(rail.table, wallet.address.lower())) == Payer()
    shop.anvil.set_balance(USDC, wallet.address, DUE)
    assert isinstance(until_final(settle, second), Valid)
    assert int(shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest"), 16) == 2


def until_final(settle: Callable[[dict[str, Any]], Verdict], payload: dict[str, Any]) -> Verdict:
    """The verdict when it is no longer UNKNOWN."""
    for _ in range(100):
        verdict = settle(payload)
        if not isinstance(verdict, Unknown):
            return verdict
        time.sleep(0.05)
    return verdict


def test_a_transfer_that_is_not_mined_in_time_is_asked_for_again_and_never_paid_again(shop: Shop) -> None:
    rail = shop.sale_wiring.counter.exact
    shop.anvil.call("evm_setAutomine", False)
    object.__setattr__(shop.sale_wiring.counter, "exact", replace(rail, wait_s=0.3))
    payload = signed(shop.anvil.new_wallet())
    waiting = shop.buy(payload)
    assert waiting.status == 503
    assert "do not pay again" in waiting.body["message"]
    assert waiting.headers["retry-after"] == "2"
    shop.anvil.call("evm_mine")
    assert shop.buy(payload).status == 200


def test_the_rail_is_offered_only_while_its_wallet_can_pay_for_gas(shop: Shop) -> None:
    report = validate_sale(shop.sale_wiring)
    assert report["exactFaults"] == []
    shop.anvil.call("anvil_setBalance", shop.gas_address, "0x1")
    report = validate_sale(shop.sale_wiring)
    assert report["exact"] is False
    assert "nearly empty" in report["exactFaults"][0]


def test_no_transfer_is_sent_while_nothing_is_free_and_one_that_was_sent_is_served(shop: Shop) -> None:
    def empty() -> None:
        shop.redis.run(unlist_endpoint(Pool.MBL, MODEM))
        run(shop.redis, derive())

    payload, counter = signed(shop.anvil.new_wallet()), shop.sale_wiring.counter
    empty()
    refused = shop.buy(payload)
    assert (refused.status, refused.body["code"]) == (503, "NO_STOCK")
    assert "nothing was charged" in refused.body["message"]
    assert shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest") == "0x0"
    put_goods(shop.redis)
    object.__setattr__(counter, "exact", replace(counter.exact, wait_s=0.3))
    shop.anvil.call("evm_setAutomine", False)
    assert shop.buy(payload).body["code"] == "PAYMENT_UNKNOWN"
    empty()
    shop.anvil.call("evm_setAutomine", True)
    shop.anvil.call("evm_mine")
    assert shop.buy(payload).status == 200


def test_a_ports_device_is_held_while_its_transfer_is_under_way(shop: Shop) -> None:
    shop.held_at_most(100)
    port, wallet, poor = (
        QUERY.replace("pool", "proxy") + "&tier=private",
        *(shop.anvil.new_wallet(n) for n in (2 * DUE, 1)),
    )

    def free() -> bool:
        return shop.redis.run(
            could_hold(PortWish(Pool.MBL, Country("us"), "", "", private=True), now_ms(), 100)
        )

    assert shop.call(port).status == 402
    assert shop.call(port, headers=header(signed(poor, 2 * DUE), echo(2 * DUE))).status == 402
    assert free(), "what is not taken on holds nothing"
    counter, paying = shop.sale_wiring.counter, header(signed(wallet, 2 * DUE), echo(2 * DUE))
    object.__setattr__(counter, "exact", replace(counter.exact, wait_s=0.3))
    shop.anvil.call("evm_setAutomine", False)
    assert shop.call(port, headers=paying).body["code"] == "PAYMENT_UNKNOWN"
    assert not free()
    late = shop.call(port, headers=header(signed(shop.anvil.new_wallet(), 2 * DUE), echo(2 * DUE)))
    assert (late.status, late.body["code"]) == (503, "NO_STOCK")
    shop.anvil.call("evm_mine")
    served = shop.call(port, headers=paying)
    assert served.status == 200, served.body
    assert int(shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest"), 16) == 1


def test_what_reverted_transfers_burned_closes_the_rail_until_the_day_is_over(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.sale.exact.REVERTED_DAY_MAX_WEI", 1)
    counter, wallet = shop.sale_wiring.counter, shop.anvil.new_wallet()
    object.__setattr__(counter, "exact", replace(counter.exact, wait_s=0.3))
    payload = signed(wallet)
    shop.anvil.call("evm_setAutomine", False)
    assert shop.buy(payload).status == 503
    shop.anvil.set_balance(USDC, wallet.address, 0)
    shop.anvil.call("evm_mine")
    shop.anvil.call("evm_setAutomine", True)
    answer = shop.buy(payload)
    assert (answer.status, "transfer_was_reverted" in answer.body["error"]) == (402, True)
    burned = 10**18 - int(shop.anvil.call("eth_getBalance", shop.gas_address, "latest"), 16)
    rail = counter.exact
    day = day_of(now_ms())
    assert shop.dynamo.run(rows.reverted_wei(rail.table, shop.gas_address.lower(), day)) == burned
    closed = shop.buy(signed(shop.anvil.new_wallet()))
    assert (closed.status, closed.body["code"]) == (503, "PAYMENT_UNKNOWN")
    assert "signed_transfers_are_not_taken_now" in closed.body["message"]
    assert int(shop.anvil.call("eth_getTransactionCount", shop.gas_address, "latest"), 16) == 1
    (fault,) = validate_sale(shop.sale_wiring)["exactFaults"]
    assert "payments by transaction hash go on" in fault
    guard = f"{PREFIX}guard"
    assert [i.kind for i in standing_incidents(shop.dynamo, guard)] == ["reverted_gas_spent"]
    tomorrow = now_ms() + 86_400_000
    object.__setattr__(counter, "exact", replace(rail, now_ms=lambda: tomorrow))
    assert validate_sale(shop.sale_wiring)["exactFaults"] == []
    assert standing_incidents(shop.dynamo, guard) == []


def test_without_a_gas_wallet_the_rail_is_not_offered(
    dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles, anvil: Anvil
) -> None:
    functions = Functions(dynoxide, valkey_url, lab_files, anvil.url, "", RECIPIENT)
    functions.open()
    assert "accepts" not in functions.call(QUERY).body
    payload = signed(anvil.new_wallet(), nonce=secrets.token_bytes(32))
    answer = functions.call(QUERY, headers=header(payload))
    assert (answer.status, "signed_transfers_are_not_taken_now" in answer.body["message"]) == (503, True)
    functions.close()
