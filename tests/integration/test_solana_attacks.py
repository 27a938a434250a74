"""What is tried against the Solana rail, each a real transaction on a real Solana runtime."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from local import lab
from shared.runtime.dynamo import SyncDynamo
from shared.sale.model import Bought, Offer, Payment, Terms
from shared.sale.rules import proof_text, read_prices, read_terms
from shared.sale.service import pool_order
from tests.integration.test_attacks import BUYER, DUE, QUERY, THIEF, Node, both_claim, hang_up, statement
from tests.support import solana
from tests.support.functions import Functions, Reply
from tests.support.solana import TOKEN_2022, USDC, Surfnet, account_of, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def real_time(method: str, result: Any) -> Any:
    """The runtime's block times are a thousand times too small."""
    if method == "getTransaction" and result:
        return result | {"blockTime": int(time.time())}
    return result


class Shop(Functions):
    """The sale on a real Solana runtime behind a node that can misbehave."""

    def __init__(self, dynamo: SyncDynamo, redis_url: str, files: lab.LabFiles, chain: Surfnet) -> None:
        self.node, self.us_wallet, self.net = Node(chain.url), Keypair(), chain
        self.node.fault = real_time
        self.us = self.us_wallet.pubkey()
        super().__init__(dynamo, redis_url, files, solana_url=self.node.url, solana_recipient=str(self.us))
        chain.place(self.us, solana.SYSTEM)
        self.ours = chain.place_tokens(self.us, 0)
        self.open()
        self.call(QUERY)

    def close(self) -> None:
        super().close()
        self.node.close()

    def pay(self, wallet: Keypair, amount: int = DUE, **how: Any) -> str:
        return self.net.send([self.move(wallet, amount)], wallet, **how)

    def move(self, wallet: Keypair, amount: int = DUE, **how: Any) -> Any:
        return transfer(account_of(wallet.pubkey()), self.ours, wallet.pubkey(), amount, **how)

    def claim(self, paid: str, source: str = BUYER, **more: str) -> Reply:
        headers = {"payment-signature": paid, **{k.replace("_", "-"): v for k, v in more.items()}}
        return self.call(QUERY, headers=headers, source=source)


@pytest.fixture
def shop(
    dynoxide: SyncDynamo,
    valkey_url: str,
    lab_files: lab.LabFiles,
    surfnet: Surfnet,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Shop(dynoxide, valkey_url, lab_files, surfnet)
    yield made
    made.close()


def signature(shop: Shop, wallet: Keypair, paid: str, url: str = "") -> str:
    signed = proof_text(statement(shop, paid, url=url, network="solana"))
    return str(wallet.sign_message(signed.encode()))


# What is no payment


@pytest.mark.parametrize("broken", ["1" * 85, "1" * 89, "0" * 88, "O" + "1" * 87, "1" * 87 + "l"])
def test_what_is_no_signature_is_no_hash(shop: Shop, broken: str) -> None:
    assert shop.claim(broken).status == 400


def other_mint(shop: Shop, wallet: Keypair) -> str:
    mint = Keypair().pubkey()
    shop.net.place_mint(mint)
    target = shop.net.place_tokens(shop.us, 0, mint)
    source = shop.net.place_tokens(wallet.pubkey(), DUE, mint)
    return shop.net.send([transfer(source, target, wallet.pubkey(), DUE, mint=mint)], wallet)


def token_2022(shop: Shop, wallet: Keypair) -> str:
    shop.net.place_mint(USDC, TOKEN_2022)
    source, target = (
        shop.net.place_tokens(owner, amount, program=TOKEN_2022)
        for owner, amount in ((wallet.pubkey(), DUE), (shop.us, 0))
    )
    return shop.net.send([transfer(source, target, wallet.pubkey(), DUE, program=TOKEN_2022)], wallet)


def handed_over(shop: Shop, wallet: Keypair) -> str:
    account = shop.net.place_tokens(wallet.pubkey(), DUE, at=Keypair().pubkey())
    return shop.net.send([solana.hand_over(account, wallet.pubkey(), shop.us)], wallet)


def filled_and_handed_over(shop: Shop, wallet: Keypair) -> str:
    account = shop.net.place_tokens(wallet.pubkey(), 0, at=Keypair().pubkey())
    me = wallet.pubkey()
    return shop.net.send(
        [transfer(account_of(me), account, me, DUE), solana.hand_over(account, me, shop.us)], wallet
    )


def other_account_of_ours(shop: Shop, wallet: Keypair) -> str:
    target = shop.net.place_tokens(shop.us, 0, at=Keypair().pubkey())
    return shop.net.send([transfer(account_of(wallet.pubkey()), target, wallet.pubkey(), DUE)], wallet)


def somebody_else(shop: Shop, wallet: Keypair) -> str:
    target = shop.net.place_tokens(Keypair().pubkey(), 0)
    return shop.net.send([transfer(account_of(wallet.pubkey()), target, wallet.pubkey(), DUE)], wallet)


def there_and_back(shop: Shop, wallet: Keypair) -> str:
    back = transfer(shop.ours, account_of(wallet.pubkey()), shop.us, DUE)
    return shop.net.send([shop.move(wallet), back], wallet, shop.us_wallet)


def to_itself(shop: Shop, wallet: Keypair) -> str:
    shop.net.place_tokens(shop.us, DUE)
    return shop.net.send([transfer(shop.ours, shop.ours, shop.us, DUE)], shop.us_wallet)


def between_our_accounts(shop: Shop, wallet: Keypair) -> str:
    source = shop.net.place_tokens(shop.us, DUE, at=Keypair().pubkey())
    return shop.net.send([transfer(source, shop.ours, shop.us, DUE)], shop.us_wallet)


NOT_PAID: list[Callable[[Shop, Keypair], str]] = [
    other_mint,
    token_2022,
    handed_over,
    filled_and_handed_over,
    other_account_of_ours,
    somebody_else,
    there_and_back,
    to_itself,
    between_our_accounts,
    lambda shop, wallet: shop.pay(wallet, 0),
    lambda shop, wallet: shop.net.send([solana.memo("paid 0.4 USDC", wallet.pubkey())], wallet),
]


@pytest.mark.parametrize("make", NOT_PAID)
def test_what_is_no_payment_buys_nothing(shop: Shop, make: Callable[[Shop, Keypair], str]) -> None:
    answer = shop.claim(make(shop, shop.net.new_wallet()))
    assert answer.status == 402, answer.body
    assert "no_transfer_of_usdc_to_us" in answer.body["error"]


def test_a_transaction_that_failed_is_told_so(shop: Shop) -> None:
    failed = shop.pay(shop.net.new_wallet(DUE - 1))
    assert "transaction_failed" in shop.claim(failed).body["error"]


# What is one


def test_every_shape_of_transaction_pays_alike(shop: Shop) -> None:
    first, second, third = (shop.net.new_wallet() for _ in range(3))
    me = third.pubkey()
    table = solana.lookup_table(shop.net, account_of(me), shop.ours, USDC)
    shop.net.send([solana.memo("time for the table to be known", me)], third)
    paid = [
        shop.pay(first),
        shop.pay(second, legacy=True),
        shop.net.send([shop.move(third)], third, tables=[table]),
    ]
    assert [shop.claim(p).status for p in paid] == [200] * 3


def test_several_transfers_of_one_payer_add_up(shop: Shop) -> None:
    wallet = shop.net.new_wallet()
    paid = shop.net.send([shop.move(wallet, DUE // 4), shop.move(wallet, DUE - DUE // 4)], wallet)
    answer = shop.claim(paid)
    assert (answer.status, answer.body["payment"]["amountUSDC"]) == (200, 0.4)


def test_an_account_that_is_opened_by_the_payment_itself_held_nothing_before(shop: Shop) -> None:
    """Opening it runs inner instructions, and its balance before is absent."""
    wallet = shop.net.new_wallet()
    shop.net.place(shop.ours, solana.SYSTEM)
    paid = shop.net.send([solana.open_account(wallet.pubkey(), shop.us), shop.move(wallet)], wallet)
    bought = shop.claim(paid)
    assert bought.status == 200, bought.body
    assert bought.body["payment"]["amountUSDC"] == 0.4


@pytest.mark.parametrize(
    ("amount", "status", "allocated"),
    [(391_999, 402, 0), (392_000, 200, 10**8), (408_000, 200, 102_000_000), (408_001, 403, 0)],
)
def test_the_edge_of_the_tolerance(shop: Shop, amount: int, status: int, allocated: int) -> None:
    answer = shop.claim(shop.pay(shop.net.new_wallet(), amount))
    assert answer.status == status
    if allocated:
        assert answer.body["credit"]["allocatedBytes"] == allocated


def test_what_is_not_confirmed_yet_is_waited_for(shop: Shop) -> None:
    paid = shop.pay(shop.net.new_wallet())

    def early(method: str, result: Any) -> Any:
        if method == "getSignatureStatuses":
            return result | {"value": [result["value"][0] | {"confirmationStatus": "processed"}]}
        return real_time(method, result)

    shop.node.fault = early
    waiting = shop.claim(paid)
    assert (waiting.status, "do not pay again" in waiting.body["message"]) == (503, True)
    shop.node.fault = real_time
    assert shop.claim(paid).status == 200


LIES: list[tuple[str, Callable[[str, Any], Any]]] = [
    ("down", hang_up),
    ("null", lambda m, r: None),
    ("no transaction", lambda m, r: None if m == "getTransaction" else r),
    ("no status", lambda m, r: {"value": [None]} if m == "getSignatureStatuses" else real_time(m, r)),
    ("no time", lambda m, r: r | {"blockTime": None} if m == "getTransaction" else r),
    ("nonsense", lambda m, r: {"a": 1}),
]


@pytest.mark.parametrize(("name", "fault"), LIES, ids=[n for n, _ in LIES])
def test_a_node_that_cannot_be_trusted_makes_us_wait_and_consumes_nothing(
    shop: Shop, name: str, fault: Callable[[str, Any], Any]
) -> None:
    paid = shop.pay(shop.net.new_wallet())
    shop.node.fault = fault
    answer = shop.claim(paid)
    assert (answer.status, "do not pay again" in answer.body["message"]) == (503, True), answer.body
    shop.node.fault = real_time
    assert shop.claim(paid).status == 200


def test_a_node_that_wants_fewer_questions_makes_us_wait(shop: Shop) -> None:
    def refuse(method: str, result: Any) -> Any:
        raise PermissionError

    paid = shop.pay(shop.net.new_wallet())
    shop.node.fault = refuse
    assert shop.claim(paid).status == 503
    shop.node.fault = real_time
    assert shop.claim(paid).status == 200


def test_what_is_forgotten_by_the_chain_after_it_was_claimed_buys_nothing_more(shop: Shop) -> None:
    paid = shop.pay(shop.net.new_wallet())
    first = shop.claim(paid)
    shop.node.fault = lambda method, result: None
    assert shop.claim(paid).body["proxy"] == first.body["proxy"]
    assert shop.claim(paid, THIEF).status == 403


# Whose it is


def test_of_two_claimants_at_once_one_is_served(shop: Shop) -> None:
    shop.call(QUERY, source=THIEF)
    paid = shop.pay(shop.net.new_wallet())
    assert both_claim(shop, "solana", paid) == ["PAYMENT_NOT_PROVEN_YOURS", "bought"]


def test_a_victims_hash_against_another_quote_buys_nothing(shop: Shop) -> None:
    """The thief had asked before the payment, but for another amount."""
    large = QUERY.replace("0.1", "0.2")
    shop.call(large, source=THIEF)
    paid = shop.pay(shop.net.new_wallet(), 2 * DUE)
    assert shop.claim(paid, THIEF).status == 403
    victim = shop.pay(shop.net.new_wallet())
    assert shop.call(large, headers={"payment-signature": victim}, source=THIEF).status == 402
    assert shop.claim(victim).status == 200


def test_a_stolen_hash_buys_nothing_before_or_after_its_owner_claims(shop: Shop) -> None:
    paid_at = int(time.time())
    paid = shop.pay(shop.net.new_wallet())

    def at_the_payment(method: str, result: Any) -> Any:
        return result | {"blockTime": paid_at} if method == "getTransaction" else result

    shop.node.fault = at_the_payment
    time.sleep(max(paid_at + 4.2 - time.time(), 0))  # the lab's clock error, and the chain's
    shop.call(QUERY, source=THIEF)
    late, first, after = shop.claim(paid, THIEF), shop.claim(paid), shop.claim(paid, THIEF)
    assert (late.status, first.status, after.status) == (403, 200, 403)
    assert shop.claim(paid).body["proxy"] == first.body["proxy"]


def test_a_payment_that_is_older_than_a_quote_lives_needs_its_payer(shop: Shop) -> None:
    wallet = shop.net.new_wallet()
    paid = shop.pay(wallet)
    shop.node.fault = lambda m, r: r | {"blockTime": int(time.time()) - 3700} if m == "getTransaction" else r
    assert shop.claim(paid).status == 403
    assert shop.claim(paid, THIEF, x_payment_proof=signature(shop, wallet, paid)).status == 200


def test_a_signed_message_of_the_payer_is_honoured_and_nobody_elses(shop: Shop) -> None:
    wallet, other = shop.net.new_wallet(), Keypair()
    paid = shop.pay(wallet)
    for wrong in (
        signature(shop, other, paid),
        signature(shop, wallet, paid, "https://api.example/"),
        "x",
        "1" * 88,
    ):
        assert shop.claim(paid, THIEF, x_payment_proof=wrong).status == 403
    assert shop.claim(paid, THIEF, x_payment_proof=signature(shop, wallet, paid)).status == 200


def test_a_delegate_is_not_the_payer(shop: Shop) -> None:
    payer, delegate = shop.net.new_wallet(), shop.net.new_wallet()
    account = account_of(payer.pubkey())
    shop.net.send([solana.approve(account, delegate.pubkey(), payer.pubkey(), DUE)], payer)
    paid = shop.net.send([transfer(account, shop.ours, delegate.pubkey(), DUE)], delegate)
    assert shop.claim(paid, THIEF, x_payment_proof=signature(shop, delegate, paid)).status == 403
    assert shop.claim(paid, THIEF, x_payment_proof=signature(shop, payer, paid)).status == 200


@pytest.mark.parametrize("how", ["memo", "reference"])
def test_a_tag_is_a_memo_or_a_reference_key(shop: Shop, how: str) -> None:
    quote = shop.call(QUERY).body["paymentRequirement"]["extra"]
    wallet = shop.net.new_wallet()
    tag = quote["quoteTag"]
    key = Pubkey.from_bytes(bytes.fromhex(tag))
    moves = (
        [shop.move(wallet), solana.memo(tag, wallet.pubkey())]
        if how == "memo"
        else [shop.move(wallet, references=[key])]
    )
    paid = shop.net.send(moves, wallet)
    assert shop.claim(paid, THIEF, x_quote_secret="ab" * 32).status == 403
    mine = shop.claim(paid, THIEF, x_quote_secret=quote["quoteSecret"])
    assert mine.status == 200, mine.body
    assert shop.claim(paid, BUYER).status == 403


def test_a_tag_that_a_delegate_put_there_proves_nothing(shop: Shop) -> None:
    quote = shop.call(QUERY, source=THIEF).body["paymentRequirement"]["extra"]
    payer, delegate = shop.net.new_wallet(), shop.net.new_wallet()
    account = account_of(payer.pubkey())
    shop.net.send([solana.approve(account, delegate.pubkey(), payer.pubkey(), DUE)], payer)
    moves = [
        transfer(account, shop.ours, delegate.pubkey(), DUE),
        solana.memo(quote["quoteTag"], delegate.pubkey()),
    ]
    paid = shop.net.send(moves, delegate)
    assert shop.claim(paid, "127.20.0.99", x_quote_secret=quote["quoteSecret"]).status == 403


def test_each_of_several_payers_gets_what_they_paid_for(shop: Shop) -> None:
    payers = [shop.net.new_wallet() for _ in range(2)]
    paid = shop.net.send([shop.move(payers[0]), shop.move(payers[1], 2 * DUE)], *payers)
    assert shop.claim(paid).status == 403
    bought = [shop.claim(paid, THIEF, x_payment_proof=signature(shop, p, paid)) for p in payers]
    assert [b.body["credit"]["allocatedBytes"] for b in bought] == [10**8, 2 * 10**8]
    assert bought[0].body["proxy"]["password"] != bought[1].body["proxy"]["password"]


def test_when_others_were_paid_too_nobody_can_say_who_of_several_paid_us(shop: Shop) -> None:
    first, second = shop.net.new_wallet(), shop.net.new_wallet()
    target = shop.net.place_tokens(Keypair().pubkey(), 0)
    aside = transfer(account_of(second.pubkey()), target, second.pubkey(), DUE)
    paid = shop.net.send([shop.move(first), aside], first, second)
    answer = shop.claim(paid)
    assert (answer.status, answer.body["code"]) == (409, "PAYMENT_OF_SEVERAL_PAYERS")


def test_fifty_claims_at_once_mint_one_key(shop: Shop) -> None:
    counter = shop.sale_wiring.counter
    prices = read_prices(shop.sale_wiring.live.get("prices"))
    assert prices is not None
    terms = read_terms({"traffic": "0.1"}, prices)
    assert isinstance(terms, Terms)
    order, paid = pool_order(terms, prices), shop.pay(shop.net.new_wallet())
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda _: counter.buy([Offer(order, prices)], Payment("solana", paid), BUYER), range(50))
        )
    assert all(isinstance(a, Bought) for a in answers), answers[:3]
    assert len({a.secret for a in answers if isinstance(a, Bought)}) == 1
