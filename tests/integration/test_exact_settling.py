"""Signed transfers on their way into the chain: late, reverted, several at once, and when none is sent or taken."""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from local import lab
from local.evm import USDC
from local.goods import MODEM, put_goods
from shared.chain.eip3009 import read_authorization
from shared.chain.model import SHALLOW, Invalid, InvalidReason, Unknown, UnknownReason, Valid, Verdict
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
from tests.support.chain import Anvil, header
from tests.support.exact import DUE, QUERY, RECIPIENT, Shop, echo, shop, signed
from tests.support.functions import PREFIX, Functions, validate_sale

__all__ = ["shop"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
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
