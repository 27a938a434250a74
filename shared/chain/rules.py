"""What counts as a payment, given what a node answered. Pure; asset and recipient are pinned by the caller.

EVM: Transfer logs of the pinned contract to the pinned recipient in a successful, canonical, confirmed transaction.
Solana: the balance change of token accounts that our wallet owns, of the pinned mint, under the legacy Token program.
Source: ERC-20 (EIP-20), execution-apis `eth_getTransactionReceipt`, Solana RPC `getTransaction` (jsonParsed).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.chain.model import Invalid, InvalidReason, Unknown, UnknownReason, Valid, Verdict

TRANSFER_TOPIC: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
TOKEN_PROGRAM: Final = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"  # noqa: S105 - a public program id
USDC_DECIMALS: Final = 6


def judge_evm(
    receipt: Mapping[str, Any] | None,
    block: Mapping[str, Any] | None,
    head: int,
    *,
    contract: str,
    recipient: str,
    confirmations: int,
) -> Verdict:
    """The verdict on a receipt; `block` is the canonical block at the receipt's height, `head` the newest height."""
    if receipt is None:
        return Unknown(UnknownReason.NOT_FOUND)
    number = receipt.get("blockNumber")
    if number is None or block is None:
        return Unknown(UnknownReason.NOT_CONFIRMED)
    if block["hash"].lower() != receipt["blockHash"].lower():
        return Unknown(UnknownReason.NOT_CANONICAL)
    if head - _number(number) + 1 < confirmations:
        return Unknown(UnknownReason.NOT_CONFIRMED)
    if _number(receipt["status"]) != 1:
        return Invalid(InvalidReason.FAILED)
    paid: dict[str, int] = {}
    for log in receipt["logs"]:
        payer = _evm_transfer(log, contract.lower(), recipient.lower())
        if payer is not None:
            paid[payer] = paid.get(payer, 0) + _number(log["data"])
    return _one_payer(paid, _number(block["timestamp"]))


def _evm_transfer(log: Mapping[str, Any], contract: str, recipient: str) -> str | None:
    """The payer of a log that is a transfer of the pinned asset to us."""
    topics = [str(t).lower() for t in log["topics"]]
    if (
        log.get("removed")
        or log["address"].lower() != contract
        or len(topics) != 3
        or topics[0] != TRANSFER_TOPIC
    ):
        return None
    payer, to = "0x" + topics[1][-40:], "0x" + topics[2][-40:]
    return payer if to == recipient and payer != recipient else None


def judge_solana(answer: Mapping[str, Any] | None, *, mint: str, owner: str) -> Verdict:
    """The verdict on a `getTransaction` answer; absent balances are zero."""
    if answer is None or answer.get("meta") is None:
        return Unknown(UnknownReason.NOT_FOUND)
    meta = answer["meta"]
    if meta.get("err") is not None:
        return Invalid(InvalidReason.FAILED)
    before, after = (
        _balances(meta.get("preTokenBalances"), mint),
        _balances(meta.get("postTokenBalances"), mint),
    )
    changes: dict[str, int] = {}
    for key in before.keys() | after.keys():
        holder = after.get(key, before.get(key, ("", 0)))[0]
        change = after.get(key, ("", 0))[1] - before.get(key, ("", 0))[1]
        changes[holder] = changes.get(holder, 0) + change
    received = changes.pop(owner, 0)
    payers = {holder: -change for holder, change in changes.items() if change < 0}
    if received <= 0 or not payers:
        return Invalid(InvalidReason.NO_TRANSFER)
    if len(payers) > 1:
        return Invalid(InvalidReason.SEVERAL_PAYERS)
    return Valid(next(iter(payers)), received, int(answer.get("blockTime") or 0))


def _balances(rows: Sequence[Mapping[str, Any]] | None, mint: str) -> dict[int, tuple[str, int]]:
    """Account index -> (owner, amount) of the mint's accounts under the legacy Token program."""
    kept = (r for r in rows or () if r["mint"] == mint and r.get("programId", TOKEN_PROGRAM) == TOKEN_PROGRAM)
    return {
        int(r["accountIndex"]): (str(r.get("owner", "")), int(r["uiTokenAmount"]["amount"])) for r in kept
    }


def _one_payer(paid: Mapping[str, int], at_s: int) -> Verdict:
    given = {payer: amount for payer, amount in paid.items() if amount > 0}
    if not given:
        return Invalid(InvalidReason.NO_TRANSFER)
    if len(given) > 1:
        return Invalid(InvalidReason.SEVERAL_PAYERS)
    payer, amount = next(iter(given.items()))
    return Valid(payer, amount, at_s)


def _number(value: Any) -> int:
    """A quantity as a node writes it: hex text, or a number already."""
    return int(value, 16) if isinstance(value, str) else int(value)
