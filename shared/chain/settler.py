"""Sends signed authorizations to the chain from a wallet that holds gas and nothing else, and tells what became of them.

The wallet's nonces are given by the caller, who keeps them; what is signed here is stored before it is sent, so sending is
repeatable. Which transaction used an authorization is asked of the contract's own log: ours, a replacement, or anybody's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.chain.eip3009 import balance_calldata, state_calldata, transfer_calldata, typed_data
from shared.chain.model import (
    Authorization,
    Depth,
    Invalid,
    InvalidReason,
    ReadFailed,
    Rejected,
    Unknown,
    UnknownReason,
    Verdict,
)
from shared.chain.nodes import Nodes
from shared.chain.reader import evm_call, read_receipt
from shared.chain.rules import CANCELED_TOPIC, USED_TOPIC, judge_authorization

TRANSFER_GAS: Final = 200_000
PLAIN_GAS: Final = 21_000
TIP_WEI: Final = 1_000_000
REPLACEMENT_PERCENT: Final = 125
"""A node takes another transaction with the same nonce only when it pays at least a tenth more."""
FEE_MAX_WEI: Final = 50 * 10**9
"""What one unit of gas may cost, whoever waits: a hundredth of an ether per transfer."""
LOG_RANGE_BLOCKS: Final = 2_000
"""How far back a foreign transaction is looked for: an hour of two-second blocks, and what public nodes allow."""
GAS_FLOOR_WEI: Final = 10**14
GAS_FLOOR_TRANSFERS: Final = 20
"""The wallet holds enough for so many transfers at the present fee, and never less than the floor, or the rail closes."""
_SENT_ALREADY: Final = (
    "already known",
    "already imported",
    "nonce too low",
    "underpriced",
    "already in mempool",
)


@dataclass(frozen=True, slots=True)
class SignedTransfer:
    """A transaction of the gas wallet as it is stored: raw bytes in hex, and its hash."""

    raw: str
    tx_hash: str
    gas_nonce: int
    max_fee_wei: int


class EvmSettler:
    """One gas wallet on one chain."""

    def __init__(self, nodes: Nodes[Any], chain_id: int, contract: str, gas_key: bytes) -> None:
        from eth_account import Account  # noqa: PLC0415 - loaded with the chain

        self._nodes = nodes
        self._chain_id = chain_id
        self._contract = contract
        self._wallet = Account.from_key(gas_key)
        self.address: str = self._wallet.address.lower()

    def refused(
        self, authorization: Authorization, quorum: int, under_way_micro: int = 0
    ) -> InvalidReason | UnknownReason | None:
        """Why the chain would not take it now: signature, nonce, balance, and then the contract's own word.

        A balance that holds the amount, but not with it what other transfers of the payer will take, is UNKNOWN. As many
        nodes must say each alike: a refusal is told to its buyer as "no money has moved". AUTH_USED_OTHERWISE means
        used or canceled: `outcome` tells by what. Raises ReadFailed.
        """
        if not self.signed_by_payer(authorization):
            return InvalidReason.AUTH_SIGNATURE
        if self.is_used(authorization, quorum):
            return InvalidReason.AUTH_USED_OTHERWISE
        why = self._does_not_pass(authorization, quorum, under_way_micro)
        if isinstance(why, InvalidReason) and self.is_used(authorization, quorum):
            return InvalidReason.AUTH_USED_OTHERWISE  # meanwhile, maybe by our own transaction: that is why
        return why

    def _does_not_pass(
        self, authorization: Authorization, quorum: int, under_way_micro: int
    ) -> InvalidReason | UnknownReason | None:
        if not self._holds(authorization.payer, authorization.amount_micro, quorum):
            return InvalidReason.AUTH_BALANCE
        promised = authorization.amount_micro + under_way_micro
        if under_way_micro and not self._holds(authorization.payer, promised, quorum):
            return UnknownReason.PAYER_BUSY
        if not self._agreed(quorum, transfer_calldata(authorization), lambda answer: answer is not None):
            return InvalidReason.AUTH_REVERTED
        return None

    def _holds(self, payer: str, micro: int, quorum: int) -> bool:
        """Whether a payer holds so much, as this many nodes say alike. Raises ReadFailed."""
        asked = balance_calldata(payer)
        return self._agreed(quorum, asked, lambda held: held is not None and int(held, 16) >= micro)

    def signed_by_payer(self, authorization: Authorization) -> bool:
        """Whether the payer's key signed exactly this."""
        from eth_account import Account  # noqa: PLC0415
        from eth_account.messages import encode_typed_data  # noqa: PLC0415
        from eth_keys.exceptions import BadSignature  # noqa: PLC0415
        from eth_utils.exceptions import ValidationError  # noqa: PLC0415

        signable = encode_typed_data(full_message=typed_data(authorization, self._chain_id, self._contract))
        try:
            signer = Account.recover_message(signable, signature=bytes.fromhex(authorization.signature[2:]))
        except (BadSignature, ValidationError, ValueError):
            return False
        return str(signer).lower() == authorization.payer

    def is_used(self, authorization: Authorization, quorum: int) -> bool:
        """Whether the nonce was used or canceled, as this many nodes say alike. Raises ReadFailed."""

        def used(state: str | None) -> bool:
            if state is None:  # a node that refuses to look knows nothing
                raise ReadFailed(UnknownReason.NODE_MALFORMED)
            return int(state, 16) != 0

        return self._agreed(quorum, state_calldata(authorization), used)

    def _agreed(self, quorum: int, data: str, read: Callable[[str | None], bool]) -> bool:
        """What this many nodes say alike of a call of the contract, as it is read; None is a call that reverts."""
        call = {"from": self.address, "to": self._contract, "data": data}

        def ask(node: Any) -> bool:
            try:
                answer = str(evm_call(node, "eth_call", [call, "latest"], may_reject=True))
            except Rejected:
                return read(None)
            return read(answer if len(answer) > 2 else "0x0")

        return self._nodes.agreed(ask, quorum)

    def height(self) -> int:
        """The newest block. Raises ReadFailed."""
        return self._nodes.first(lambda n: int(evm_call(n, "eth_blockNumber", []), 16))

    def nonce_on_chain(self) -> int:
        """How many transactions of the gas wallet are in the chain. Raises ReadFailed."""
        params = [self.address, "latest"]
        return self._nodes.first(lambda n: int(evm_call(n, "eth_getTransactionCount", params), 16))

    def gas_wei(self) -> int:
        """What the gas wallet holds. Raises ReadFailed."""
        params = [self.address, "latest"]
        return self._nodes.first(lambda n: int(evm_call(n, "eth_getBalance", params), 16))

    def sign(self, authorization: Authorization | None, gas_nonce: int) -> SignedTransfer:
        """The transaction that settles an authorization, or (None) one that only uses the nonce up. Raises ReadFailed."""
        fee = _fee_wei(self._base_fee())
        fields: dict[str, Any] = {
            "to": self._wallet.address,
            "value": 0,
            "gas": PLAIN_GAS,
            "maxFeePerGas": fee,
            "maxPriorityFeePerGas": TIP_WEI,
            "nonce": gas_nonce,
            "chainId": self._chain_id,
        }
        if authorization is not None:
            fields |= {
                "to": self._contract,
                "data": transfer_calldata(authorization),
                "gas": TRANSFER_GAS,
            }
        return self._signed(fields)

    def dearer(self, raw: str) -> SignedTransfer | None:
        """The same transaction at a fee that a node takes in place of its own; None when that would not help.

        That is while its fee is what the chain asks for, or when the higher one would be above `FEE_MAX_WEI`. Raises
        ReadFailed.
        """
        from eth_account.typed_transactions.typed_transaction import TypedTransaction  # noqa: PLC0415
        from hexbytes import HexBytes  # noqa: PLC0415

        sent = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        fee, base = int(sent["maxFeePerGas"]), self._base_fee()
        least = fee * REPLACEMENT_PERCENT // 100 + 1
        raised = min(max(least, _fee_wei(base)), FEE_MAX_WEI)
        if base + TIP_WEI <= fee or raised < least:
            return None
        fields = {name: sent[name] for name in ("to", "value", "gas", "data", "nonce", "chainId")}
        tip = int(sent["maxPriorityFeePerGas"]) * REPLACEMENT_PERCENT // 100 + 1
        fees = {"maxFeePerGas": raised, "maxPriorityFeePerGas": min(raised, tip)}
        return self._signed(fields | fees)

    def _base_fee(self) -> int:
        block = self._nodes.first(lambda n: evm_call(n, "eth_getBlockByNumber", ["latest", False]))
        return int(block.get("baseFeePerGas", "0x0"), 16)

    def _signed(self, fields: dict[str, Any]) -> SignedTransfer:
        signed = self._wallet.sign_transaction(fields)
        raw, tx_hash = "0x" + bytes(signed.raw_transaction).hex(), "0x" + bytes(signed.hash).hex()
        return SignedTransfer(raw, tx_hash, int(fields["nonce"]), int(fields["maxFeePerGas"]))

    def send(self, raw: str) -> bool:
        """Hand a transaction to the chain; doing so again does no harm. False when no node took it. Raises ReadFailed."""
        try:
            self._nodes.first(lambda n: evm_call(n, "eth_sendRawTransaction", [raw], may_reject=True))
        except Rejected as rejected:
            return any(words in rejected.message.lower() for words in _SENT_ALREADY)
        return True

    def reverted_wei(self, tx_hash: str) -> int | None:
        """What one of our transactions burned for nothing; None while it is not in the chain. Raises ReadFailed."""
        asked = [tx_hash]
        receipt = self._nodes.first(lambda n: evm_call(n, "eth_getTransactionReceipt", asked))
        if receipt is None:
            return None
        if int(receipt["status"], 16) == 1:
            return 0
        gas = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
        return gas + int(receipt.get("l1Fee") or "0x0", 16)

    def outcome(
        self, authorization: Authorization, tx_hash: str, from_block: int, depths: Sequence[Depth]
    ) -> Verdict:
        """What became of an authorization: UNKNOWN while it may still be on its way."""

        def ask(node: Any) -> Verdict:
            found = tx_hash
            receipt = evm_call(node, "eth_getTransactionReceipt", [tx_hash]) if tx_hash else None
            if receipt is None or int(receipt["status"], 16) != 1:
                used = self._used_by(node, authorization, from_block)
                if isinstance(used, Invalid):
                    return used
                if used is None and receipt is None:
                    return Unknown(UnknownReason.NOT_SETTLED)
                found = used or tx_hash
            receipt, block, head = read_receipt(node, found)
            return judge_authorization(
                receipt, block, head, authorization, contract=self._contract, depths=depths
            )

        return self._nodes.verdict(ask, depths)

    def _used_by(self, node: Any, authorization: Authorization, from_block: int) -> str | Invalid | None:
        """The transaction that used the nonce, by the contract's log; INVALID when it was canceled."""
        asked = {
            "address": self._contract,
            "fromBlock": hex(max(from_block - 1, 0)),
            "toBlock": "latest",
            "topics": [
                [USED_TOPIC, CANCELED_TOPIC],
                "0x" + authorization.payer[2:].rjust(64, "0"),
                authorization.nonce,
            ],
        }
        logs = [entry for entry in evm_call(node, "eth_getLogs", [asked]) if not entry.get("removed")]
        if not logs:
            return None
        if logs[0]["topics"][0].lower() == CANCELED_TOPIC:
            return Invalid(InvalidReason.AUTH_CANCELED)
        return str(logs[0]["transactionHash"]).lower()

    def faults(self) -> list[str]:
        """Why this rail may not be offered now; empty when it may. Raises ReadFailed."""
        held, fee = self.gas_wei(), _fee_wei(self._base_fee())
        needed = max(GAS_FLOOR_WEI, GAS_FLOOR_TRANSFERS * TRANSFER_GAS * fee)
        if held >= needed:
            return []
        return [
            f"gas wallet {self.address} is nearly empty: {held} wei of {needed} at today's {fee} wei of gas"
        ]


def _fee_wei(base_wei: int) -> int:
    """What one unit of gas may cost: twice what the chain asks for now, and never above the bound."""
    return min(2 * base_wei + TIP_WEI, FEE_MAX_WEI)
