"""Asks chain nodes: several URLs in order, bounded, and every failure of theirs is UNKNOWN and nothing else.

web3 builds and sends the EVM calls, solders checks what a Solana address is; both are loaded when first needed.
"""

import functools
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from shared.chain.erc1271 import WALLET_GAS, is_accepted, signature_calldata
from shared.chain.model import SHALLOW, Depth, ReadFailed, Reading, Rejected, Unknown, UnknownReason
from shared.chain.nodes import Nodes
from shared.chain.rules import TOKEN_PROGRAM, USDC_DECIMALS, judge_evm, judge_solana

NODE_TIMEOUT_S: Final = 5
ATA_PROGRAM: Final = "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL"
ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024
_BUSY_CODES: Final = frozenset({-32005, -32015, -32603, 429})
"""Errors that say something about the node and nothing about the request."""


def evm_nodes(urls: Sequence[str]) -> Nodes[Any]:
    """A web3 client per URL; web3 is loaded here."""
    from web3 import HTTPProvider, Web3  # noqa: PLC0415 - a second of import that only a payment needs

    options = {"timeout": NODE_TIMEOUT_S}
    return Nodes(
        [Web3(HTTPProvider(u, request_kwargs=options, exception_retry_configuration=None)) for u in urls]
    )


class EvmReader:
    """Reads one EVM chain."""

    def __init__(self, nodes: Nodes[Any], chain_id: int, contract: str, recipients: Sequence[str]) -> None:
        self._nodes = nodes
        self._chain_id = chain_id
        self._contract = contract
        self._recipients = tuple(recipients)

    def judge(self, tx_hash: str, depths: Sequence[Depth] = SHALLOW, tag: str = "") -> Reading:
        """What a transaction hash (0x and 64 hex digits) stands for, and whether its payer tagged it (64 hex digits)."""
        return self._nodes.verdict(lambda client: self._judge(client, tx_hash, depths, tag), depths)

    def _judge(self, client: Any, tx_hash: str, depths: Sequence[Depth], tag: str) -> Reading:
        receipt, block, head = read_receipt(client, tx_hash)
        transaction = evm_call(client, "eth_getTransactionByHash", [tx_hash]) if receipt else None
        if receipt and transaction is None:
            raise ReadFailed(UnknownReason.NODE_MALFORMED)
        return judge_evm(
            receipt,
            block,
            head,
            contract=self._contract,
            recipients={r.lower() for r in self._recipients},
            depths=depths,
            transaction=transaction,
            tag=tag,
        )

    def accepts_signature(self, wallet: str, digests: Sequence[str], signature: str, quorum: int) -> bool:
        """Whether a contract wallet says that this signature of one of the digests is its owner's (ERC-1271).

        As many nodes must say so as its payment needs. Raises ReadFailed.
        """

        def ask(client: Any) -> bool:
            if len(evm_call(client, "eth_getCode", [wallet, "latest"])) <= 2:
                return False
            return any(says_yes(client, digest) for digest in digests)

        def says_yes(client: Any, digest: str) -> bool:
            call = {"to": wallet, "data": signature_calldata(digest, signature), "gas": hex(WALLET_GAS)}
            try:
                return is_accepted(str(evm_call(client, "eth_call", [call, "latest"], may_reject=True)))
            except Rejected:
                return False

        return self._nodes.agreed(ask, quorum)

    def faults(self, quorum: int = 1) -> list[str]:
        """What is wrong with the chain's configuration; empty when it may take money.

        Every node that answers must be of this chain, and as many must answer as the largest payment needs.
        """
        from web3 import Web3  # noqa: PLC0415 - loaded with the chain

        bad = [
            r
            for r in self._recipients
            if not _is_address(r) or not (r == r.lower() or Web3.is_checksum_address(r))
        ]
        faults = ["evm: a recipient is not an address, or its checksum is wrong"] if bad else []
        return [*faults, *self._nodes.faults("evm", self._faults, quorum)]

    def _faults(self, client: Any) -> list[str]:
        faults = []
        if int(evm_call(client, "eth_chainId", []), 16) != self._chain_id:
            faults.append("evm: wrong chain id")
        if len(evm_call(client, "eth_getCode", [self._contract, "latest"])) <= 2:
            faults.append("evm: no code at the asset's address")
        else:
            call = {"to": self._contract, "data": "0x313ce567"}  # decimals()
            answer = evm_call(client, "eth_call", [call, "latest"])
            if len(answer) < 66 or int(answer, 16) != USDC_DECIMALS:
                faults.append("evm: the asset does not have 6 decimals")
        return faults


def read_receipt(client: Any, tx_hash: str) -> tuple[Any, Any, int]:
    """(receipt, canonical block at its height, newest height) as one node knows them."""
    receipt = evm_call(client, "eth_getTransactionReceipt", [tx_hash])
    block = None
    if receipt is not None and receipt.get("blockNumber") is not None:
        block = evm_call(client, "eth_getBlockByNumber", [receipt["blockNumber"], False])
    return receipt, block, int(evm_call(client, "eth_blockNumber", []), 16)


def evm_call(client: Any, method: str, params: list[Any], *, may_reject: bool = False) -> Any:
    """One JSON-RPC call. Raises ReadFailed, or (where a no is an answer, not a failure) Rejected."""
    answer = client.provider.make_request(method, params)
    error = answer.get("error")
    if error is None:
        return answer["result"]
    words = str(error.get("message", "") if isinstance(error, dict) else error)
    busy = isinstance(error, dict) and error.get("code") in _BUSY_CODES and "revert" not in words.lower()
    if may_reject and not busy:
        raise Rejected(words)
    raise ReadFailed(UnknownReason.NODE_UNREACHABLE)


class SolanaReader:
    """Reads Solana by JSON-RPC."""

    def __init__(self, nodes: Nodes[str], mint: str, owners: Sequence[str], genesis: str = "") -> None:
        self._nodes = nodes
        self._mint = mint
        self._owners = tuple(owners)
        self._genesis = genesis

    @functools.cached_property
    def accounts(self) -> dict[str, str]:
        """Our associated token accounts, the only places that count as paid to us, and whose they are."""
        return {_token_account(owner, self._mint): owner for owner in self._owners}

    def judge(self, signature: str, depths: Sequence[Depth] = SHALLOW, tag: str = "") -> Reading:
        """What a transaction signature (base58 of 64 bytes) stands for, and whether its payer tagged it."""
        return self._nodes.verdict(lambda url: self._judge(url, signature, depths, _tags(tag)), depths)

    def _judge(self, url: str, signature: str, depths: Sequence[Depth], tags: Sequence[str]) -> Reading:
        options = {"encoding": "jsonParsed", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}
        status = _rpc(url, "getSignatureStatuses", [[signature], {"searchTransactionHistory": True}])
        known = (status or {}).get("value", [None])[0]
        if known is None:
            return Unknown(UnknownReason.NOT_FOUND)
        commitment = known.get("confirmationStatus")
        if commitment not in {"confirmed", "finalized"}:
            return Unknown(UnknownReason.NOT_CONFIRMED)
        answer = _rpc(url, "getTransaction", [signature, options])
        return judge_solana(
            answer,
            mint=self._mint,
            ours=self.accounts,
            commitment=commitment,
            depths=depths,
            tags=tags,
        )

    def faults(self, quorum: int = 1) -> list[str]:
        """What is wrong with the chain's configuration; see `EvmReader.faults`."""
        try:
            accounts = list(self.accounts)
        except ValueError:
            return ["solana: a recipient is not an address"]
        return self._nodes.faults("solana", lambda url: self._faults(url, accounts), quorum)

    def _faults(self, url: str, accounts: list[str]) -> list[str]:
        faults = []
        if self._genesis and _rpc(url, "getGenesisHash", []) != self._genesis:
            faults.append("solana: wrong chain")
        value = _rpc(url, "getAccountInfo", [self._mint, {"encoding": "jsonParsed"}])["value"]
        try:
            owner, decimals = value["owner"], value["data"]["parsed"]["info"]["decimals"]
        except (KeyError, TypeError):
            return [*faults, "solana: the asset's mint is not there"]
        if owner != TOKEN_PROGRAM:
            faults.append("solana: the asset is not of the legacy Token program")
        if decimals != USDC_DECIMALS:
            faults.append("solana: the asset does not have 6 decimals")
        return faults


def _token_account(owner: str, mint: str) -> str:
    """The associated token account. Raises ValueError when one of them is no address."""
    from solders.pubkey import Pubkey  # noqa: PLC0415 - loaded with the chain

    seeds = [bytes(Pubkey.from_string(part)) for part in (owner, TOKEN_PROGRAM, mint)]
    return str(Pubkey.find_program_address(seeds, Pubkey.from_string(ATA_PROGRAM))[0])


def _is_address(text: str) -> bool:
    return re.fullmatch(r"0x[0-9a-fA-F]{40}", text) is not None and int(text, 16) != 0


def _tags(tag: str) -> tuple[str, ...]:
    """A tag as a memo says it, and as the address of a reference key."""
    if not tag:
        return ()
    from solders.pubkey import Pubkey  # noqa: PLC0415 - loaded with the chain

    return tag, str(Pubkey.from_bytes(bytes.fromhex(tag)))


def _rpc(url: str, method: str, params: list[Any]) -> Any:
    """One JSON-RPC call. Raises ReadFailed."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - settings' URL
    try:
        with urllib.request.urlopen(request, timeout=NODE_TIMEOUT_S) as answer:  # noqa: S310
            parsed = json.loads(answer.read(ANSWER_MAX_BYTES))
    except urllib.error.HTTPError as refused:
        refused.close()
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE) from None
    except (OSError, ValueError):
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE) from None
    if not isinstance(parsed, dict) or parsed.get("result", parsed) is parsed:
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE)
    return parsed["result"]
