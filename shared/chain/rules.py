"""What counts as a payment, given what a node answered. Pure; asset and recipient are pinned by the caller.

EVM: Transfer logs of the pinned contract to the pinned recipient in a successful, canonical, confirmed transaction.
Solana: the balance change of token accounts that our wallet owns, of the pinned mint, under the legacy Token program.
Source: ERC-20 (EIP-20), EIP-3009, execution-apis `eth_getTransactionReceipt`, Solana RPC `getTransaction` (jsonParsed).
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

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

TRANSFER_TOPIC: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
USED_TOPIC: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
CANCELED_TOPIC: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
TOKEN_PROGRAM: Final = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"  # noqa: S105 - a public program id
MEMO_PROGRAMS: Final = frozenset(
    {"MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr", "Memo1UhkJRfHyvLMcVucJwxXeuD728EqVDDwQDxFMNo"}
)
USDC_DECIMALS: Final = 6
PAYERS_MAX: Final = 16
"""Payers of one transaction that are told apart; each may be a contract wallet that must be asked."""
AUTHORIZATIONS_MAX: Final = 16
"""Authorizations of one payer in one transaction that are claimed one by one: the mint writes two rows for each."""
_TAG: Final = re.compile(r"[0-9a-f]{64}")
_TRANSFER_CALL: Final = re.compile(r"0xa9059cbb[0-9a-f]{128}([0-9a-f]{64})")
"""`transfer(address,uint256)` and 32 bytes more, which the contract does not read."""


def depth_for(amount_micro: int, depths: Sequence[Depth]) -> Depth:
    """What is asked of a payment of this amount: the first band that reaches it, else the last one."""
    reaching = (d for d in depths if d.up_to_micro is None or amount_micro <= d.up_to_micro)
    return next(reaching, depths[-1])


def deepest(depths: Sequence[Depth]) -> int:
    """How many nodes must say alike what is as final as money that is gone: as many as any amount needs."""
    return max(depth.quorum for depth in depths)


def judge_evm(
    receipt: Mapping[str, Any] | None,
    block: Mapping[str, Any] | None,
    head: int,
    *,
    contract: str,
    recipients: Collection[str],
    depths: Sequence[Depth],
    transaction: Mapping[str, Any] | None = None,
    tag: str = "",
) -> Reading:
    """The verdict on a receipt; `block` is the canonical block at the receipt's height, `head` the newest height.

    `recipients` in lower case: any of our addresses. `transaction` tells whether its sender tagged it.
    """
    unsettled = _unsettled(receipt, block, head, min(d.confirmations for d in depths))
    if unsettled is not None or receipt is None or block is None:
        return unsettled or Unknown(UnknownReason.NOT_FOUND)
    if _number(receipt["status"]) != 1:
        return Invalid(InvalidReason.FAILED)
    paid: dict[str, int] = {}
    for log in receipt["logs"]:
        payer = _evm_transfer(log, contract.lower(), recipients)
        if payer is not None:
            paid[payer] = paid.get(payer, 0) + _number(log["data"])
    wanted = depth_for(sum(paid.values()), depths).confirmations
    tagger, found = _tag_of(transaction, contract.lower())
    tx_hash, at_s = str(receipt["transactionHash"]).lower(), _number(block["timestamp"])
    given = [
        Valid(
            payer,
            amount,
            at_s,
            tx_hash,
            _authorizations(receipt["logs"], contract.lower(), payer),
            payer == tagger and found == tag,
            payer == tagger,
        )
        for payer, amount in paid.items()
        if amount > 0
    ]
    verdict = _reading(given)
    return verdict if isinstance(verdict, Invalid) else _unsettled(receipt, block, head, wanted) or verdict


def _reading(given: Sequence[Valid]) -> Valid | Several | Invalid:
    if not given:
        return Invalid(InvalidReason.NO_TRANSFER)
    if len(given) > PAYERS_MAX:
        return Invalid(InvalidReason.SEVERAL_PAYERS, sum(paid.amount_micro for paid in given))
    return given[0] if len(given) == 1 else Several(tuple(given))


def _tag_of(transaction: Mapping[str, Any] | None, contract: str) -> tuple[str, str]:
    """Who put a tag behind a plain transfer of their own, and which; empty when nobody did.

    Only the sender of the transaction can have chosen its calldata, so only the sender's own money is tagged by it.
    """
    if transaction is None or str(transaction["to"] or "").lower() != contract:
        return "", ""
    call = _TRANSFER_CALL.fullmatch(str(transaction["input"]).lower())
    return (str(transaction["from"]).lower(), call.group(1)) if call else ("", "")


def judge_authorization(
    receipt: Mapping[str, Any] | None,
    block: Mapping[str, Any] | None,
    head: int,
    authorization: Authorization,
    *,
    contract: str,
    depths: Sequence[Depth],
) -> Verdict:
    """The verdict on the transaction that used an authorization, whoever sent it.

    The contract writes AuthorizationUsed and, right after it, the transfer. Only that pair counts: a payer may sign two
    transfers with one nonce, and one of them is not to us.
    """
    wanted = depth_for(authorization.amount_micro, depths).confirmations
    unsettled = _unsettled(receipt, block, head, wanted)
    if unsettled is not None or receipt is None or block is None:
        return unsettled or Unknown(UnknownReason.NOT_FOUND)
    if _number(receipt["status"]) != 1:
        return Invalid(InvalidReason.AUTH_REVERTED)
    logs = list(receipt["logs"])
    for used, moved in pairwise(logs):
        if _authorization_key(used, contract.lower(), USED_TOPIC) != authorization.key:
            continue
        payer = _evm_transfer(moved, contract.lower(), (authorization.recipient,))
        if payer == authorization.payer and _number(moved["data"]) == authorization.amount_micro:
            tx_hash = str(receipt["transactionHash"]).lower()
            at_s = _number(block["timestamp"])
            return Valid(payer, authorization.amount_micro, at_s, tx_hash, (authorization.key,))
    return Invalid(InvalidReason.AUTH_USED_OTHERWISE)


def _unsettled(
    receipt: Mapping[str, Any] | None, block: Mapping[str, Any] | None, head: int, confirmations: int
) -> Unknown | None:
    """Why a receipt cannot be judged yet: it, or its block, is not known, not canonical or not deep enough."""
    if receipt is None:
        return Unknown(UnknownReason.NOT_FOUND)
    number = receipt.get("blockNumber")
    if number is None or block is None:
        return Unknown(UnknownReason.NOT_CONFIRMED)
    if block["hash"].lower() != receipt["blockHash"].lower() or block["number"] != number:
        return Unknown(UnknownReason.NOT_CANONICAL)
    if head - _number(number) + 1 < confirmations:
        return Unknown(UnknownReason.NOT_CONFIRMED)
    return None


def _evm_transfer(log: Mapping[str, Any], contract: str, recipients: Collection[str]) -> str | None:
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
    return payer if to in recipients and payer not in recipients else None


def _authorization_key(log: Mapping[str, Any], contract: str, event: str) -> str:
    """The key of the authorization that a log of the pinned contract names; empty for any other log."""
    topics = [str(t).lower() for t in log["topics"]]
    named = not log.get("removed") and log["address"].lower() == contract and len(topics) == 3
    return f"auth:0x{topics[1][-40:]}:{topics[2]}" if named and topics[0] == event else ""


def _authorizations(logs: Sequence[Mapping[str, Any]], contract: str, payer: str) -> tuple[str, ...]:
    keys = (_authorization_key(log, contract, USED_TOPIC) for log in logs)
    return tuple(dict.fromkeys(k for k in keys if k.startswith(f"auth:{payer}:")))


def judge_solana(
    answer: Mapping[str, Any] | None,
    *,
    mint: str,
    ours: Mapping[str, str],
    commitment: str = "finalized",
    depths: Sequence[Depth] = SHALLOW,
    tags: Sequence[str] = (),
) -> Reading:
    """The verdict on a `getTransaction` answer that the chain holds at `commitment`; absent balances are zero.

    `ours`: our associated token accounts and whose they are; what goes anywhere else was not paid to us.
    `tags`: the tag as a memo
    and as an address.
    """
    if answer is None or answer.get("meta") is None:
        return Unknown(UnknownReason.NOT_FOUND)
    if not answer.get("blockTime"):  # who asked before it was paid cannot be told without it
        return Unknown(UnknownReason.NOT_CONFIRMED)
    meta = answer["meta"]
    if meta.get("err") is not None:
        return Invalid(InvalidReason.FAILED)
    message = answer["transaction"]["message"]
    keys = [str(k["pubkey"]) for k in message["accountKeys"]]
    before, after = (
        _balances(meta.get("preTokenBalances"), mint),
        _balances(meta.get("postTokenBalances"), mint),
    )
    received, paid = 0, dict[str, int]()
    for index in sorted(before.keys() | after.keys()):
        holder = after.get(index, before.get(index, ("", 0)))[0]
        change = after.get(index, ("", 0))[1] - before.get(index, ("", 0))[1]
        if ours.get(keys[index]) == holder:
            received += change
        elif holder not in ours.values():
            paid[holder] = paid.get(holder, 0) - change
    payers = {holder: amount for holder, amount in paid.items() if amount > 0}
    if received <= 0 or not payers:
        return Invalid(InvalidReason.NO_TRANSFER)
    if (
        len(payers) > 1 and sum(payers.values()) != received
    ):  # others were paid too: nobody can say who paid us
        return Invalid(InvalidReason.SEVERAL_PAYERS, received)
    if depth_for(received, depths).commitment == "finalized" and commitment != "finalized":
        return Unknown(UnknownReason.NOT_CONFIRMED)
    at_s, memos = int(answer["blockTime"]), list(_memos(message))
    signers = frozenset(str(k["pubkey"]) for k in message["accountKeys"] if k.get("signer"))
    is_tagged = not set(tags).isdisjoint((*keys, *memos))
    looks_tagged = is_tagged or any(map(_TAG.fullmatch, memos))
    # Who lost less than we got did not pay the rest: it was minted to us in the same transaction.
    return _reading(
        [
            Valid(
                p,
                min(a, received),
                at_s,
                tagged=is_tagged and p in signers,
                has_tag=looks_tagged and p in signers,
            )
            for p, a in payers.items()
        ]
    )


def _memos(message: Mapping[str, Any]) -> Iterator[str]:
    for instruction in message.get("instructions", ()):
        if instruction.get("programId") in MEMO_PROGRAMS:
            yield str(instruction.get("parsed"))


def _balances(rows: Sequence[Mapping[str, Any]] | None, mint: str) -> dict[int, tuple[str, int]]:
    """Account index -> (owner, amount) of the mint's accounts under the legacy Token program."""
    kept = (r for r in rows or () if r["mint"] == mint and r.get("programId", TOKEN_PROGRAM) == TOKEN_PROGRAM)
    return {
        int(r["accountIndex"]): (str(r.get("owner", "")), int(r["uiTokenAmount"]["amount"])) for r in kept
    }


def _number(value: Any) -> int:
    """A quantity as a node writes it: hex text, or a number already."""
    return int(value, 16) if isinstance(value, str) else int(value)
