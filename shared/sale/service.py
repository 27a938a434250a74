"""Buying and topping up: verify (or settle), then mint and claim in one transaction.

A payment is either unclaimed, or claimed together with what it bought. That it is owed is written before; what a crash
leaves is finished by the buyer's next request, or by the job in `owed.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from shared.access import table as access
from shared.access.model import DisabledReason, Pak
from shared.access.secrets import token_hash
from shared.chain.model import ReadFailed, Valid
from shared.kernel.ids import AccountId
from shared.runtime.dynamo import StoreUnavailable
from shared.sale import owed_table
from shared.sale import table as sales
from shared.sale.minting import Refunded
from shared.sale.model import (
    Bought,
    Claim,
    Offer,
    Order,
    Payment,
    Prices,
    Problem,
    Product,
    Proof,
    Refused,
    Session,
    Terms,
)
from shared.sale.owed_table import Refund
from shared.sale.ports import DEVICE_WAIT_MS, NoDevice
from shared.sale.rules import REEMIT_WINDOW_MS, due_micro, lease_id_of, lease_of, payment_fingerprint
from shared.sale.verifying import SUSPENDED, Verified, Verifier

B = TypeVar("B", Bought, Claim)
WAITS_FOR_DEVICE: Final = (
    "the last free device of that kind was taken before this payment was seen; it is kept, and served as soon as one is "
    f"free within {DEVICE_WAIT_MS // 60_000} minutes, or listed for a refund after that"
)


class Suspended(StoreUnavailable):
    """What was paid for is not on sale in this moment: it is owed, and whoever serves it asks again."""


@dataclass(frozen=True, slots=True)
class Counter(Verifier):
    """Everything a sale needs, wired once."""

    # Buying

    def buy(self, offers: Sequence[Offer], payment: Payment, address: str) -> Bought | Refused:
        """Credentials for a payment. Raises StoreUnavailable when nothing is known: ask again, never pay again.

        `offers`: what is asked for at today's terms first, then at terms that are honoured for who was quoted them.
        """
        requester, order = self.requester(address), offers[0].order
        return self._named(payment, order, requester, lambda: self._buy(offers, payment, requester))

    def _buy(self, offers: Sequence[Offer], payment: Payment, requester: str) -> Bought | Refused:
        known = self.mint.claimed(payment)
        if known is not None:
            return self._again(known, offers, requester, payment)
        served = self._verify_and_serve(offers, payment, requester)
        return self._again(served, offers, requester, payment) if isinstance(served, Claim) else served

    def _verify_and_serve(
        self, offers: Sequence[Offer], payment: Payment, requester: str
    ) -> Bought | Claim | Refused:
        found = self.verify(payment, offers, requester)
        return self._serve_or_refuse(found, requester) if isinstance(found, Verified) else found

    def _named(
        self, payment: Payment, order: Order, requester: str, work: Callable[[], B | Refused]
    ) -> B | Refused:
        """Do the work unless the buyer's name for this payment stands for another one.

        A name is kept while money may have moved, and given back when it certainly has not.
        """
        if not payment.name:
            return _known(work)
        table, name = self.mint.table("sales"), f"{requester}#{payment.name}"
        mine = payment_fingerprint(payment, order)
        if self.mint.dynamo.run(sales.name_payment(table, name, mine, self.now_ms())) != mine:
            return Refused(
                Problem.OTHER_PAYLOAD, "this payment identifier was used for another payment or purchase"
            )
        result = _known(work)
        if isinstance(result, Refused) and (
            result.nothing_moved or result.problem is Problem.PAYMENT_INVALID
        ):
            self.mint.dynamo.run(sales.unname_payment(table, name, mine))
        return result

    def _serve_or_refuse(self, found: Verified, requester: str) -> Bought | Claim | Refused:
        try:
            served = self.serve(found.order, found.prices, found.payment, found.paid, requester)
        except Refunded:
            return Refused(Problem.OTHER_PRODUCT, "this payment was given back to its payer")
        except Suspended as error:
            return Refused(Problem.NOT_ON_SALE, f"{error}; this payment is kept for it, or given back")
        except NoDevice:
            return Refused(Problem.NO_DEVICE, WAITS_FOR_DEVICE)
        if isinstance(served, Claim):  # somebody else was faster, and what we wrote before is owed no more
            self.mint.dynamo.run(
                owed_table.forget(self.mint.table("sales"), found.payment.network, found.payment.key)
            )
        return served

    def serve(
        self, order: Order, prices: Prices, payment: Payment, paid: Valid, requester: str
    ) -> Bought | Claim:
        """Mint what a verified payment is for; the claim, where it was served before or is a top-up.

        Raises Refunded, Suspended, StoreUnavailable.
        """
        if not self.sells(prices.ip_type) and self.mint.claimed(payment) is None:
            raise Suspended(SUSPENDED)
        if order.terms is not None:
            terms = order.terms
            if order.product is Product.PORT:
                terms = replace(terms, lease_id=lease_id_of(self.quote_secret, payment.key))
            return self.mint.key(order, terms, prices, payment, paid, requester)
        if order.product is Product.BALANCE:
            return self.mint.credit(order, payment, paid, requester)[0]
        if order.pak_id is None:
            raise ValueError("an order is for a new key or for a known one")
        claim, _ = self.mint.raise_cap(order, order.pak_id, payment, paid, requester)
        return claim

    def abandon(self, order: Order, payment_key: str) -> None:
        """An order that nobody serves any more holds no device. Raises StoreUnavailable."""
        if order.product is Product.PORT:
            self.mint.ports.abandon(lease_id_of(self.quote_secret, payment_key))

    def _again(
        self, claim: Claim, offers: Sequence[Offer], requester: str, payment: Payment
    ) -> Bought | Refused:
        """The same payment once more: the same purchase gets the same answer, anything else gets nothing.

        What was bought with the payer's proof is given out for such a proof only; what was bought with less is, for a
        while, the same requester's, and ends when the payer proves the payment.
        """
        order = offers[0].order
        recent = self.now_ms() - claim.claimed_at_ms < REEMIT_WINDOW_MS
        mine = claim.requester == requester and recent and not claim.proof.is_payers
        proof = self.proof_of(claim, payment, offers)
        if not mine and not proof.is_payers:
            return Refused(
                Problem.NOT_YOURS, "this payment was claimed already; its buyer can use the session token"
            )
        if claim.subject != order.subject:
            if proof.is_payers and claim.proof is Proof.HASH:
                self._disputed(claim)
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        if proof.is_payers and claim.proof is Proof.HASH:
            return self._lasting(self.mint.supersede(claim, requester, proof), order)
        return self.mint.reopen(claim)

    def _lasting(self, bought: Bought | Refused, order: Order) -> Bought | Refused:
        """For as long as the payer wants it: a bare hash may have bought the shortest time."""
        if isinstance(bought, Refused) or order.terms is None:
            return bought
        ends = self.now_ms() + order.terms.duration_s * 1000
        if (bought.pak.expires_at_ms or 0) >= ends:
            return bought
        changed = self.mint.change(bought.pak, "update", {"expires_at_ms": ends}, expiresAt=ends)
        if changed is None:
            return bought
        lease_id = lease_of(bought.username)
        port = self.mint.ports.find(lease_id) if lease_id else None
        if port is not None:
            self.mint.ports.extend(port, ends)
        return replace(bought, pak=changed)

    def _disputed(self, claim: Claim) -> None:
        """A bare hash bought something else before its payer came. Use cannot be undone, so a human decides."""
        words = f"its payer came after a bare hash had bought {claim.product.value}"
        found = Refund(
            claim.network, claim.key, claim.tx_hash, claim.payer, claim.amount_micro, words, self.now_ms()
        )
        self.mint.dynamo.run(owed_table.refund(self.mint.table("sales"), found))

    # Topping up

    def session(self, token: str) -> tuple[Session, Pak] | None:
        """The session of a token and its key."""
        run, table = self.mint.dynamo.run, self.mint.table
        session = run(sales.get_session(table("sales"), token_hash(token)))
        pak = run(access.get_pak(table("access"), session.pak_id)) if session else None
        return (session, pak) if session and pak else None

    def top_up(
        self, session: Session, token: str, offers: Sequence[Offer], payment: Payment, address: str
    ) -> Bought | Refused:
        """More traffic for a key; a key that was suspended at its cap runs again."""
        requester, order = self.requester(address), offers[0].order
        return self._named(
            payment, order, requester, lambda: self._top_up(session, token, offers, payment, requester)
        )

    def _top_up(
        self, session: Session, token: str, offers: Sequence[Offer], payment: Payment, requester: str
    ) -> Bought | Refused:
        began, known = self.now_ms(), self.mint.claimed(payment)
        if known is not None:
            return self._topped_up(known, session, token, repeated=True)
        served = self._verify_and_serve(offers, payment, requester)
        if isinstance(served, Claim):
            return self._topped_up(served, session, token, repeated=served.claimed_at_ms < began)
        return served

    def _topped_up(self, claim: Claim, session: Session, token: str, *, repeated: bool) -> Bought | Refused:
        if claim.product is not Product.TOP_UP or claim.pak_id != session.pak_id:
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        return self.mint.credentials(session, self.mint.pak(session.pak_id), token, claim, repeated=repeated)

    # Prepaid balances

    def credit(self, offers: Sequence[Offer], payment: Payment) -> tuple[Claim, bool] | Refused:
        """A prepaid balance for a payment, and whether it had bought it before. Raises StoreUnavailable.

        Who asks is known by an API key, so quotes are the account's and not an address's.
        """
        order = offers[0].order
        requester = self.requester(account_requester(order))
        began = self.now_ms()
        found = self._named(payment, order, requester, lambda: self._credit(offers, payment, requester))
        return (found, found.claimed_at_ms < began) if isinstance(found, Claim) else found

    def _credit(self, offers: Sequence[Offer], payment: Payment, requester: str) -> Claim | Refused:
        known, order = self.mint.claimed(payment), offers[0].order
        served = known or self._verify_and_serve(offers, payment, requester)
        if isinstance(served, Bought):
            raise TypeError("a balance is no key")
        if isinstance(served, Refused) or (
            served.product is Product.BALANCE and served.username == order.account
        ):
            return served
        if served.proof is Proof.HASH and self.proof_of(served, payment, offers).is_payers:
            self._disputed(served)
        return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")

    def extend(
        self, pak: Pak, seconds: int, prices: Prices, since_ms: int | None = None, once: str = ""
    ) -> Pak:
        """More time, which is free, up to the catalogue's longest duration from now, or from `since_ms` on.

        `once` names the payment that the time comes with: its repeat adds nothing, and adds what its first try could not.
        """
        now = self.now_ms()
        latest = (now if since_ms is None else since_ms) + prices.duration_max_s * 1000
        ends = pak.expires_at_ms or 0
        expires = max(min(max(ends, now) + seconds * 1000, latest), ends)
        fields = dict[str, object](expires_at_ms=expires)
        if pak.disabled_reason is DisabledReason.EXPIRED and expires > now:
            fields |= {"enabled": True, "disabled_reason": None}
        return self.mint.change(pak, "topup", fields, once, addedSeconds=seconds, expiresAt=expires) or pak

    def regenerate(self, session: Session, pak: Pak, token: str) -> Bought | None:
        """Another secret under the same username; None when somebody else did so in the same moment."""
        changed = self.mint.regenerate(pak)
        return None if changed is None else self.connection(session, changed, token)

    def connection(self, session: Session, pak: Pak, token: str) -> Bought:
        """The credentials of a session again. Raises StoreUnavailable."""
        claim = self.mint.claimed_by_key(session.network, session.claim_key)
        if claim is None:
            raise StoreUnavailable("claim: missing")
        return self.mint.credentials(session, pak, token, claim, repeated=True)


def _known(work: Callable[[], B | Refused]) -> B | Refused:
    """The work's answer; a chain that cannot be asked makes it unknown."""
    try:
        return work()
    except ReadFailed as failed:
        return Refused(Problem.PAYMENT_UNKNOWN, failed.reason.value)


def pool_order(terms: Terms, prices: Prices) -> Order:
    """Pool access for these terms."""
    peers = terms.tier if prices.ip_type else ""
    subject = f"{Product.POOL.value}:{peers}" if peers else Product.POOL.value
    return _at(prices, Order(Product.POOL, subject, terms.traffic_bytes, 0, terms, tier=peers))


def port_order(terms: Terms, prices: Prices) -> Order:
    """A dedicated port of these terms; the quote names its tier."""
    subject = f"{Product.PORT.value}:{terms.tier}"
    return _at(prices, Order(Product.PORT, subject, terms.traffic_bytes, 0, terms, tier=terms.tier))


def top_up_order(session: Session, traffic: int, prices: Prices, tier: str = "") -> Order:
    """More traffic for the key of a session, at its tier's price; the quote names the key."""
    subject = f"{Product.TOP_UP.value}:{session.pak_id}"
    order = Order(Product.TOP_UP, subject, traffic, 0, pak_id=session.pak_id, username=session.username)
    return _at(prices, replace(order, tier=tier))


def balance_order(account_id: AccountId, traffic: int, prices: Prices) -> Order:
    """Prepaid traffic for an account, at the wholesale price of its size; the quote names the account."""
    subject = f"{Product.BALANCE.value}:{account_id}"
    return _at(prices, Order(Product.BALANCE, subject, traffic, 0, account=account_id))


def _at(prices: Prices, order: Order) -> Order:
    """An order with the terms that its quote freezes."""
    return replace(
        order,
        due_micro=due_micro(order.traffic_bytes, prices),
        price_micro_per_gb=prices.price_micro_per_gb,
        tolerance_bp=prices.tolerance_bp,
    )


def account_requester(order: Order) -> str:
    """Whose quotes those of an account's order are."""
    return f"account {order.account}"
