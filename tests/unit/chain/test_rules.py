"""What counts as a payment, and what never does."""

from typing import Any

import pytest

from shared.chain.model import (
    SHALLOW,
    Authorization,
    Depth,
    Invalid,
    InvalidReason,
    Reading,
    Several,
    Unknown,
    UnknownReason,
    Valid,
    Verdict,
)
from shared.chain.rules import (
    PAYERS_MAX,
    TOKEN_PROGRAM,
    TRANSFER_TOPIC,
    USED_TOPIC,
    judge_authorization,
    judge_evm,
    judge_solana,
)

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
US = "0x" + "11" * 20
PAYER = "0x" + "aa" * 20
OTHER = "0x" + "bb" * 20


def topic(address: str) -> str:
    return "0x" + "00" * 12 + address[2:]


def log(amount: int = 400_000, **change: Any) -> dict[str, Any]:
    sender, receiver = change.pop("sender", PAYER), change.pop("receiver", US)
    row = {
        "address": USDC.lower(),
        "topics": [TRANSFER_TOPIC, topic(sender), topic(receiver)],
        "data": "0x" + amount.to_bytes(32, "big").hex(),
        "removed": False,
    }
    return row | change


def receipt(*logs: dict[str, Any], **change: Any) -> dict[str, Any]:
    found = {"blockNumber": "0xa", "blockHash": "0xBEEF", "status": "0x1", "transactionHash": HASH}
    return found | {"logs": list(logs)} | change


HASH = "0x" + "ab" * 32
BLOCK = {"hash": "0xbeef", "number": "0xa", "timestamp": "0x6b49d200"}


def evm(
    given: dict[str, Any] | None, block: dict[str, Any] | None = BLOCK, head: int = 10, confirmations: int = 1
) -> Reading:
    depths = (Depth(None, confirmations),)
    return judge_evm(given, block, head, contract=USDC, recipients={US}, depths=depths)


def valid(amount: int, *authorizations: str) -> Valid:
    return Valid(PAYER, amount, 0x6B49D200, HASH, authorizations)


def test_a_transfer_to_us_is_a_payment_by_its_sender() -> None:
    assert evm(receipt(log())) == valid(400_000)


def test_several_payers_are_told_apart() -> None:
    found = evm(receipt(log(5), log(7, sender=OTHER), log(2)))
    assert found == Several((valid(7), Valid(OTHER, 7, 0x6B49D200, HASH)))
    assert isinstance(found, Several)
    assert (found.of(OTHER), found.of(US)) == (found.payments[1], Invalid(InvalidReason.NO_TRANSFER))
    many = [log(1, sender="0x" + f"{n:040x}") for n in range(PAYERS_MAX + 1)]
    assert evm(receipt(*many)) == Invalid(InvalidReason.SEVERAL_PAYERS, len(many))
    given = transaction([balance(1, "a", 2), balance(3, "b", 3)], [balance(2, "us", 5)])
    assert solana(given) == Several((Valid("a", 2, 1_800_000_000), Valid("b", 3, 1_800_000_000)))


TAG = "ab" * 32
TAGGED = {"to": USDC, "from": PAYER, "input": "0xA9059CBB" + "00" * 64 + TAG}


@pytest.mark.parametrize(
    ("change", "tagged"),
    [
        ({}, True),
        ({"from": OTHER}, False),
        ({"to": OTHER}, False),
        ({"to": None}, False),
        ({"input": "0xa9059cbb" + "00" * 64}, False),
        ({"input": "0xa9059cbb" + "00" * 64 + TAG + "00"}, False),
        ({"input": "0xa9059cbb" + "00" * 63 + TAG}, False),
        ({"input": "0x23b872dd" + "00" * 64 + TAG}, False),
    ],
)
def test_a_tag_counts_behind_the_payers_own_plain_transfer(change: dict[str, Any], tagged: bool) -> None:
    found = judge_evm(
        receipt(log()),
        BLOCK,
        10,
        contract=USDC,
        recipients={US},
        depths=SHALLOW,
        transaction=TAGGED | change,
        tag=TAG,
    )
    assert isinstance(found, Valid)
    assert found.tagged is tagged


def test_several_transfers_of_one_payer_add_up() -> None:
    assert evm(receipt(log(1), log(2), log(9, receiver=OTHER))) == valid(3)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (receipt(log(address=OTHER)), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(receiver=OTHER)), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(sender=US)), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(0)), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(removed=True)), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(topics=[TRANSFER_TOPIC, topic(PAYER)])), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(topics=["0x" + "0" * 64, topic(PAYER), topic(US)])), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(), Invalid(InvalidReason.NO_TRANSFER)),
        (receipt(log(), status="0x0"), Invalid(InvalidReason.FAILED)),
        (None, Unknown(UnknownReason.NOT_FOUND)),
        (receipt(log(), blockNumber=None), Unknown(UnknownReason.NOT_CONFIRMED)),
        (receipt(log(), blockHash="0xdead"), Unknown(UnknownReason.NOT_CANONICAL)),
    ],
)
def test_everything_else_is_told_for_what_it_is(given: dict[str, Any] | None, verdict: Verdict) -> None:
    assert evm(given) == verdict


def test_a_payment_waits_for_its_confirmations() -> None:
    assert evm(receipt(log()), head=11, confirmations=3) == Unknown(UnknownReason.NOT_CONFIRMED)
    assert evm(receipt(log()), head=12, confirmations=3) == valid(400_000)
    assert evm(receipt(log()), block=None) == Unknown(UnknownReason.NOT_CONFIRMED)


def test_larger_amounts_wait_for_more() -> None:
    bands = (Depth(100, 1), Depth(1000, 3), Depth(None, 9))
    for amount, deep_enough in ((100, 10), (101, 12), (1000, 12), (1001, 18)):
        given = receipt(log(amount))
        for head, known in ((deep_enough - 1, False), (deep_enough, True)):
            verdict = judge_evm(given, BLOCK, head, contract=USDC, recipients={US}, depths=bands)
            assert isinstance(verdict, Valid) == known, (amount, head, verdict)


def test_a_block_at_another_height_proves_nothing() -> None:
    other = BLOCK | {"number": "0xb"}
    assert evm(receipt(log()), block=other) == Unknown(UnknownReason.NOT_CANONICAL)


NONCE = "0x" + "77" * 32
AUTHORIZATION = Authorization(PAYER, US, 400_000, 0, 2**40, NONCE, "0x" + "00" * 65)


def used(payer: str = PAYER, nonce: str = NONCE, **change: Any) -> dict[str, Any]:
    row = {"address": USDC.lower(), "topics": [USED_TOPIC, topic(payer), nonce], "data": "0x"}
    return row | {"removed": False} | change


def judged(*logs: dict[str, Any], **change: Any) -> Verdict:
    given = receipt(*logs, **change)
    return judge_authorization(given, BLOCK, 10, AUTHORIZATION, contract=USDC, depths=SHALLOW)


def test_an_authorization_counts_by_the_transfer_right_after_its_use() -> None:
    assert judged(used(), log()) == valid(400_000, AUTHORIZATION.key)
    several = judged(log(5), used(OTHER), log(sender=OTHER), used(), log())
    assert several == valid(400_000, AUTHORIZATION.key)


@pytest.mark.parametrize(
    "logs",
    [
        (used(), log(receiver=OTHER), log()),
        (log(), used()),
        (used(), log(399_999)),
        (used(nonce="0x" + "78" * 32), log()),
        (used(address=OTHER), log()),
        (used(), log(address=OTHER)),
        (used(removed=True), log()),
        (used(OTHER), log()),
    ],
)
def test_a_nonce_that_was_spent_on_something_else_paid_us_nothing(logs: tuple[dict[str, Any], ...]) -> None:
    assert judged(*logs) == Invalid(InvalidReason.AUTH_USED_OTHERWISE)


def test_a_hash_names_the_authorizations_that_it_spends() -> None:
    assert evm(receipt(used(), log(), used(OTHER))) == valid(400_000, AUTHORIZATION.key)
    assert judged(used(), log(), status="0x0") == Invalid(InvalidReason.AUTH_REVERTED)


MINT = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"


def balance(index: int, owner: str, amount: int, **change: Any) -> dict[str, Any]:
    row = {"accountIndex": index, "mint": MINT, "owner": owner, "programId": TOKEN_PROGRAM}
    return row | {"uiTokenAmount": {"amount": str(amount)}} | change


def transaction(before: list[dict[str, Any]], after: list[dict[str, Any]], **meta: Any) -> dict[str, Any]:
    return {
        "blockTime": 1_800_000_000,
        "transaction": {"message": {"accountKeys": [{"pubkey": f"account{n}"} for n in range(4)]}},
        "meta": {"err": None, "preTokenBalances": before, "postTokenBalances": after} | meta,
    }


def solana(answer: dict[str, Any] | None) -> Reading:
    return judge_solana(answer, mint=MINT, ours={"account2": "us"})


def test_our_balance_that_rose_is_a_payment_of_whose_fell() -> None:
    given = transaction(
        [balance(1, "payer", 900), balance(2, "us", 5)], [balance(1, "payer", 500), balance(2, "us", 405)]
    )
    assert solana(given) == Valid("payer", 400, 1_800_000_000)


def test_a_payer_paid_no_more_than_it_lost_though_more_was_minted_to_us() -> None:
    given = transaction([balance(1, "payer", 900)], [balance(1, "payer", 899), balance(2, "us", 400)])
    assert solana(given) == Valid("payer", 1, 1_800_000_000)


def test_a_balance_that_was_not_there_was_zero() -> None:
    given = transaction([balance(1, "payer", 400)], [balance(1, "payer", 0), balance(2, "us", 400)])
    assert solana(given) == Valid("payer", 400, 1_800_000_000)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, Unknown(UnknownReason.NOT_FOUND)),
        ({"meta": None}, Unknown(UnknownReason.NOT_FOUND)),
        (transaction([], []) | {"blockTime": None}, Unknown(UnknownReason.NOT_CONFIRMED)),
        (transaction([], [], err={"x": 1}), Invalid(InvalidReason.FAILED)),
        (transaction([], []), Invalid(InvalidReason.NO_TRANSFER)),
        (
            transaction([], [], preTokenBalances=None, postTokenBalances=None),
            Invalid(InvalidReason.NO_TRANSFER),
        ),
        (
            transaction([balance(1, "payer", 4, mint="x")], [balance(2, "us", 4, mint="x")]),
            Invalid(InvalidReason.NO_TRANSFER),
        ),
        (
            transaction(
                [balance(1, "payer", 4, programId="token2022")], [balance(2, "us", 4, programId="token2022")]
            ),
            Invalid(InvalidReason.NO_TRANSFER),
        ),
        (transaction([balance(2, "us", 4)], [balance(3, "us", 4)]), Invalid(InvalidReason.NO_TRANSFER)),
        (
            transaction([balance(1, "a", 2), balance(3, "b", 3)], [balance(2, "us", 4), balance(0, "c", 1)]),
            Invalid(InvalidReason.SEVERAL_PAYERS, 4),
        ),
        (transaction([balance(1, "a", 4)], [balance(3, "us", 4)]), Invalid(InvalidReason.NO_TRANSFER)),
    ],
)
def test_everything_else_on_solana_is_told_for_what_it_is(
    answer: dict[str, Any] | None, verdict: Verdict
) -> None:
    assert solana(answer) == verdict


def test_large_amounts_on_solana_wait_to_be_finalized() -> None:
    bands = (Depth(399), Depth(None, commitment="finalized"))
    given = transaction([balance(1, "payer", 400)], [balance(1, "payer", 0), balance(2, "us", 400)])
    pinned: Any = {"mint": MINT, "ours": {"account2": "us"}}
    early = judge_solana(given, **pinned, commitment="confirmed", depths=bands)
    assert early == Unknown(UnknownReason.NOT_CONFIRMED)
    assert isinstance(judge_solana(given, **pinned, depths=bands), Valid)
