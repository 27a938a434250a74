"""Signed transfers when many ask at once, when instances die at any step, and when only the job is left to serve them."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from local.evm import USDC
from shared.chain.eip3009 import read_authorization
from shared.chain.model import SHALLOW, InvalidReason, Unknown, UnknownReason
from shared.chain.settler import FEE_MAX_WEI, GAS_FLOOR_WEI
from shared.guard.service import all_incidents
from shared.metering.rules import day_of
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, transact
from shared.sale import exact_table as rows
from shared.sale.exact_table import Stage, Transfer
from shared.sale.model import Bought, Offer, Payment, Problem, Terms
from shared.sale.owed import LATE_MS
from shared.sale.owed_table import Owed, all_owed, owe_item
from shared.sale.rules import read_prices, read_terms
from shared.sale.service import pool_order
from tests.support.exact import DUE, RECIPIENT, Shop, shop, signed
from tests.support.functions import PREFIX, serve_owed

__all__ = ["shop"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ASKED_MAX = 50
"""Far more often than any buyer has to ask; each asking waits for the chain by itself."""


def test_many_requests_with_one_signed_transfer_mint_one_key(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    answers = buy_in_parallel(shop, [signed(wallet)] * 30)
    assert all(isinstance(a, Bought) for a in answers), {str(a) for a in answers if not isinstance(a, Bought)}
    assert len({a.secret for a in answers if isinstance(a, Bought)}) == 1
    assert (shop.minted(), shop.anvil.balance_of(wallet.address)) == (1, 10_000_000 - DUE)
    assert settled(shop) == 1


def test_a_transfer_that_is_used_while_it_is_looked_at_is_not_told_as_one_that_moved_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet = shop.anvil.new_wallet()
    payload = signed(wallet)
    authorization = read_authorization(payload)
    assert authorization is not None
    assert shop.buy(payload).status == 200
    settler = shop.sale_wiring.counter.exact.settler()
    is_used, looks = settler.is_used, list[bool]()

    def not_at_first(*args: Any) -> bool:
        looks.append(len(looks) > 0 and is_used(*args))
        return looks[-1]

    monkeypatch.setattr(settler, "is_used", not_at_first)
    assert settler.refused(authorization, 1) is InvalidReason.AUTH_USED_OTHERWISE
    assert looks == [False, True]


def test_many_buyers_at_once_are_all_served_once(shop: Shop) -> None:
    wallets = [shop.anvil.new_wallet() for _ in range(40)]
    before = shop.anvil.balance_of(RECIPIENT)
    answers = buy_in_parallel(shop, [signed(w) for w in wallets])
    assert all(isinstance(a, Bought) for a in answers), answers
    assert len({a.secret for a in answers if isinstance(a, Bought)}) == 40
    assert shop.anvil.balance_of(RECIPIENT) - before == 40 * DUE
    assert settled(shop) == 40


def settled(shop: Shop) -> int:
    """How many transfers our gas wallet sent. A nonce that a slow instance lost is used up by a transaction to nobody."""
    last = int(shop.anvil.call("eth_blockNumber"), 16)
    blocks = (shop.anvil.call("eth_getBlockByNumber", hex(n), True) for n in range(last + 1))
    sent = [t for block in blocks for t in block["transactions"] if t["from"] == shop.gas_address.lower()]
    return sum((t["to"] or "").lower() == USDC.lower() for t in sent)


def buy_in_parallel(shop: Shop, payloads: list[dict[str, Any]]) -> list[Any]:
    """Many instances at once: every call is a thread of its own on the same stores, and asks again when told to."""
    counter = shop.sale_wiring.counter
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    gate = threading.Barrier(min(len(payloads), 20))

    def buy(payload: dict[str, Any]) -> Any:
        gate.wait()
        payment, answer = Payment("base", "", "", read_authorization(payload)), None
        for _ in range(ASKED_MAX):
            with contextlib.suppress(StoreUnavailable):
                answer = counter.buy([Offer(pool_order(terms, prices), prices)], payment, "127.20.0.1")
            if isinstance(answer, Bought) or (answer and answer.problem is not Problem.PAYMENT_UNKNOWN):
                return answer
            time.sleep(0.05)
        return answer

    size = len(payloads) - len(payloads) % gate.parties
    with ThreadPoolExecutor(gate.parties) as pool:
        return list(pool.map(buy, payloads[:size]))


# Crashes


def test_an_instance_that_died_after_reserving_is_gone_on_from(shop: Shop) -> None:
    transfer = reserved(shop, lease_ms=-1)
    answer = shop.buy(payload_of(transfer))
    assert answer.status == 200, answer.body


def test_a_nonce_that_was_taken_and_never_used_holds_nobody_up(shop: Shop) -> None:
    rail, wallet = shop.sale_wiring.counter.exact, shop.gas_address.lower()
    rail.dynamo.run(rows.start_nonces(rail.table, wallet, 0))
    assert rail.dynamo.run(rows.next_nonce(rail.table, wallet)) == 0  # and the instance is killed here
    answer = shop.buy(signed(shop.anvil.new_wallet()))
    assert answer.status == 200, answer.body
    assert shop.anvil.call("eth_getTransactionCount", wallet, "latest") == "0x2"


def test_a_transaction_that_was_stored_and_never_sent_is_sent_by_the_next_request(shop: Shop) -> None:
    rail = shop.sale_wiring.counter.exact
    transfer = reserved(shop, lease_ms=5_000)
    settler = rail.settler()
    rail.dynamo.run(rows.start_nonces(rail.table, settler.address, 1))
    made = settler.sign(transfer.authorization, 0)
    stored = rows.store_sent(
        rail.table, settler.address, transfer, made.raw, made.tx_hash, 0, made.max_fee_wei
    )
    assert rail.dynamo.run(stored) is None
    answer = shop.buy(payload_of(transfer))
    assert answer.status == 200, answer.body
    assert answer.body["payment"]["txHash"] == made.tx_hash


def test_a_settled_transfer_that_was_not_minted_is_minted_by_the_next_request(shop: Shop) -> None:
    rail = shop.sale_wiring.counter.exact
    transfer = reserved(shop, lease_ms=-1)
    rail.settle(transfer.authorization, owed_for(shop, transfer), SHALLOW)
    assert shop.minted() == 0
    assert shop.buy(payload_of(transfer)).status == 200
    assert shop.minted() == 1


def test_a_wallet_that_somebody_else_used_goes_on_from_where_the_chain_stands(shop: Shop) -> None:
    rail, wallet = shop.sale_wiring.counter.exact, shop.gas_address.lower()
    rail.dynamo.run(rows.start_nonces(rail.table, wallet, 0))
    settler = rail.settler()
    for nonce in range(3):
        settler.send(settler.sign(None, nonce).raw)
    assert shop.buy(signed(shop.anvil.new_wallet())).status == 200


def test_a_fee_that_became_too_low_is_raised(shop: Shop) -> None:
    rail = shop.sale_wiring.counter.exact
    transfer = reserved(shop, lease_ms=5_000)
    settler = rail.settler()
    made = settler.sign(transfer.authorization, 0)
    rail.dynamo.run(rows.start_nonces(rail.table, settler.address, 1))
    stored = rows.store_sent(
        rail.table, settler.address, transfer, made.raw, made.tx_hash, 0, made.max_fee_wei
    )
    rail.dynamo.run(stored)
    shop.anvil.call("anvil_setNextBlockBaseFeePerGas", hex(made.max_fee_wei * 3))
    shop.anvil.call("evm_mine")
    answer = shop.buy(payload_of(transfer))
    assert answer.status == 200, answer.body
    assert answer.body["payment"]["txHash"] != made.tx_hash
    burned = rows.reverted_wei(rail.table, settler.address, day_of(now_ms()))
    assert rail.dynamo.run(burned) is None, "the nonce did one thing, and it paid"


@pytest.mark.parametrize("failed", [False, True])
def test_a_cheap_transaction_at_the_head_holds_up_nobody_when_gas_became_dear(
    shop: Shop, failed: bool
) -> None:
    rail = shop.sale_wiring.counter.exact
    settler, run = rail.settler(), rail.dynamo.run
    next_base_fee(shop, 10**9)
    run(rows.start_nonces(rail.table, settler.address, 1))
    if failed:
        transfer = reserved(shop, lease_ms=5_000)
        head = settler.sign(transfer.authorization, 0)
        args = (transfer, head.raw, head.tx_hash, 0, head.max_fee_wei)
        assert run(rows.store_sent(rail.table, settler.address, *args)) is None
        run(rows.fail(rail.table, transfer.authorization.key, InvalidReason.AUTH_EXPIRED))
    else:
        head = settler.sign(None, 0)
        assert run(rows.bind_nonce(rail.table, settler.address, 0, head.raw, head.tx_hash))
    next_base_fee(shop, head.max_fee_wei * 3)
    answer = shop.buy(signed(shop.anvil.new_wallet()))
    assert answer.status == 200, answer.body
    pushed = run(rows.nonce_raw(rail.table, settler.address, 0))
    assert pushed not in {None, head.raw}
    assert int(shop.anvil.call("eth_getTransactionCount", settler.address, "latest"), 16) == 2


def test_a_fee_is_raised_when_it_is_too_low_and_never_above_its_bound(shop: Shop) -> None:
    settler = shop.sale_wiring.chains.settler()
    next_base_fee(shop, 10**9)
    head = settler.sign(None, 0)
    assert settler.dearer(head.raw) is None
    next_base_fee(shop, 2 * FEE_MAX_WEI)
    raised = settler.dearer(head.raw)
    assert raised is not None
    assert raised.max_fee_wei == FEE_MAX_WEI
    assert settler.dearer(raised.raw) is None
    next_base_fee(shop, 10**9)


def test_an_empty_gas_wallet_raises_no_fee(shop: Shop) -> None:
    rail, transfer = shop.sale_wiring.counter.exact, reserved(shop, lease_ms=5_000)
    settler = rail.settler()
    made = settler.sign(transfer.authorization, 0)
    stored = rows.store_sent(
        rail.table, settler.address, transfer, made.raw, made.tx_hash, 0, made.max_fee_wei
    )
    assert rail.dynamo.run(stored) is None
    shop.anvil.call("anvil_setBalance", shop.gas_address, "0x1")
    for _ in range(3):  # what the job does minute by minute
        waiting = rail.dynamo.run(rows.get_transfer(rail.table, transfer.authorization.key))
        assert waiting is not None
        late = replace(waiting, reserved_at_ms=now_ms() - LATE_MS)
        assert rail.finish(late, SHALLOW, 0.1) == Unknown(UnknownReason.NOT_SETTLED)
        assert (waiting.raw, waiting.fee_wei) == (made.raw, made.max_fee_wei)
    shop.anvil.call("anvil_setBalance", shop.gas_address, hex(10**18))
    assert shop.buy(payload_of(transfer)).body["payment"]["txHash"] == made.tx_hash


def test_nothing_more_is_taken_on_while_the_rail_is_closed(shop: Shop) -> None:
    shop.open(exact=False)
    shop.sale_wiring.live._kept.clear()
    payload = signed(shop.anvil.new_wallet())
    answer = shop.buy(payload)
    assert (answer.status, "signed_transfers_are_not_taken_now" in answer.body["message"]) == (503, True)
    assert shop.dynamo.run(all_owed(f"{PREFIX}sales", 1)).rows == ()


def test_the_rail_closes_when_gas_is_dearer_than_its_wallet_can_pay(shop: Shop) -> None:
    settler = shop.sale_wiring.chains.settler()
    shop.anvil.call("anvil_setBalance", shop.gas_address, hex(GAS_FLOOR_WEI))
    next_base_fee(shop, 10**6)
    assert settler.faults() == []
    next_base_fee(shop, 10**9)
    assert "nearly empty" in settler.faults()[0]


def next_base_fee(shop: Shop, wei: int) -> None:
    """A block at this price of gas; the node may serve other tests afterwards."""
    shop.anvil.call("anvil_setNextBlockBaseFeePerGas", hex(wei))
    shop.anvil.call("evm_mine")


def reserved(shop: Shop, lease_ms: int) -> Transfer:
    """What an instance leaves that was killed right after it had taken a transfer on."""
    authorization = read_authorization(signed(shop.anvil.new_wallet()))
    assert authorization is not None
    counter, now = shop.sale_wiring.counter, now_ms()
    transfer = Transfer(
        authorization,
        counter.requester("127.20.0.1"),
        "pool",
        Stage.RESERVED,
        now,
        now + lease_ms,
        0,
        counted=True,
    )
    kept = rows.reserve_item(counter.exact.table, transfer)
    owed = owe_item(counter.exact.table, owed_for(shop, transfer))
    counted = rows.count_item(counter.exact.table, transfer, None)
    assert counter.exact.dynamo.run(transact([kept, counted, owed])) is None
    return transfer


def owed_for(shop: Shop, transfer: Transfer) -> Owed:
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1", "country": "us"}, prices)
    assert isinstance(terms, Terms)
    order = pool_order(terms, prices)
    return Owed("base", transfer.authorization.key, "", transfer.requester, order, now_ms() - LATE_MS)


def payload_of(transfer: Transfer) -> dict[str, Any]:
    found = transfer.authorization
    return {
        "signature": found.signature,
        "authorization": {
            "from": found.payer,
            "to": found.recipient,
            "value": str(found.amount_micro),
            "validAfter": str(found.valid_after_s),
            "validBefore": str(found.valid_before_s),
            "nonce": found.nonce,
        },
    }


def test_a_buyer_who_never_asks_again_is_served_by_the_job(shop: Shop) -> None:
    transfer = reserved(shop, lease_ms=-1)
    report = serve_owed(shop.sale_wiring)
    assert (report["late"], report["served"], report["unknown"]) == (1, 1, 0), report
    assert shop.minted() == 1
    (incident,) = all_incidents(shop.dynamo, f"{PREFIX}guard")
    assert (incident.kind, incident.closed_at_ms is not None) == ("paid_not_served", True)
    assert serve_owed(shop.sale_wiring)["waiting"] == 0
    assert shop.buy(payload_of(transfer)).status == 200
    assert shop.minted() == 1
