"""The synthetic customer buys on a real chain, pays once whatever happens, and stops where its budget ends."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from pydantic import SecretStr

from functions.x402 import customer as job
from functions.x402.customer import Customer, Moved, buy_as_customer, quoted
from functions.x402.wiring import Wiring
from shared.guard.model import Switch
from shared.guard.table import newest_entry, read_setting, set_switch, write_setting
from shared.sale.model import Rail
from shared.upkeep.purchase import BUDGET, STATE, Budget, purchase_fault
from tests.support.exact import DUE, RECIPIENT, Shop, shop
from tests.support.functions import PREFIX

__all__ = ["shop"]
pytestmark = pytest.mark.slow
WALLET = Account.create()
KEY = bytes(WALLET.key)
GUARD = PREFIX + "guard"
ALLOWED = Budget(each_micro=500_000, day_micro=1_000_000, every_s=3600)


class Bed:
    """A shop, a wallet with money, and a customer whose way to the sale and through the gateway the test decides."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.wallet = shop.anvil.new_wallet()
        self.lost: Callable[[Mapping[str, str]], bool] = lambda headers: False
        self.carries = True
        self.used: list[str] = []

    @property
    def w(self) -> Wiring:
        return self.shop.sale_wiring

    def ask(self, headers: Mapping[str, str]) -> tuple[int, Any]:
        reply = self.shop.call(job.PATH, headers={k.lower(): v for k, v in headers.items()})
        return (0, None) if self.lost(headers) else (reply.status, reply.body)

    def use(self, username: str, secret: str) -> bool:
        assert secret.startswith("pak_")
        self.used.append(username)
        return self.carries

    def customer(self) -> Customer:
        return Customer(self.w, bytes(self.wallet.key), self.ask, self.use)

    def run(self, budget: Budget = ALLOWED) -> str:
        return self.customer().run(budget)

    def state(self) -> dict[str, Any]:
        return self.shop.dynamo.run(read_setting(GUARD, STATE)) or {}

    def paid(self) -> int:
        return self.shop.anvil.balance_of(RECIPIENT)


@pytest.fixture
def bed(shop: Shop) -> Bed:
    return Bed(shop)


def test_it_buys_the_least_uses_it_and_waits_for_the_next_time(bed: Bed) -> None:
    before = bed.paid()
    assert bed.run() == "bought"
    assert [name.startswith("psx_x402pool-mbl-any") for name in bed.used] == [True]
    assert bed.paid() - before == DUE
    assert purchase_fault(bed.state(), bed.state()["looked_ms"]) is None
    assert bed.run() == "not due"
    assert (bed.paid() - before, bed.shop.minted()) == (DUE, 1)
    told = bed.shop.dynamo.run(newest_entry(PREFIX + "audit", f"loop#{job.LOOP}"))
    assert told is not None
    assert (told.event.action, told.event.metadata) == ("purchase_ended", {"amount_micro": DUE})


def test_a_lost_answer_is_asked_for_again_and_never_paid_for_again(bed: Bed) -> None:
    before = bed.paid()
    bed.lost = lambda headers: "X-Payment" in headers
    assert bed.run().startswith("unknown")
    assert bed.run().startswith("unknown")
    began = bed.state()["attempt"]["at_ms"]
    assert purchase_fault(bed.state(), began + 180_001) == "paid and not served: the sale answers 0"
    bed.lost = lambda headers: False
    assert bed.run() == "bought"
    assert (bed.paid() - before, bed.shop.minted()) == (DUE, 1)
    assert bed.state()["spent_micro"] == DUE


def test_a_purchase_whose_answer_was_lost_for_too_long_ends_and_the_next_one_is_made(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sale gives what was bought out again for ten minutes, to who asked for it first."""
    before = bed.paid()
    bed.lost = lambda headers: "X-Payment" in headers
    assert bed.run().startswith("unknown")
    bed.lost = lambda headers: False
    monkeypatch.setattr("shared.sale.service.REEMIT_WINDOW_MS", 0)
    assert "its answer was lost: 403" in bed.run()
    state = bed.state()
    assert (state["attempt"], bed.paid() - before) == (None, DUE)
    assert "its answer was lost" in (purchase_fault(state, state["looked_ms"]) or "")
    told = bed.shop.dynamo.run(newest_entry(PREFIX + "audit", f"loop#{job.LOOP}"))
    assert told is not None
    assert told.event.action == "purchase_answer_lost"
    assert bed.run(replace(ALLOWED, every_s=0)) == "bought"
    assert purchase_fault(bed.state(), bed.state()["looked_ms"]) is None
    assert bed.paid() - before == 2 * DUE


def test_what_was_paid_and_carries_nothing_is_a_fault(bed: Bed) -> None:
    bed.carries = False
    assert bed.run() == "paid, and the key carries nothing through the gateway"
    assert len(bed.used) == job.PAGE_TRIES
    assert purchase_fault(bed.state(), bed.state()["looked_ms"]) == bed.state()["fault"] != ""


def test_the_budget_ends_before_money_moves(bed: Bed) -> None:
    before = bed.paid()
    assert "one may cost 399999" in bed.run(replace(ALLOWED, each_micro=399_999))
    assert "are spent today" in bed.run(replace(ALLOWED, day_micro=399_999))
    assert (bed.paid(), bed.shop.minted(), bed.state().get("attempt")) == (before, 0, None)


def test_a_refused_payment_is_told_and_the_next_one_is_another(bed: Bed) -> None:
    bed.shop.anvil.set_balance(job_asset(bed.w), bed.wallet.address, 0)
    assert bed.run().startswith("the payment was refused: 402")
    assert bed.state().get("attempt") is None
    assert bed.run() == "not due", "it costs its place in the day"


def test_of_two_runs_at_once_one_pays(bed: Bed) -> None:
    before = bed.paid()
    first, second = bed.customer(), bed.customer()
    assert first.run(ALLOWED) == "bought"
    with pytest.raises(Moved):
        second.run(ALLOWED)
    assert (bed.paid() - before, bed.shop.minted()) == (DUE, 1)


def job_asset(w: Wiring) -> str:
    return w.counter.exact_rail().asset


RAIL = Rail("base", 8453, "eip155:8453", "0xAA", "0xBB")
OFFER = {"scheme": "exact", "network": "base", "maxAmountRequired": "5", "payTo": "0xbb", "asset": "0xaa"}


@pytest.mark.parametrize(
    ("status", "changed", "fault"),
    [
        (402, {}, None),
        (402, {"payTo": "0xcc"}, "another address"),
        (402, {"asset": "0xcc"}, "another coin"),
        (402, {"scheme": "txhash"}, "no signed transfer"),
        (402, {"maxAmountRequired": "0"}, "asks for nothing"),
        (503, {}, "answers 503"),
    ],
)
def test_money_goes_where_ours_goes_or_nowhere(
    status: int, changed: dict[str, str], fault: str | None
) -> None:
    due, found = quoted(status, {"accepts": [OFFER | changed]}, RAIL)
    assert (found is None and due == 5) if fault is None else fault in str(found)


def test_the_job_refuses_plainly_without_money_budget_or_with_the_switch_on(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_asked", lambda api, headers: pytest.fail("nothing may be asked"))
    dynamo = bed.shop.dynamo
    assert buy_as_customer(bed.w) == {"skipped": "not configured: PSX_CUSTOMER_KEY, PSX_ECHO_URL"}
    settings = bed.w.settings.model_copy(
        update={"customer_key": SecretStr(KEY.hex()), "echo_url": "https://echo.example/"}
    )
    wired = replace(bed.w, settings=settings)
    dynamo.run(set_switch(GUARD, Switch(True, "test", "t", 1)))
    assert buy_as_customer(wired) == {"refused": "kill_switch_on"}
    dynamo.run(set_switch(GUARD, Switch()))
    dynamo.run(write_setting(GUARD, BUDGET, {"each_micro": 1, "day_micro": 0, "every_s": 300}, 2))
    dynamo.run(write_setting(GUARD, STATE, {"looked_ms": 1}, 2))
    bed.w.live._kept.clear()
    assert "no budget" in buy_as_customer(replace(wired))["skipped"]
    assert bed.state() == {}, "nobody waits for purchases that nobody wants"
