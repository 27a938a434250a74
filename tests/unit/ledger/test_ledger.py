"""Transfers are immutable and balance, whatever is posted in whatever order."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.kernel.ids import AccountId
from shared.kernel.money import FemtoUsdc
from shared.ledger.model import BANDWIDTH, Balance, Posted, Transfer, supplier
from shared.ledger.service import trial_balance
from shared.ledger.table import get_balance, get_transfer, post, postings
from shared.runtime.dynamo import SyncDynamo

TABLE = "psx-test-ledger"


def transfer(ident: str, amount: int, account: str = "a") -> Transfer:
    return Transfer(
        ident, BANDWIDTH, supplier(AccountId(account)), FemtoUsdc(amount), "accrual", 1_800_000_000_000
    )


def test_a_transfer_moves_its_amount_once(dynamo: SyncDynamo) -> None:
    assert dynamo.run(post(TABLE, transfer("t1", 7))) is Posted.CREATED
    assert dynamo.run(post(TABLE, transfer("t1", 9))) is Posted.EXISTS
    assert dynamo.run(get_transfer(TABLE, "t1")) == transfer("t1", 7)
    assert dynamo.run(get_balance(TABLE, "supplier:a")) == Balance("supplier:a", credits=FemtoUsdc(7))
    assert dynamo.run(get_balance(TABLE, "supplier:a")).owed == 7
    assert dynamo.run(get_balance(TABLE, BANDWIDTH)).owed == -7
    assert [row[1:] for row in dynamo.run(postings(TABLE, "supplier:a", 10)).rows] == [("credits", 7)]


def test_an_account_nobody_posted_to_has_nothing(dynamo: SyncDynamo) -> None:
    assert dynamo.run(get_balance(TABLE, "supplier:x")) == Balance("supplier:x")
    assert trial_balance(dynamo, TABLE) == (0, 0)


@pytest.mark.parametrize("amount", [0, -1])
def test_amounts_are_positive(amount: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        transfer("t", amount)


def test_both_sides_differ() -> None:
    with pytest.raises(ValueError, match="two accounts"):
        Transfer("t", "a", "a", FemtoUsdc(1), "x", 0)


@pytest.mark.slow  # over a second of processor time
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**9),
    st.lists(st.tuples(st.sampled_from("rstu"), st.integers(1, 10**30), st.sampled_from("ab")), max_size=8),
)
def test_debits_equal_credits_after_any_posts(
    dynamo: SyncDynamo, run: int, posts: list[tuple[str, int, str]]
) -> None:
    before = trial_balance(dynamo, TABLE)
    first: dict[str, int] = {}
    for ident, amount, account in posts:
        name = f"{run}-{ident}"
        known = dynamo.run(get_transfer(TABLE, name))
        answer = dynamo.run(post(TABLE, transfer(name, amount, account)))
        assert answer is (Posted.EXISTS if known else Posted.CREATED)
        if known is None:
            first[ident] = amount
    debits, credits = trial_balance(dynamo, TABLE)
    assert debits == credits == before[0] + sum(first.values())
