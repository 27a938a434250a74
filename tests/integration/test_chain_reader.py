"""Nodes that are away, lag or lie only ever make a payment unknown; another node may know it."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.chain.model import Depth, ReadFailed, Unknown, UnknownReason, Valid
from shared.chain.nodes import SHUNNED_S, Nodes
from shared.chain.reader import EvmReader, SolanaReader, evm_nodes
from shared.chain.rules import TOKEN_PROGRAM
from tests.unit.chain.test_rules import (
    BLOCK,
    HASH,
    MINT,
    US,
    USDC,
    balance,
    log,
    receipt,
    transaction,
    valid,
)

pytestmark = pytest.mark.slow
Node = Callable[[dict[str, Any]], str]
Serve = Callable[[Callable[[str], str]], str]
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[str], str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = answer(asked["method"]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def results(**by_method: Any) -> Callable[[str], str]:
    return lambda method: json.dumps({"jsonrpc": "2.0", "id": 1, "result": by_method.get(method)})


def evm(*urls: str) -> EvmReader:
    return EvmReader(evm_nodes(urls), 8453, USDC, (US,))


EVM_GOOD = results(
    eth_getTransactionReceipt=receipt(log()),
    eth_getTransactionByHash={"from": "0x" + "aa" * 20, "to": None, "input": "0x"},
    eth_getBlockByNumber=BLOCK,
    eth_blockNumber="0xa",
    eth_chainId="0x2105",
    eth_getCode="0x6001",
    eth_call="0x" + (6).to_bytes(32, "big").hex(),
)


def test_a_payment_is_read(serve: Serve) -> None:
    assert evm(serve(EVM_GOOD)).judge(HASH) == valid(400_000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: "not json", UnknownReason.NODE_MALFORMED),
        (
            lambda _: '{"jsonrpc":"2.0","id":1,"error":{"code":-32015,"message":"x"}}',
            UnknownReason.NODE_UNREACHABLE,
        ),
        (results(eth_blockNumber="0xa"), UnknownReason.NOT_FOUND),
        (
            results(
                eth_getTransactionReceipt={"blockNumber": "0xa"},
                eth_getBlockByNumber=BLOCK,
                eth_blockNumber="0xa",
            ),
            UnknownReason.NODE_MALFORMED,
        ),
    ],
)
def test_a_node_that_fails_makes_a_payment_unknown(
    serve: Serve, answer: Callable[[str], str], reason: UnknownReason
) -> None:
    assert evm(serve(answer)).judge(HASH) == Unknown(reason)


def test_no_node_at_all_makes_a_payment_unknown() -> None:
    assert evm(DEAD).judge(HASH) == Unknown(UnknownReason.NODE_UNREACHABLE)
    assert SolanaReader(Nodes([DEAD]), MINT, (OWNER,)).judge("x") == Unknown(UnknownReason.NODE_UNREACHABLE)


def test_another_node_may_know_what_the_first_one_does_not(serve: Serve) -> None:
    lagging = serve(results(eth_blockNumber="0x1"))
    assert isinstance(evm(DEAD, lagging, serve(EVM_GOOD)).judge(HASH), Valid)
    assert evm(lagging, DEAD).judge(HASH) == Unknown(UnknownReason.NOT_FOUND)


def test_a_chain_is_validated_before_it_takes_money(serve: Serve) -> None:
    assert evm(serve(EVM_GOOD)).faults() == []
    wrong = results(eth_chainId="0x1", eth_getCode="0x")
    assert evm(serve(wrong)).faults() == ["evm: wrong chain id", "evm: no code at the asset's address"]
    decimals = results(
        eth_chainId="0x2105", eth_getCode="0x60", eth_call="0x" + (18).to_bytes(32, "big").hex()
    )
    assert evm(serve(decimals)).faults() == ["evm: the asset does not have 6 decimals"]
    assert evm(DEAD).faults() == ["evm: chain_node_unreachable"]
    assert evm(DEAD, serve(EVM_GOOD)).faults() == []
    assert evm(DEAD, serve(EVM_GOOD)).faults(2) == ["evm: chain_node_unreachable"]
    assert evm(serve(EVM_GOOD), serve(decimals)).faults() == ["evm: the asset does not have 6 decimals"]


TWO = (Depth(None, quorum=2),)
EVM_LYING = results(
    eth_getTransactionByHash={"from": "0x" + "aa" * 20, "to": None, "input": "0x"},
    eth_getTransactionReceipt=receipt(log(9_000_000)),
    eth_getBlockByNumber=BLOCK,
    eth_blockNumber="0xa",
)
EVM_DENYING = results(
    eth_getTransactionByHash={"from": "0x", "to": None, "input": "0x"},
    eth_getTransactionReceipt=receipt(),
    eth_getBlockByNumber=BLOCK,
    eth_blockNumber="0xa",
)
EVM_LAGGING = results(eth_blockNumber="0x1")


def test_a_lying_node_can_neither_mint_nor_deny(serve: Serve) -> None:
    good, lying, denying = serve(EVM_GOOD), serve(EVM_LYING), serve(EVM_DENYING)
    disagree = Unknown(UnknownReason.NODES_DISAGREE)
    assert evm(lying, good).judge(HASH, TWO) == disagree
    assert evm(denying, good).judge(HASH, TWO) == disagree
    assert evm(denying, DEAD).judge(HASH, TWO) == disagree
    assert evm(lying, good, serve(EVM_GOOD)).judge(HASH, TWO) == valid(400_000)
    assert evm(denying, good, serve(EVM_GOOD)).judge(HASH, TWO) == valid(400_000)


def test_a_lagging_node_is_outvoted_but_never_counted(serve: Serve) -> None:
    good, lagging = serve(EVM_GOOD), serve(EVM_LAGGING)
    assert evm(lagging, good, serve(EVM_GOOD)).judge(HASH, TWO) == valid(400_000)
    assert evm(lagging, good).judge(HASH, TWO) == Unknown(UnknownReason.NODES_DISAGREE)
    small = (Depth(400_000, quorum=1), Depth(None, quorum=2))
    assert evm(lagging, good).judge(HASH, small) == valid(400_000)


def test_a_node_that_failed_is_asked_last_until_it_is_forgiven() -> None:
    now, asked = [0.0], []

    def ask(node: str) -> str:
        asked.append(node)
        if node == "a" and now[0] < 1:
            raise ReadFailed(UnknownReason.NODE_UNREACHABLE)
        return node

    nodes = Nodes(["a", "b"], lambda: now[0])
    assert [nodes.first(ask), nodes.first(ask)] == ["b", "b"]
    now[0] = SHUNNED_S + 1
    assert nodes.first(ask) == "a"
    assert asked == ["a", "b", "b", "a"]


OWNER = "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"
PAID = transaction([balance(1, "payer", 400)], [balance(1, "payer", 0), balance(2, OWNER, 400)])
PAID["transaction"]["message"]["accountKeys"][2]["pubkey"] = next(
    iter(SolanaReader(Nodes([]), MINT, (OWNER,)).accounts)
)


def solana(url: str, owner: str = OWNER) -> SolanaReader:
    return SolanaReader(Nodes([url]), MINT, (owner,))


def status(value: Any) -> dict[str, Any]:
    return {"context": {"slot": 1}, "value": [value]}


def test_a_payment_on_solana_is_read(serve: Serve) -> None:
    good = results(getTransaction=PAID, getSignatureStatuses=status({"confirmationStatus": "confirmed"}))
    assert solana(serve(good)).judge("x") == Valid("payer", 400, 1_800_000_000)


@pytest.mark.parametrize(
    ("transaction_", "state", "reason"),
    [
        (PAID, None, UnknownReason.NOT_FOUND),
        (PAID, {"confirmationStatus": "processed"}, UnknownReason.NOT_CONFIRMED),
        (None, {"confirmationStatus": "finalized"}, UnknownReason.NOT_FOUND),
        (
            {"blockTime": 1_800_000_000, "meta": {"preTokenBalances": [{}]}},
            {"confirmationStatus": "finalized"},
            UnknownReason.NODE_MALFORMED,
        ),
    ],
)
def test_what_solana_has_not_confirmed_is_unknown(
    serve: Serve, transaction_: Any, state: Any, reason: UnknownReason
) -> None:
    node = results(getTransaction=transaction_, getSignatureStatuses=status(state))
    assert solana(serve(node)).judge("x") == Unknown(reason)


def test_solana_is_validated_before_it_takes_money(serve: Serve) -> None:
    def mint(decimals: int) -> str:
        value = {"owner": TOKEN_PROGRAM, "data": {"parsed": {"info": {"decimals": decimals}}}}
        return serve(results(getAccountInfo={"value": value}))

    assert solana(mint(6)).faults() == []
    elsewhere = SolanaReader(Nodes([mint(6)]), MINT, (OWNER,), "another genesis")
    assert elsewhere.faults() == ["solana: wrong chain"]
    assert solana(mint(9)).faults() == ["solana: the asset does not have 6 decimals"]
    assert solana(serve(results(getAccountInfo={"value": None}))).faults() == [
        "solana: the asset's mint is not there"
    ]
    assert solana(mint(6), "us").faults() == ["solana: a recipient is not an address"]
