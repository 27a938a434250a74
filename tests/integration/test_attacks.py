"""What is tried against the hash rail, each a real transaction on a real EVM node: nothing stolen, nothing sold twice.

The same is tried on a Solana runtime in `test_solana_attacks.py`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest
from eth_abi.abi import encode
from eth_account.messages import SignableMessage, encode_defunct
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local import lab
from local.evm import FAKE_TOKEN, USDC, contract_code, new_address
from shared.access.table import find_secret
from shared.chain.eip3009 import word
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.sale.model import Bought, Offer, Order, Payment, Prices, Product, Statement, Terms
from shared.sale.rules import granted_bytes, is_enough, proof_text, read_prices, read_terms
from shared.sale.service import pool_order
from tests.support.chain import Anvil
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
QUERY = "/v1/x402/pool?traffic=0.1&country=us"
DUE = 400_000
BUYER, THIEF = "127.20.0.1", "127.20.0.9"
RECIPIENT = new_address()
THIEF_WALLET = new_address()
PRICED = Prices("mbl", 4_000_000, 1, 10**12, 1, 1, 200, False, "")
USDBC = "0xd9aAEc86B65D86f6A7B5B1b0c42FFA531710b6CA"


class Node:
    """A node that answers for the real one, and can be made to lie, lag, refuse or vanish."""

    def __init__(self, behind: str) -> None:
        self.fault: Callable[[str, Any], Any] = lambda method, result: result
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with urlopen(Request(behind, body, {"Content-Type": "application/json"}), timeout=5) as real:
                    answer = json.loads(real.read())
                try:
                    answer["result"] = node.fault(json.loads(body)["method"], answer.get("result"))
                except PermissionError:
                    self.send_error(429)
                    return
                except ConnectionError:  # it hangs up
                    return
                raw = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Shop(Functions):
    """The sale on a real chain behind a node that can misbehave."""

    def __init__(self, dynamo: SyncDynamo, redis_url: str, files: lab.LabFiles, anvil: Anvil) -> None:
        self.node, self.anvil = Node(anvil.url), anvil
        super().__init__(dynamo, redis_url, files, self.node.url, "", RECIPIENT)
        self.open()
        self.call(QUERY)

    def close(self) -> None:
        super().close()
        self.node.close()

    def claim(self, tx_hash: str, source: str = BUYER, query: str = QUERY, proof: str = "") -> Reply:
        headers = {"payment-signature": tx_hash} | ({"x-payment-proof": proof} if proof else {})
        return self.call(query, headers=headers, source=source)


@pytest.fixture
def shop(
    dynoxide: SyncDynamo,
    valkey_url: str,
    lab_files: lab.LabFiles,
    anvil: Anvil,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Shop(dynoxide, valkey_url, lab_files, anvil)
    yield made
    made.close()


def transfer(to: str = RECIPIENT, amount: int = DUE) -> str:
    return "0xa9059cbb" + to[2:].lower().rjust(64, "0") + word(amount)


def approve(spender: str, amount: int) -> str:
    return "0x095ea7b3" + spender[2:].lower().rjust(64, "0") + word(amount)


def transfer_from(payer: str, amount: int = DUE) -> str:
    sides = payer[2:].lower().rjust(64, "0") + RECIPIENT[2:].lower().rjust(64, "0")
    return "0x23b872dd" + sides + word(amount)


def statement(shop: Functions, paid: str, due: int = DUE, url: str = "", network: str = "base") -> Statement:
    """What the payer of pool access signs, perhaps with something wrong in it."""
    order = Order(Product.POOL, "pool", 10**8, due)
    told = shop.sale_wiring.counter.statement(order, network, paid)
    return replace(told, url=url or told.url)


def to_sign(shop: Functions, paid: str, **change: Any) -> SignableMessage:
    return encode_defunct(text=proof_text(statement(shop, paid, **change)))


def raw(wallet: LocalAccount, data: str, to: str = USDC, nonce: int = 0) -> str:
    fields: Any = {"to": to, "data": data, "value": 0, "gas": 200_000, "nonce": nonce, "chainId": 8453}
    fees = {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 1}
    return "0x" + bytes(wallet.sign_transaction(fields | fees).raw_transaction).hex()


NOT_PAID: list[tuple[str, Callable[[LocalAccount], tuple[str, str]]]] = [
    ("a fake token with the same event", lambda w: (FAKE_TOKEN, transfer())),
    ("another recipient", lambda w: (USDC, transfer(THIEF_WALLET))),
    ("nothing at all", lambda w: (USDC, transfer(amount=0))),
    ("to itself", lambda w: (USDC, transfer(w.address))),
    ("an approval only", lambda w: (USDC, approve(RECIPIENT, DUE))),
    ("a plain call", lambda w: (RECIPIENT, "0x")),
]


@pytest.mark.parametrize(("name", "make"), NOT_PAID, ids=[n for n, _ in NOT_PAID])
def test_what_is_no_payment_buys_nothing(
    shop: Shop, name: str, make: Callable[[LocalAccount], tuple[str, str]]
) -> None:
    wallet = shop.anvil.new_wallet()
    to, data = make(wallet)
    answer = shop.claim(shop.anvil.send(wallet, to, data))
    assert answer.status == 402, answer.body
    assert "no_transfer_of_usdc_to_us" in answer.body["error"]


def test_money_that_we_move_between_our_own_pockets_pays_for_nothing(shop: Shop) -> None:
    shop.anvil.call("anvil_setBalance", RECIPIENT, hex(10**18))
    shop.anvil.set_balance(USDC, RECIPIENT, DUE)
    shop.anvil.call("anvil_impersonateAccount", RECIPIENT)
    moved = shop.anvil.call("eth_sendTransaction", {"from": RECIPIENT, "to": USDC, "data": transfer()})
    assert "no_transfer_of_usdc_to_us" in shop.claim(moved).body["error"]


def test_bridged_usdc_is_not_usdc(shop: Shop) -> None:
    shop.anvil.call("anvil_setCode", USDBC, shop.anvil.call("eth_getCode", USDC, "latest"))
    wallet = shop.anvil.new_wallet()
    shop.anvil.set_balance(USDBC, wallet.address, DUE)
    assert "no_transfer" in shop.claim(shop.anvil.send(wallet, USDBC, transfer())).body["error"]


def test_a_transaction_that_failed_is_told_so(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet(1)
    sent = shop.anvil.call("eth_sendRawTransaction", raw(wallet, transfer()))
    assert "transaction_failed" in shop.claim(sent).body["error"]


def test_a_pending_payment_is_waited_for_and_then_served(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    shop.anvil.call("evm_setAutomine", False)
    sent = shop.anvil.call("eth_sendRawTransaction", raw(wallet, transfer()))
    waiting = shop.claim(sent)
    assert (waiting.status, "do not pay again" in waiting.body["message"]) == (503, True)
    shop.anvil.call("evm_mine")
    assert shop.claim(sent).status == 200


def test_a_payment_that_was_reorged_away_before_it_was_claimed_buys_nothing(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    paid = shop.anvil.send(wallet, USDC, transfer())
    shop.anvil.call("anvil_reorg", 1, [])
    assert shop.claim(paid).status == 503


def test_a_large_payment_waits_for_more_blocks(shop: Shop) -> None:
    query = QUERY.replace("0.1", "10")
    shop.call(query)
    wallet = shop.anvil.new_wallet(50_000_000)
    paid = shop.anvil.send(wallet, USDC, transfer(amount=40_000_000))
    assert shop.claim(paid, query=query).status == 503
    shop.anvil.call("anvil_mine", "0x4")
    assert shop.claim(paid, query=query).status == 200


def test_a_payment_on_behalf_of_somebody_is_that_somebodys(shop: Shop) -> None:
    payer, sender = shop.anvil.new_wallet(), shop.anvil.new_wallet()
    shop.anvil.send(payer, USDC, approve(sender.address, DUE))
    paid = shop.anvil.send(sender, USDC, transfer_from(payer.address))
    text = to_sign(shop, paid)
    by_sender = shop.claim(paid, THIEF, proof=sender.sign_message(text).signature.hex())
    assert by_sender.status == 403
    by_payer = shop.claim(paid, THIEF, proof=payer.sign_message(text).signature.hex())
    assert by_payer.status == 200


@pytest.mark.parametrize(
    ("amount", "status", "allocated"),
    [
        (391_999, 402, 0),
        (392_000, 200, 10**8),
        (DUE, 200, 10**8),
        (408_000, 200, 102_000_000),
        (408_001, 403, 0),
    ],
)
def test_the_edge_of_the_tolerance(shop: Shop, amount: int, status: int, allocated: int) -> None:
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer(amount=amount))
    answer = shop.claim(paid)
    assert answer.status == status
    if allocated:
        assert answer.body["credit"]["allocatedBytes"] == allocated


@given(due=st.integers(1, 10**13), short=st.integers(-(10**6), 10**6), bp=st.integers(0, 1000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_tolerance_is_exact_for_any_amount(due: int, short: int, bp: int) -> None:
    edge = -(-due * (10_000 - bp) // 10_000)
    assert is_enough(max(edge + short, 0), due, bp) == (max(edge + short, 0) >= edge)


@given(paid=st.integers(1, 10**13), traffic=st.integers(1, 10**15), price=st.integers(1, 10**8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_granted_is_never_less_than_asked_nor_more_than_paid(
    paid: int, traffic: int, price: int
) -> None:
    granted = granted_bytes(paid, Order(Product.POOL, "pool", traffic, 0, price_micro_per_gb=price))
    assert granted >= traffic
    assert granted == traffic or granted * price <= paid * 10**9 < (granted + 1) * price


@pytest.mark.parametrize("shape", [str.upper, lambda h: h[2:], lambda h: "0X" + h[2:], lambda h: f" {h} "])
def test_one_hash_however_it_is_written_is_one_payment(shop: Shop, shape: Callable[[str], str]) -> None:
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    first, again = shop.claim(paid), shop.claim(shape(paid))
    assert again.body["proxy"] == first.body["proxy"]


@pytest.mark.parametrize("broken", ["0x", "0x" + "0" * 63, "0x" + "0" * 65, "0x" + "g" * 64])
def test_a_padded_or_cut_hash_is_no_hash(shop: Shop, broken: str) -> None:
    assert shop.claim(broken).status == 400


def test_a_stolen_hash_buys_nothing_before_or_after_its_owner_claims(shop: Shop) -> None:
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    mined_s = int(shop.anvil.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    time.sleep(max(mined_s + 2.1 - time.time(), 0))  # the lab's clock error
    shop.call(QUERY, source=THIEF)  # the thief saw the payment and asks for the same terms
    late = shop.claim(paid, THIEF)
    first = shop.claim(paid)
    after = shop.claim(paid, THIEF)
    other = shop.claim(paid, query=QUERY.replace("0.1", "0.2"))
    assert (late.status, first.status, after.status) == (403, 200, 403)
    assert first.body["proxy"] == other.body["proxy"]


def test_a_payer_who_proves_the_payment_later_takes_back_what_a_thief_got(shop: Shop) -> None:
    payer = shop.anvil.new_wallet()
    shop.call(QUERY, source=THIEF)  # one who asks for every common amount all the time
    paid = shop.anvil.send(payer, USDC, transfer())
    stolen = shop.claim(paid, THIEF, proof="0x" + "11" * 65)
    assert stolen.status == 200, "a bare hash is the weak case"
    assert shop.claim(paid).status == 403
    text = to_sign(shop, paid)
    proof = payer.sign_message(text).signature.hex()
    mine = shop.claim(paid, proof=proof)
    assert mine.status == 200, mine.body
    assert mine.body["proxy"]["password"] != stolen.body["proxy"]["password"]
    credit = "/v1/x402/manage/pool/credit"
    tokens = [r.body["sessionToken"] for r in (stolen, mine)]
    assert [shop.call(credit, headers={"x-session-token": t}).status for t in tokens] == [401, 200]
    pepper = shop.sale_wiring.counter.mint.box
    hashes = [pepper.hash(r.body["proxy"]["password"]) for r in (stolen, mine)]
    found = [shop.dynamo.run(find_secret(f"{PREFIX}access", h)) for h in hashes]
    assert (found[0], found[1] is not None) == (None, True)
    assert shop.claim(paid, THIEF).status == 403
    assert shop.claim(paid, proof=proof).body["proxy"] == mine.body["proxy"]


def test_several_logs_of_one_payer_add_up(shop: Shop) -> None:
    collector = new_address()
    shop.anvil.call("anvil_setCode", collector, contract_code("collector"))
    payer = shop.anvil.new_wallet()
    shop.anvil.send(payer, USDC, approve(collector, DUE))
    kinds = ["address", "address[]", "address", "uint256"]
    call = encode(kinds, [USDC, [payer.address] * 4, RECIPIENT, DUE // 4]).hex()
    paid = shop.anvil.send(shop.anvil.new_wallet(), collector, "0x24a71994" + call)
    assert len(shop.anvil.call("eth_getTransactionReceipt", paid)["logs"]) >= 4
    answer = shop.claim(paid)
    assert (answer.status, answer.body["payment"]["amountUSDC"]) == (200, 0.4)


def test_a_payment_that_is_older_than_a_quote_lives_needs_its_payer(shop: Shop) -> None:
    payer = shop.anvil.new_wallet()
    paid = shop.anvil.send(payer, USDC, transfer())
    counter, hour_ms = shop.sale_wiring.counter, 3_600_000
    object.__setattr__(counter, "now_ms", lambda: now_ms() + hour_ms + 10_000)
    shop.validated_at(counter.now_ms())
    old = shop.claim(paid)
    assert (old.status, old.body["code"]) == (403, "PAYMENT_TOO_OLD")
    proof = payer.sign_message(to_sign(shop, paid)).signature.hex()
    assert shop.claim(paid, proof=proof).status == 200
    object.__setattr__(counter, "now_ms", now_ms)


def test_a_payment_on_another_chain_is_not_known_here(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    fields: Any = {"to": USDC, "data": transfer(), "value": 0, "gas": 200_000, "nonce": 0, "chainId": 84532}
    fields |= {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 1}
    signed = wallet.sign_transaction(fields)
    with pytest.raises(RuntimeError):
        shop.anvil.call("eth_sendRawTransaction", "0x" + bytes(signed.raw_transaction).hex())
    answer = shop.claim("0x" + bytes(signed.hash).hex())
    assert (answer.status, "do not pay again" in answer.body["message"]) == (503, True)
    other = {"transactionHash": "0x" + "ab" * 32, "network": "base-sepolia"}
    assert shop.call(QUERY, headers={"x-payment": json.dumps(other)}).status == 400


def test_what_was_reorged_away_after_it_was_claimed_buys_nothing_more(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    paid = shop.anvil.send(wallet, USDC, transfer())
    first = shop.claim(paid)
    assert first.status == 200
    shop.anvil.call("anvil_reorg", 1, [])
    assert shop.anvil.call("eth_getTransactionReceipt", paid) is None
    assert shop.claim(paid).body["proxy"] == first.body["proxy"]
    mined = shop.anvil.call("eth_sendRawTransaction", raw(wallet, transfer()))
    if mined == paid:
        assert shop.claim(paid).body["proxy"] == first.body["proxy"]
    assert shop.claim(paid, THIEF).status == 403


def test_a_victims_hash_against_another_quote_buys_nothing(shop: Shop) -> None:
    """The thief had asked before the payment, but for another amount, or for a top-up of a key of his own."""
    small, large = QUERY, QUERY.replace("0.1", "0.2")
    shop.call(large, source=THIEF)
    paid = shop.anvil.send(shop.anvil.new_wallet(2 * DUE), USDC, transfer(amount=2 * DUE))
    assert shop.claim(paid, THIEF, small).status == 403
    victim = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    assert shop.claim(victim, THIEF, large).status == 402, "half of the price, and nothing is consumed"
    own = shop.anvil.send(shop.anvil.new_wallet(2 * DUE), USDC, transfer(amount=2 * DUE))
    token = {"x-session-token": shop.claim(own, THIEF, large).body["sessionToken"]}
    top_up = "/v1/x402/manage/pool/topup"
    stolen = shop.call(
        top_up, "POST", {"addTrafficGB": 0.1}, token | {"payment-signature": victim}, source=THIEF
    )
    assert stolen.status == 403
    assert shop.claim(victim).status == 200


def test_fifty_claims_at_once_mint_one_key(shop: Shop) -> None:
    counter = shop.sale_wiring.counter
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    order, paid = pool_order(terms, prices), shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    with ThreadPoolExecutor(25) as pool:
        answers = list(
            pool.map(lambda _: counter.buy([Offer(order, prices)], Payment("base", paid), BUYER), range(50))
        )
    assert all(isinstance(a, Bought) for a in answers), answers[:3]
    assert [a.repeated for a in answers if isinstance(a, Bought)].count(False) == 1
    assert len({a.secret for a in answers if isinstance(a, Bought)}) == 1


def both_claim(shop: Functions, network: str, paid: str) -> list[str]:
    """What two who had both asked before it was paid get, who show a bare hash in the same moment."""
    counter, gate = shop.sale_wiring.counter, threading.Barrier(2)
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    offers = [Offer(pool_order(terms, prices), prices)]

    def claim(source: str) -> str:
        gate.wait()
        got = counter.buy(offers, Payment(network, paid), source)
        return "bought" if isinstance(got, Bought) else got.problem.value

    with ThreadPoolExecutor(2) as pool:
        return sorted(pool.map(claim, (BUYER, THIEF)))


def test_of_two_claimants_at_once_one_is_served(shop: Shop) -> None:
    shop.call(QUERY, source=THIEF)
    for _ in range(5):
        paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
        assert both_claim(shop, "base", paid) == ["PAYMENT_NOT_PROVEN_YOURS", "bought"]


def test_another_country_is_the_same_purchase(shop: Shop) -> None:
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    assert shop.claim(paid, query=QUERY.replace("us", "de")).status == 200


def hang_up(method: str, result: Any) -> Any:
    raise ConnectionError


LIES: list[tuple[str, Callable[[str, Any], Any]]] = [
    ("down", hang_up),
    ("null", lambda m, r: None),
    ("no receipt", lambda m, r: None if m == "eth_getTransactionReceipt" else r),
    ("behind", lambda m, r: "0x0" if m == "eth_blockNumber" else r),
    ("another block", lambda m, r: r | {"hash": "0x" + "00" * 32} if m == "eth_getBlockByNumber" else r),
    ("another height", lambda m, r: r | {"number": "0x1"} if m == "eth_getBlockByNumber" else r),
    ("nonsense", lambda m, r: {"a": 1}),
]


@pytest.mark.parametrize(("name", "fault"), LIES, ids=[n for n, _ in LIES])
def test_a_node_that_cannot_be_trusted_makes_us_wait_and_consumes_nothing(
    shop: Shop, name: str, fault: Callable[[str, Any], Any]
) -> None:
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    shop.node.fault = fault
    answer = shop.claim(paid)
    assert (answer.status, "do not pay again" in answer.body["message"]) == (503, True), answer.body
    shop.node.fault = lambda method, result: result
    assert shop.claim(paid).status == 200


def test_a_node_that_wants_fewer_questions_makes_us_wait(shop: Shop) -> None:
    def refuse(method: str, result: Any) -> Any:
        raise PermissionError

    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    shop.node.fault = refuse
    assert shop.claim(paid).status == 503
    shop.node.fault = lambda method, result: result
    assert shop.claim(paid).status == 200


def test_two_hundred_buyers_with_two_hundred_payments_are_all_served_once(shop: Shop) -> None:
    counter = shop.sale_wiring.counter
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    order = pool_order(terms, prices)
    wallet = shop.anvil.new_wallet(DUE * 200)
    shop.anvil.call("evm_setAutomine", False)
    sent = [shop.anvil.call("eth_sendRawTransaction", raw(wallet, transfer(), nonce=n)) for n in range(200)]
    shop.anvil.call("evm_mine")
    shop.anvil.call("evm_setAutomine", True)
    while shop.anvil.call("eth_getTransactionReceipt", sent[-1]) is None:
        shop.anvil.call("evm_mine")

    def buy(tx_hash: str) -> Any:
        return counter.buy([Offer(order, prices)], Payment("base", tx_hash), BUYER)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(buy, sent * 2))
    assert all(isinstance(a, Bought) for a in answers), [a for a in answers if not isinstance(a, Bought)][:3]
    assert len({a.secret for a in answers}) == 200
    assert [a.repeated for a in answers].count(False) == 200
