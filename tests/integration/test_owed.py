"""What was paid is served or put on the refund list, never both, never lost; whatever died in between."""

from dataclasses import replace
from typing import Any

import pytest

from shared.access import table as access
from shared.access.model import DisabledReason
from shared.chain.model import Invalid, InvalidReason, Unknown, UnknownReason, Valid
from shared.chain.rules import AUTHORIZATIONS_MAX
from shared.guard.model import Incident
from shared.guard.service import all_incidents
from shared.kernel.ids import PakId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import put, transact, update
from shared.sale import owed_table
from shared.sale.model import Order, Terms
from shared.sale.owed import LATE_MS, RUN_MAX_MS, TRIES_MAX, UNKNOWN_MAX_MS, OwedRun
from shared.sale.owed_table import Owed, Refund, Unreadable
from shared.sale.ports import NoDevice
from shared.sale.rules import read_prices, read_terms
from shared.sale.service import pool_order, top_up_order
from tests.support.functions import PREFIX, Functions, Reply, serve_owed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("open_sale")]
QUERY = "/v1/x402/pool?traffic=0.1&country=us&sid=a1"
HASH = "0x" + "ab" * 32
PAYER = "0x" + "cc" * 20
SALES = f"{PREFIX}sales"


def pool(functions: Functions) -> Order:
    prices = read_prices(functions.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1", "country": "us", "sid": "a1"}, prices)
    assert isinstance(terms, Terms)
    return pool_order(terms, prices)


def died(
    functions: Functions, order: Order, age_ms: int = LATE_MS, tries: int = 0, tx_hash: str = HASH
) -> Owed:
    """An instance verified this payment, wrote that it is owed, and was killed."""
    requester = functions.sale_wiring.counter.requester("127.20.0.1")
    owed = Owed("base", tx_hash, tx_hash, requester, order, now_ms() - age_ms, tries)
    assert functions.dynamo.run(owed_table.owe(SALES, owed))
    functions.chain.verdicts[tx_hash] = Valid(PAYER, 400_000, now_ms() // 1000)
    return owed


def claim(functions: Functions) -> Reply:
    return functions.call(QUERY, headers={"payment-signature": HASH})


def incidents(functions: Functions) -> list[Incident]:
    return all_incidents(functions.dynamo, f"{PREFIX}guard")


def refunds(functions: Functions) -> tuple[Refund, ...]:
    return functions.dynamo.run(owed_table.refunds(SALES, 10)).rows


def owed_rows(functions: Functions) -> tuple[Owed | Unreadable, ...]:
    return functions.dynamo.run(owed_table.all_owed(SALES, 10)).rows


def test_an_order_survives_its_row(functions: Functions) -> None:
    owed = died(functions, pool(functions))
    assert owed_rows(functions) == (owed,)
    plain = replace(owed, key="x", order=replace(owed.order, terms=None, pak_id=PakId("p"), username="u"))
    functions.dynamo.run(owed_table.owe(SALES, plain))
    assert plain in owed_rows(functions)


def test_a_purchase_that_is_late_raises_an_incident_and_is_served(functions: Functions) -> None:
    died(functions, pool(functions))
    report = serve_owed(functions.sale_wiring)
    assert (report["late"], report["served"]) == (1, 1)
    assert [(i.kind, i.closed_at_ms is not None) for i in incidents(functions)] == [("paid_not_served", True)]
    assert owed_rows(functions) == ()
    answer = claim(functions)
    assert (answer.status, answer.body["proxy"]["username"].split("-")[1:5]) == (
        200,
        ["mbl", "us", "sid", "a1"],
    )


def test_an_incident_ends_when_the_buyer_is_served_by_repeating_or_a_human_decides(
    functions: Functions,
) -> None:
    functions.call(QUERY)
    owed = died(functions, pool(functions))
    functions.chain.verdicts[HASH] = Unknown(UnknownReason.NODE_UNREACHABLE)
    serve_owed(functions.sale_wiring)
    assert [i.closed_at_ms for i in incidents(functions)] == [None]
    functions.chain.verdicts[HASH] = Valid(PAYER, 400_000, now_ms() // 1000)
    assert claim(functions).status == 200
    serve_owed(functions.sale_wiring)
    assert [i.closed_at_ms is not None for i in incidents(functions)] == [True]
    other = replace(owed, key="0x" + "ef" * 32, tx_hash="0x" + "ef" * 32)
    functions.dynamo.run(owed_table.owe(SALES, other))
    functions.chain.verdicts[other.tx_hash] = Unknown(UnknownReason.NODE_UNREACHABLE)
    serve_owed(functions.sale_wiring)
    given_up = Refund("base", other.key, other.tx_hash, PAYER, 0, "nobody knows", now_ms())
    assert functions.dynamo.run(owed_table.give_up(SALES, other, given_up)) is None
    serve_owed(functions.sale_wiring)
    assert [i.closed_at_ms is None for i in incidents(functions)] == [True, False], "a human has not decided"
    decided = owed_table.decide_item(SALES, "base", other.key, "refunded", "sent back")
    assert functions.dynamo.run(transact([decided])) is None
    serve_owed(functions.sale_wiring)
    assert [i.closed_at_ms is not None for i in incidents(functions)] == [True, True]


def test_a_purchase_that_is_not_late_is_left_to_its_buyer(functions: Functions) -> None:
    died(functions, pool(functions), age_ms=LATE_MS // 2)
    assert serve_owed(functions.sale_wiring)["late"] == 0
    assert incidents(functions) == []
    functions.call(QUERY)
    assert claim(functions).status == 200
    assert owed_rows(functions) == ()


def test_a_payment_that_was_reorged_away_is_owed_no_more(functions: Functions) -> None:
    died(functions, pool(functions))
    functions.chain.verdicts[HASH] = Invalid(InvalidReason.FAILED)
    assert serve_owed(functions.sale_wiring)["unpaid"] == 1
    assert (owed_rows(functions), refunds(functions)) == ((), ())


def test_a_chain_that_cannot_say_changes_nothing(functions: Functions) -> None:
    owed = died(functions, pool(functions))
    functions.chain.verdicts[HASH] = Unknown(UnknownReason.NODE_UNREACHABLE)
    assert serve_owed(functions.sale_wiring)["unknown"] == 1
    assert owed_rows(functions) == (owed,)
    assert incidents(functions)[0].closed_at_ms is None


def stuck_top_up(functions: Functions, tries: int) -> Owed:
    """A top-up of a key that an admin turned off after it was paid."""
    functions.call(QUERY)
    other = "0x" + "cd" * 32
    functions.chain.verdicts[other] = Valid(PAYER, 400_000, now_ms() // 1000)
    body = functions.call(QUERY, headers={"payment-signature": other}).body
    found = functions.sale_wiring.counter.session(body["sessionToken"])
    assert found is not None
    session, pak = found
    functions.dynamo.run(
        access.change(
            f"{PREFIX}access",
            pak.pak_id,
            {"enabled": False, "disabled_reason": DisabledReason.ADMIN.value},
            1,
        )
    )
    prices: Any = read_prices(functions.sale_wiring.live.get("prices"))
    return died(functions, top_up_order(session, 100_000_000, prices), tries=tries)


def test_what_can_never_be_served_lands_on_the_refund_list_once(functions: Functions) -> None:
    stuck_top_up(functions, TRIES_MAX - 2)
    assert serve_owed(functions.sale_wiring)["refundable"] == 0
    assert serve_owed(functions.sale_wiring)["refundable"] == 1
    (found,) = refunds(functions)
    assert (found.payer, found.amount_micro, found.state, found.tx_hash) == (PAYER, 400_000, "open", HASH)
    assert owed_rows(functions) == ()
    assert serve_owed(functions.sale_wiring)["waiting"] == 0
    assert incidents(functions)[0].closed_at_ms is None


def test_too_little_money_is_on_the_list_until_it_buys_something(functions: Functions) -> None:
    functions.call(QUERY)
    larger = QUERY.replace("0.1", "0.2")
    functions.call(larger)
    functions.chain.verdicts[HASH] = Valid(PAYER, 400_000, now_ms() // 1000)
    assert functions.call(larger, headers={"payment-signature": HASH}).status == 402
    assert [(r.amount_micro, r.reason) for r in refunds(functions)] == [
        (400_000, "paid 400000 of 800000 micro-USDC")
    ]
    assert claim(functions).status == 200
    assert refunds(functions) == ()


def test_what_was_given_back_buys_nothing(functions: Functions) -> None:
    functions.call(QUERY)
    functions.chain.verdicts[HASH] = Valid(PAYER, 300_000, now_ms() // 1000)
    assert claim(functions).status == 402
    decided = update(
        SALES,
        "refund",
        f"base#{HASH}",
        "SET #s = :paid",
        {":paid": "approved"},
        parse=dict,
        names={"#s": "state"},
    )
    functions.dynamo.run(decided)
    functions.chain.verdicts[HASH] = Valid(PAYER, 400_000, now_ms() // 1000)
    answer = claim(functions)
    assert (answer.status, "given back" in answer.body["message"]) == (409, True)


def test_dust_makes_no_work(functions: Functions) -> None:
    functions.call(QUERY)
    functions.chain.verdicts[HASH] = Valid(PAYER, 9_999, now_ms() // 1000)
    assert claim(functions).status == 402
    assert refunds(functions) == ()


LATER = "0x" + "ff" * 32


def signed_often(count: int) -> Valid:
    """A payment in a transaction in which its payer used this many signed transfers."""
    keys = tuple(f"auth:{PAYER}:0x{n:064x}" for n in range(count))
    return Valid(PAYER, 400_000, now_ms() // 1000, HASH, keys)


def test_a_payment_with_more_names_than_can_be_claimed_is_for_a_human(functions: Functions) -> None:
    functions.call(QUERY)
    functions.chain.verdicts[HASH] = signed_often(AUTHORIZATIONS_MAX + 1)
    answer = claim(functions)
    assert (answer.status, answer.body["code"]) == (409, "PAYMENT_OF_TOO_MANY_TRANSFERS")
    assert [(r.payer, r.amount_micro, r.state) for r in refunds(functions)] == [(PAYER, 400_000, "open")]
    assert owed_rows(functions) == ()
    functions.chain.verdicts[HASH] = signed_often(AUTHORIZATIONS_MAX)
    assert claim(functions).status == 200


def test_a_row_that_can_never_be_written_keeps_no_other_waiting(functions: Functions) -> None:
    died(functions, pool(functions))
    died(functions, pool(functions), tx_hash=LATER)
    functions.chain.verdicts[HASH] = signed_often(50)
    report = serve_owed(functions.sale_wiring)
    assert (report["served"], report["refundable"], report["failures"]) == (1, 1, [])
    assert (owed_rows(functions), len(refunds(functions))) == ((), 1)


def test_a_fault_that_nobody_foresaw_counts_against_its_own_row(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    owed = died(functions, pool(functions))
    died(functions, pool(functions), tx_hash=LATER)
    judge = functions.chain.judge

    def broken(payment: Any, *rest: Any) -> Any:
        if payment.tx_hash == HASH:
            raise KeyError("https://node.example/key-of-ours")
        return judge(payment, *rest)

    monkeypatch.setattr(functions.chain, "judge", broken)
    report = serve_owed(functions.sale_wiring)
    assert (report["served"], report["failures"]) == (1, ["KeyError"])
    assert owed_rows(functions) == (replace(owed, tries=1),)


def test_what_no_node_can_tell_for_a_day_is_for_a_human_and_still_serves_its_payer(
    functions: Functions,
) -> None:
    functions.call(QUERY)
    died(functions, pool(functions), age_ms=UNKNOWN_MAX_MS)
    paid, functions.chain.verdicts[HASH] = functions.chain.verdicts[HASH], Unknown(UnknownReason.NOT_FOUND)
    report = serve_owed(functions.sale_wiring)
    assert (report["unknown"], report["refundable"], owed_rows(functions)) == (1, 1, ())
    assert [(r.amount_micro, UnknownReason.NOT_FOUND.value in r.reason) for r in refunds(functions)] == [
        (0, True)
    ]
    functions.chain.verdicts[HASH] = paid
    assert claim(functions).status == 200
    assert refunds(functions) == ()


def test_what_is_not_on_sale_any_more_becomes_refundable(functions: Functions) -> None:
    died(functions, replace(pool(functions), tier="removed"), tries=TRIES_MAX - 2)
    assert serve_owed(functions.sale_wiring)["refundable"] == 0
    assert serve_owed(functions.sale_wiring)["refundable"] == 1
    (found,) = refunds(functions)
    assert (found.payer, found.amount_micro) == (PAYER, 400_000)


def test_what_a_human_has_already_is_owed_no_more(functions: Functions) -> None:
    owed = died(functions, replace(pool(functions), tier="removed"), tries=TRIES_MAX - 1)
    known = Refund("base", HASH, HASH, PAYER, 400_000, "seen before", owed.seen_at_ms)
    assert functions.dynamo.run(owed_table.refund(SALES, known))
    serve_owed(functions.sale_wiring)
    assert (owed_rows(functions), refunds(functions)) == ((), (known,))


def test_what_its_buyer_was_served_meanwhile_is_not_given_back(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions.call(QUERY)
    died(functions, pool(functions), tries=TRIES_MAX - 1)
    monkeypatch.setattr(OwedRun, "_act", served_by_its_buyer(functions))
    assert serve_owed(functions.sale_wiring)["refundable"] == 0
    assert (owed_rows(functions), refunds(functions)) == ((), ())
    assert claim(functions).status == 200


def served_by_its_buyer(functions: Functions) -> Any:
    """The job's last try fails, and in the same moment the buyer asks again."""

    def act(*_: object) -> None:
        assert claim(functions).status == 200
        raise NoDevice("port: no device is free")

    return act


def test_a_row_of_another_version_stops_no_other(functions: Functions) -> None:
    order = pool(functions)
    died(functions, order)
    newer = owed_table._owed_row(died(functions, order, tx_hash=LATER))
    newer["order"] |= {"coupon": "x"}
    strange = {**newer, "sk": "base#strange", "key": "strange", "order": {**newer["order"], "product": "car"}}
    for row in (newer, strange):
        functions.dynamo.run(put(SALES, row))
    report = serve_owed(functions.sale_wiring)
    assert (report["served"], report["failures"]) == (2, ["unreadable: ValueError"])
    assert "owed_unreadable" in {i.kind for i in incidents(functions) if i.closed_at_ms is None}
    headers = {"x-api-key": functions.keys.admin}
    listed = functions.call("/v1/x402/admin/owed", headers=headers).body["owed"]
    assert listed == [{"network": "base", "key": "strange", "unreadable": "ValueError"}]
    functions.dynamo.run(owed_table.forget(SALES, "base", "strange"))
    serve_owed(functions.sale_wiring)
    assert not [i for i in incidents(functions) if i.closed_at_ms is None]


def test_a_run_ends_in_time_and_leaves_the_rest(functions: Functions) -> None:
    for n in range(3):
        died(functions, pool(functions), tx_hash=f"0x{n:064x}")
    wiring, began, spent = functions.sale_wiring, now_ms(), list[int]()

    def served(_: Order) -> Any:
        spent.append(RUN_MAX_MS)
        return read_prices(wiring.live.get("prices"))

    run = OwedRun(wiring.counter, f"{PREFIX}guard", served, lambda: began + sum(spent))
    first = run.run()
    assert (first.late, first.served, first.left) == (3, 1, 2)
    assert [run.run().served, run.run().served, owed_rows(functions)] == [1, 1, ()]


def test_the_kill_switch_stops_the_job(functions: Functions) -> None:
    from shared.guard.model import Switch
    from shared.guard.table import set_switch

    died(functions, pool(functions))
    functions.dynamo.run(set_switch(f"{PREFIX}guard", Switch(stopped=True)))
    assert serve_owed(functions.sale_wiring) == {"refused": "kill_switch_on"}
