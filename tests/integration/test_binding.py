"""Whose a payment is, proven on a real EVM node: by the payer's key, by a contract wallet, or by the quote's tag."""

import json
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount

from local.evm import USDC, contract_code, new_address
from shared.sale import owed_table
from shared.sale.rules import proof_typed_data
from tests.integration.test_attacks import (
    BUYER,
    DUE,
    QUERY,
    RECIPIENT,
    THIEF,
    Shop,
    approve,
    shop,
    statement,
    to_sign,
    transfer,
)
from tests.support.functions import PREFIX, Reply

__all__ = ["shop"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
COLLECTOR = new_address()
CREDIT = "/v1/x402/manage/pool/credit"


def quoted(shop: Shop, source: str = BUYER, query: str = QUERY) -> dict[str, str]:
    answer = shop.call(query, source=source)
    assert answer.status == 402
    extra: dict[str, str] = answer.body["paymentRequirement"]["extra"]
    return extra


def show(shop: Shop, paid: str, secret: str, source: str = THIEF, query: str = QUERY) -> Reply:
    return shop.call(query, headers={"payment-signature": paid, "x-quote-secret": secret}, source=source)


def signature(shop: Shop, wallet: LocalAccount, paid: str, **change: Any) -> str:
    return wallet.sign_message(to_sign(shop, paid, **change)).signature.hex()


def works(shop: Shop, reply: Reply) -> bool:
    return shop.call(CREDIT, headers={"x-session-token": reply.body["sessionToken"]}).status == 200


# The quote's secret


def test_a_tagged_payment_is_for_whoever_knows_the_secret_wherever_they_are(shop: Shop) -> None:
    quote = quoted(shop)
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer() + quote["quoteTag"])
    first = show(shop, paid, quote["quoteSecret"], "127.20.0.77")
    assert first.status == 200, first.body
    assert show(shop, paid, quote["quoteSecret"], "127.20.0.78").body["proxy"] == first.body["proxy"]
    on_chain = json.dumps(shop.anvil.call("eth_getTransactionByHash", paid))
    assert quote["quoteSecret"] not in on_chain
    assert quote["quoteTag"] in on_chain


def test_a_neighbour_behind_the_same_address_is_told_another_secret(shop: Shop) -> None:
    mine, neighbours = quoted(shop), quoted(shop)
    assert mine["quoteId"] == neighbours["quoteId"]
    assert mine["quoteSecret"] != neighbours["quoteSecret"]
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer() + mine["quoteTag"])
    first = show(shop, paid, mine["quoteSecret"], BUYER)
    assert first.status == 200
    for stolen in (show(shop, paid, neighbours["quoteSecret"], BUYER), shop.claim(paid, BUYER)):
        assert stolen.status == 403, "what a secret bought is not given out for a bare hash, even here"
    assert "X-Quote-Secret" in shop.claim(paid, BUYER).body["message"]


def test_a_tagged_payment_is_nobodys_by_its_hash_also_behind_the_same_address(shop: Shop) -> None:
    quote = quoted(shop)
    paid = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer() + quote["quoteTag"])
    assert shop.claim(paid, BUYER).status == 403
    assert show(shop, paid, quote["quoteSecret"], BUYER).status == 200
    assert shop.claim(paid, BUYER).status == 403


def test_a_signature_ends_what_a_bare_hash_had_bought(shop: Shop) -> None:
    wallet = shop.anvil.new_wallet()
    paid = shop.anvil.send(wallet, USDC, transfer())
    stolen = shop.claim(paid, BUYER)
    assert stolen.status == 200, "a bare hash behind a shared address is the weak case"
    mine = shop.claim(paid, THIEF, proof=signature(shop, wallet, paid))
    assert mine.status == 200
    assert (works(shop, stolen), works(shop, mine)) == (False, True)
    assert shop.claim(paid, BUYER).status == 403


def test_a_secret_that_is_not_in_the_transaction_or_not_ours_or_for_something_else_proves_nothing(
    shop: Shop,
) -> None:
    quote = quoted(shop)
    untagged = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer())
    assert show(shop, untagged, quote["quoteSecret"]).status == 403
    from shared.sale.rules import quote_tag

    own = "ab" * 32
    tagged = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer() + quote_tag(own))
    assert show(shop, tagged, own).status == 403
    told = shop.anvil.send(shop.anvil.new_wallet(), USDC, transfer() + quote["quoteSecret"])
    assert show(shop, told, quote["quoteSecret"]).status == 403
    assert show(shop, told, quote["quoteTag"]).status == 403
    assert show(shop, told, "not hex").status == 400


def test_somebody_elses_tag_behind_a_transfer_from_proves_nothing(shop: Shop) -> None:
    """Whoever was approved may move the money, but does not become its payer."""
    quote = quoted(shop, THIEF)
    payer, spender = shop.anvil.new_wallet(), shop.anvil.new_wallet()
    shop.anvil.send(payer, USDC, approve(spender.address, DUE))
    sides = payer.address[2:].lower().rjust(64, "0") + RECIPIENT[2:].lower().rjust(64, "0")
    paid = shop.anvil.send(spender, USDC, "0x23b872dd" + sides + f"{DUE:064x}" + quote["quoteTag"])
    assert show(shop, paid, quote["quoteSecret"], "127.20.0.99").status == 403


# Signatures


def test_typed_data_counts_as_the_text_does(shop: Shop) -> None:
    payer = shop.anvil.new_wallet()
    paid = shop.anvil.send(payer, USDC, transfer())
    typed = encode_typed_data(full_message=proof_typed_data(statement(shop, paid), 8453))
    assert shop.claim(paid, THIEF, proof=payer.sign_message(typed).signature.hex()).status == 200


def test_a_signature_is_for_one_transaction_and_one_purchase_at_one_url(shop: Shop) -> None:
    payer = shop.anvil.new_wallet()
    paid = shop.anvil.send(payer, USDC, transfer())
    other = "0x" + "12" * 32
    for wrong in (
        signature(shop, payer, other),
        signature(shop, payer, paid, due=DUE + 1),
        signature(shop, payer, paid, url="https://api.example/v1/x402/proxy"),
        signature(shop, shop.anvil.new_wallet(), paid),
        "0x",
        "zz",
        "00" * 4000,
    ):
        assert shop.claim(paid, THIEF, proof=wrong).status == 403
    assert shop.claim(paid, THIEF, proof=signature(shop, payer, paid)).status == 200


def test_the_text_to_sign_is_told_by_the_402_and_by_the_refusal(shop: Shop) -> None:
    payer = shop.anvil.new_wallet()
    text = quoted(shop)["textToSign"]
    paid = shop.anvil.send(payer, USDC, transfer())
    from shared.sale.rules import proof_text

    assert text.replace("<network>", "base").replace("<transaction hash>", paid) == proof_text(
        statement(shop, paid)
    )
    refused = shop.claim(paid, "127.20.0.55")
    assert proof_text(statement(shop, paid)).replace("\n", "\\n") in refused.body["message"]


def contract_wallet(shop: Shop, owner: LocalAccount) -> str:
    """A wallet with code, an owner and USDC."""
    address = new_address()
    shop.anvil.call("anvil_setCode", address, contract_code("wallet"))
    shop.anvil.call("anvil_setStorageAt", address, "0x" + "0" * 64, "0x" + owner.address[2:].rjust(64, "0"))
    shop.anvil.set_balance(USDC, address, DUE)
    return address


def test_a_contract_wallet_proves_its_payment_by_its_own_word(shop: Shop) -> None:
    owner, other = shop.anvil.new_wallet(), shop.anvil.new_wallet()
    wallet = contract_wallet(shop, owner)
    call = encode(["address", "bytes"], [USDC, bytes.fromhex(transfer()[2:])]).hex()
    paid = shop.anvil.send(owner, wallet, "0x1cff79cd" + call)
    assert shop.claim(paid, THIEF, proof=signature(shop, other, paid)).status == 403
    proof = signature(shop, owner, paid)
    mine = shop.claim(paid, THIEF, proof=proof)
    assert mine.status == 200, mine.body
    assert shop.claim(paid, "127.20.0.98", proof=proof).body["proxy"] == mine.body["proxy"]


def test_a_wallet_that_cannot_be_asked_makes_us_wait(shop: Shop) -> None:
    owner = shop.anvil.new_wallet()
    wallet = contract_wallet(shop, owner)
    call = encode(["address", "bytes"], [USDC, bytes.fromhex(transfer()[2:])]).hex()
    paid = shop.anvil.send(owner, wallet, "0x1cff79cd" + call)

    def fault(method: str, result: Any) -> Any:
        if method == "eth_getCode":
            raise PermissionError
        return result

    shop.node.fault = fault
    waiting = shop.claim(paid, THIEF, proof=signature(shop, owner, paid))
    assert (waiting.status, "do not pay again" in waiting.body["message"]) == (503, True)
    shop.node.fault = lambda method, result: result
    assert shop.claim(paid, THIEF, proof=signature(shop, owner, paid)).status == 200


# Several payers in one transaction


def collected(shop: Shop, payers: list[LocalAccount]) -> str:
    shop.anvil.call("anvil_setCode", COLLECTOR, contract_code("collector"))
    for payer in payers:
        shop.anvil.send(payer, USDC, approve(COLLECTOR, DUE))
    kinds = ["address", "address[]", "address", "uint256"]
    call = encode(kinds, [USDC, [p.address for p in payers], RECIPIENT, DUE]).hex()
    return shop.anvil.send(shop.anvil.new_wallet(), COLLECTOR, "0x24a71994" + call)


def test_each_of_several_payers_gets_what_they_paid_for_and_only_by_their_signature(shop: Shop) -> None:
    payers = [shop.anvil.new_wallet() for _ in range(3)]
    paid = collected(shop, payers)
    bare = shop.claim(paid)
    assert (bare.status, "several payers" in bare.body["message"]) == (403, True)
    assert shop.claim(paid, THIEF, proof=signature(shop, shop.anvil.new_wallet(), paid)).status == 403
    proofs = [signature(shop, payer, paid) for payer in payers]
    bought = [shop.claim(paid, THIEF, proof=proof) for proof in proofs]
    assert [b.status for b in bought] == [200] * 3
    assert len({b.body["proxy"]["password"] for b in bought}) == 3
    assert [b.body["credit"]["allocatedBytes"] for b in bought] == [10**8] * 3
    again = shop.claim(paid, THIEF, proof=proofs[1])
    assert again.body["proxy"] == bought[1].body["proxy"]
    assert shop.claim(paid, BUYER).status == 403
    assert shop.dynamo.run(owed_table.all_owed(f"{PREFIX}sales", 10)).rows == ()
