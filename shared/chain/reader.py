"""Asks chain nodes: several URLs in order, bounded, and every failure of theirs is UNKNOWN and nothing else.

web3 builds and sends the EVM calls, solders checks what a Solana address is; both are loaded when first needed.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from shared.chain.model import ReadFailed, Unknown, UnknownReason, Verdict
from shared.chain.rules import USDC_DECIMALS, judge_evm, judge_solana

T = TypeVar("T")
NODE_TIMEOUT_S: Final = 5
ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024


class EvmReader:
    """Reads one EVM chain. `urls` are asked in order until one answers."""

    def __init__(
        self, urls: Sequence[str], chain_id: int, contract: str, recipient: str, confirmations: int
    ) -> None:
        from web3 import HTTPProvider, Web3  # noqa: PLC0415 - a second of import that only a payment needs

        self._clients = [
            Web3(
                HTTPProvider(
                    url, request_kwargs={"timeout": NODE_TIMEOUT_S}, exception_retry_configuration=None
                )
            )
            for url in urls
        ]
        self._chain_id = chain_id
        self._contract = contract
        self._recipient = recipient
        self._confirmations = confirmations

    def judge(self, tx_hash: str) -> Verdict:
        """The verdict on a transaction hash (0x and 64 hex digits)."""
        try:
            return self._first(lambda client: self._judge(client, tx_hash))
        except ReadFailed as failed:
            return Unknown(failed.reason)

    def _judge(self, client: Any, tx_hash: str) -> Verdict:
        receipt = _result(client, "eth_getTransactionReceipt", [tx_hash])
        block = None
        if receipt is not None and receipt.get("blockNumber") is not None:
            block = _result(client, "eth_getBlockByNumber", [receipt["blockNumber"], False])
        head = int(_result(client, "eth_blockNumber", []), 16)
        return judge_evm(
            receipt,
            block,
            head,
            contract=self._contract,
            recipient=self._recipient,
            confirmations=self._confirmations,
        )

    def faults(self) -> list[str]:
        """What is wrong with the chain's configuration; empty when it may take money. Raises ReadFailed."""
        return self._first(self._faults)

    def _faults(self, client: Any) -> list[str]:
        faults = []
        if int(_result(client, "eth_chainId", []), 16) != self._chain_id:
            faults.append("evm: wrong chain id")
        if len(_result(client, "eth_getCode", [self._contract, "latest"])) <= 2:
            faults.append("evm: no code at the asset's address")
        else:
            call = {"to": self._contract, "data": "0x313ce567"}  # decimals()
            answer = _result(client, "eth_call", [call, "latest"])
            if len(answer) < 66 or int(answer, 16) != USDC_DECIMALS:
                faults.append("evm: the asset does not have 6 decimals")
        return faults

    def _first(self, ask: Callable[[Any], T]) -> T:
        return _first_answer(self._clients, ask)


def _result(client: Any, method: str, params: list[Any]) -> Any:
    answer = client.provider.make_request(method, params)
    if "error" in answer:
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE)
    return answer["result"]


class SolanaReader:
    """Reads Solana by JSON-RPC."""

    def __init__(self, urls: Sequence[str], mint: str, owner: str) -> None:
        self._urls = list(urls)
        self._mint = mint
        self._owner = owner

    def judge(self, signature: str) -> Verdict:
        """The verdict on a transaction signature (base58 of 64 bytes)."""
        options = {"encoding": "jsonParsed", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}
        try:
            answer, status = _first_answer(
                self._urls,
                lambda url: (
                    _rpc(url, "getTransaction", [signature, options]),
                    _rpc(url, "getSignatureStatuses", [[signature], {"searchTransactionHistory": True}]),
                ),
            )
        except ReadFailed as failed:
            return Unknown(failed.reason)
        known = (status or {}).get("value", [None])[0]
        if known is None:
            return Unknown(UnknownReason.NOT_FOUND)
        if known.get("confirmationStatus") not in {"confirmed", "finalized"}:
            return Unknown(UnknownReason.NOT_CONFIRMED)
        try:
            return judge_solana(answer, mint=self._mint, owner=self._owner)
        except (KeyError, TypeError, ValueError):
            return Unknown(UnknownReason.NODE_MALFORMED)

    def faults(self) -> list[str]:
        """What is wrong with the chain's configuration; empty when it may take money. Raises ReadFailed."""
        from solders.pubkey import Pubkey  # noqa: PLC0415 - loaded with the chain

        try:
            Pubkey.from_string(self._owner)
        except ValueError:
            return ["solana: the recipient is not an address"]
        account = _first_answer(
            self._urls, lambda u: _rpc(u, "getAccountInfo", [self._mint, {"encoding": "jsonParsed"}])
        )
        try:
            decimals = account["value"]["data"]["parsed"]["info"]["decimals"]
        except (KeyError, TypeError):
            return ["solana: the asset's mint is not there"]
        return [] if decimals == USDC_DECIMALS else ["solana: the asset does not have 6 decimals"]


def _first_answer(nodes: Sequence[Any], ask: Callable[[Any], T]) -> T:
    """The answer of the first node that gives one; a payment that one node has not seen is asked of the next."""
    failed = ReadFailed(UnknownReason.NODE_UNREACHABLE)
    unknown: Any = None
    for node in nodes:
        try:
            answer = ask(node)
        except ReadFailed as error:
            failed = error
        except (KeyError, TypeError, ValueError):
            failed = ReadFailed(UnknownReason.NODE_MALFORMED)
        except Exception as error:  # noqa: BLE001 - an HTTP library's failures are many, and all mean the same here
            failed = ReadFailed(UnknownReason.NODE_UNREACHABLE)
            failed.__cause__ = error
        else:
            if not isinstance(answer, Unknown):
                return answer
            unknown = answer
    if unknown is not None:
        return unknown  # type: ignore[no-any-return]  # it is a T: `ask` gave it
    raise failed


def _rpc(url: str, method: str, params: list[Any]) -> Any:
    """One JSON-RPC call. Raises ReadFailed."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - settings' URL
    try:
        with urllib.request.urlopen(request, timeout=NODE_TIMEOUT_S) as answer:  # noqa: S310
            parsed = json.loads(answer.read(ANSWER_MAX_BYTES))
    except (OSError, ValueError, urllib.error.URLError):
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE) from None
    if not isinstance(parsed, dict) or parsed.get("result", parsed) is parsed:
        raise ReadFailed(UnknownReason.NODE_UNREACHABLE)
    return parsed["result"]
