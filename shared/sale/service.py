"""Buying and topping up: verify (or settle), then mint and claim in one transaction.

A payment is either unclaimed, or claimed together with what it bought. That it is owed is written before; what a crash
leaves is finished by the buyer's next request, or by the job in `owed.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from shared.access import table as access
from shared.access.model import DisabledReason, Pak
from shared.access.secrets import token_hash
from shared.chain.model import Depth, Invalid, InvalidReason, Unknown, Valid, Verdict
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import SyncRedis
from shared.sale import owed_table
from shared.sale import table as sales
from shared.sale.exact import ExactRail
from shared.sale.live import open_quote, quoted_at
from shared.sale.minting import Mint, Refunded
from shared.sale.model import (
    Bought,
    Claim,
    Order,
    Payment,
    Prices,
    Problem,
    Product,
    Rail,
    Refused,
    Session,
    Terms,
)
from shared.sale.owed_table import Owed, Refund
from shared.sale.rules import (
    BLOCK_TIME_ERROR_MS,
    REEMIT_WINDOW_MS,
    claim_fault,
    due_micro,
    echo_fault,
    hide_requester,
    is_enough,
    lease_id_of,
    payment_fingerprint,
    quote_id,
)

UNKNOWN_RETRY_S: Final = 2
REFUND_MIN_MICRO: Final = 10_000
"""A cent: giving back less costs more than it is."""


class Verifies(Protocol):
    """What the sale needs of a chain."""

    def judge(self, payment: Payment, depths: Sequence[Depth]) -> Verdict:
        """The verdict on a payment."""
        ...

    def proves(self, payment: Payment, payer: str) -> bool:
        """Whether the payment carries the payer's signature over itself."""
        ...


@dataclass(frozen=True, slots=True)
class Counter:
    """Everything a sale needs, wired once."""

    mint: Mint
    redis: SyncRedis
    quote_secret: bytes
    chain: Callable[[], Verifies]
    exact: ExactRail
    exact_rail: Rail
    depths: Callable[[str], Sequence[Depth]]
    now_ms: Callable[[], int]
    clock_error_ms: int = 0

    # Buying

    def quote(self, subject: str, due: int, address: str) -> str:
        """The quote of a requester for an amount, remembered from its first asking on."""
        quote = self._quote_of(subject, due, self.requester(address))
        self.redis.run(open_quote(quote, self.now_ms()))
        return quote

    def requester(self, address: str) -> str:
        """A source address as it is stored."""
        return hide_requester(self.quote_secret, address)

    def _quote_of(self, subject: str, due: int, requester: str) -> str:
        return quote_id(self.quote_secret, requester, subject, due)

    def buy(self, order: Order, prices: Prices, payment: Payment, address: str) -> Bought | Refused:
        """Credentials for a payment. Raises StoreUnavailable when nothing is known: ask again, never pay again."""
        requester = self.requester(address)
        return self._named(payment, order, requester, lambda: self._buy(order, prices, payment, requester))

    def _buy(self, order: Order, prices: Prices, payment: Payment, requester: str) -> Bought | Refused:
        known = self.mint.claimed(payment)
        if known is not None:
            return self._again(known, order.product, requester, payment)
        verified = self._verify(payment, order, prices, requester)
        if isinstance(verified, Refused):
            return verified
        paid, order = verified
        minted = self._serve_or_refuse(order, prices, payment, paid, requester)
        return self._again(minted, order.product, requester, payment) if isinstance(minted, Claim) else minted

    def _named(
        self, payment: Payment, order: Order, requester: str, work: Callable[[], Bought | Refused]
    ) -> Bought | Refused:
        """Do the work unless the buyer's name for this payment stands for another one.

        A name is kept while money may have moved, and given back when it certainly has not.
        """
        if not payment.name:
            return work()
        table, name = self.mint.table("sales"), f"{requester}#{payment.name}"
        mine = payment_fingerprint(payment, order)
        if self.mint.dynamo.run(sales.name_payment(table, name, mine, self.now_ms())) != mine:
            return Refused(
                Problem.OTHER_PAYLOAD, "this payment identifier was used for another payment or purchase"
            )
        result = work()
        if isinstance(result, Refused) and result.problem is Problem.PAYMENT_INVALID:
            self.mint.dynamo.run(sales.unname_payment(table, name, mine))
        return result

    def _serve_or_refuse(
        self, order: Order, prices: Prices, payment: Payment, paid: Valid, requester: str
    ) -> Bought | Claim | Refused:
        try:
            return self.serve(order, prices, payment, paid, requester)
        except Refunded:
            return Refused(Problem.OTHER_PRODUCT, "this payment was given back to its payer")

    def serve(
        self, order: Order, prices: Prices, payment: Payment, paid: Valid, requester: str
    ) -> Bought | Claim:
        """Mint what a verified payment is for; the claim, where it was served before or is a top-up.

        Raises Refunded, StoreUnavailable.
        """
        if order.terms is not None:
            terms = order.terms
            if order.product is Product.PORT:
                terms = replace(terms, lease_id=lease_id_of(self.quote_secret, payment.key))
            return self.mint.key(order, terms, prices, payment, paid, requester)
        if order.pak_id is None:
            raise ValueError("an order is for a new key or for a known one")
        claim, _ = self.mint.raise_cap(order, order.pak_id, prices, payment, paid, requester)
        return claim

    def _again(self, claim: Claim, product: Product, requester: str, payment: Payment) -> Bought | Refused:
        """The same payment once more: the same purchase gets the same answer, anything else gets nothing."""
        recent = self.now_ms() - claim.claimed_at_ms < REEMIT_WINDOW_MS
        mine = claim.requester == requester and recent
        shown = replace(payment, tx_hash=claim.tx_hash)
        proven = bool(payment.proof) and self.chain().proves(shown, claim.payer)
        if not mine and not proven:
            return Refused(
                Problem.NOT_YOURS, "this payment was claimed already; its buyer can use the session token"
            )
        if claim.product is not product:
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        if proven and not claim.proven and claim.requester != requester:
            return self.mint.supersede(claim, requester)
        return self.mint.reopen(claim)

    # Verifying

    def _verify(
        self, payment: Payment, order: Order, prices: Prices, requester: str
    ) -> tuple[Valid, Order] | Refused:
        """What was paid, and the order with whether its payer proved it."""
        depths = self.depths(payment.network)
        first_hand = False
        owed = Owed(payment.network, payment.key, payment.tx_hash, requester, order, self.now_ms())
        if payment.authorization is not None:
            if echo_fault(payment.echo, self.exact_rail, order.due_micro):
                return Refused(Problem.PAYMENT_INVALID, InvalidReason.AUTH_TERMS.value)
            settled = self.exact.settle(payment.authorization, owed, depths)
            verdict, first_hand = settled.verdict, settled.first_hand
        else:
            verdict = self.chain().judge(payment, depths)
        if isinstance(verdict, Unknown):
            return Refused(Problem.PAYMENT_UNKNOWN, verdict.reason.value)
        if isinstance(verdict, Invalid):
            if payment.authorization is not None:  # taken on, and then it moved nothing
                self.mint.dynamo.run(owed_table.forget(self.mint.table("sales"), owed))
            return Refused(Problem.PAYMENT_INVALID, verdict.reason.value)
        proven = first_hand or self._proves(payment, verdict)
        fault = None if proven else self._unbound(payment, verdict, order, requester)
        if fault is not None:
            return Refused(fault, "nobody at this address asked for these terms before the payment was made")
        if not is_enough(verdict.amount_micro, order.due_micro, prices.tolerance_bp):
            return self._too_small(owed, verdict)
        verified = replace(order, proven=proven)
        owed = replace(owed, order=verified)
        self.mint.dynamo.run(owed_table.owe(self.mint.table("sales"), owed))
        return verdict, verified

    def _proves(self, payment: Payment, paid: Valid) -> bool:
        """Whether the payer's signature of this payment came with it; a wrong one is as good as none."""
        shown = replace(payment, tx_hash=paid.tx_hash or payment.tx_hash)
        return bool(payment.proof) and self.chain().proves(shown, paid.payer)

    def _too_small(self, owed: Owed, paid: Valid) -> Refused:
        """Money that came and is not enough is not lost: a human can give it back."""
        table, at = self.mint.table("sales"), self.now_ms()
        tx_hash = paid.tx_hash or owed.tx_hash
        words = f"paid {paid.amount_micro} of {owed.order.due_micro} micro-USDC"
        if paid.amount_micro >= REFUND_MIN_MICRO:
            kept = Refund(owed.network, owed.key, tx_hash, paid.payer, paid.amount_micro, words, at)
            self.mint.dynamo.run(owed_table.refund(table, kept))
        return Refused(Problem.PAYMENT_TOO_SMALL, words)

    def _unbound(self, payment: Payment, paid: Valid, order: Order, requester: str) -> Problem | None:
        """Why this requester may not have a payment that nobody signed for: it had asked for no such terms before."""
        return claim_fault(
            proven=False,
            quoted_at_ms=self.redis.run(quoted_at(self._quote_of(order.subject, order.due_micro, requester))),
            paid_at_s=paid.paid_at_s,
            now_ms=self.now_ms(),
            slack_ms=self.clock_error_ms + BLOCK_TIME_ERROR_MS[payment.network],
        )

    # Topping up

    def session(self, token: str) -> tuple[Session, Pak] | None:
        """The session of a token and its key."""
        run, table = self.mint.dynamo.run, self.mint.table
        session = run(sales.get_session(table("sales"), token_hash(token)))
        pak = run(access.get_pak(table("access"), session.pak_id)) if session else None
        return (session, pak) if session and pak else None

    def top_up(
        self, session: Session, token: str, order: Order, prices: Prices, payment: Payment, address: str
    ) -> Bought | Refused:
        """More traffic for a key; a key that was suspended at its cap runs again."""
        requester = self.requester(address)
        return self._named(
            payment, order, requester, lambda: self._top_up(session, token, order, prices, payment, requester)
        )

    def _top_up(
        self, session: Session, token: str, order: Order, prices: Prices, payment: Payment, requester: str
    ) -> Bought | Refused:
        known = self.mint.claimed(payment)
        if known is not None:
            return self._topped_up(known, session, token, repeated=True)
        verified = self._verify(payment, order, prices, requester)
        if isinstance(verified, Refused):
            return verified
        paid, order = verified
        try:
            claim, fresh = self.mint.raise_cap(order, session.pak_id, prices, payment, paid, requester)
        except Refunded:
            return Refused(Problem.OTHER_PRODUCT, "this payment was given back to its payer")
        return self._topped_up(claim, session, token, repeated=not fresh)

    def _topped_up(self, claim: Claim, session: Session, token: str, *, repeated: bool) -> Bought | Refused:
        if claim.product is not Product.TOP_UP or claim.pak_id != session.pak_id:
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        return self.mint.credentials(session, self.mint.pak(session.pak_id), token, claim, repeated=repeated)

    def extend(self, pak: Pak, seconds: int, prices: Prices) -> Pak:
        """More time, which is free, up to the catalogue's longest duration from now."""
        latest = self.now_ms() + prices.duration_max_s * 1000
        expires = min(max(pak.expires_at_ms or 0, self.now_ms()) + seconds * 1000, latest)
        table, fields = self.mint.table("access"), dict[str, object](expires_at_ms=expires)
        if pak.disabled_reason is DisabledReason.EXPIRED:
            fields |= {"enabled": True, "disabled_reason": None}
        changed = self.mint.dynamo.run(access.change(table, pak.pak_id, fields, self.now_ms())) or pak
        self.mint.tell(changed)
        return changed

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


def pool_order(terms: Terms, prices: Prices) -> Order:
    """Pool access for these terms."""
    due = due_micro(terms.traffic_bytes, prices)
    return Order(Product.POOL, Product.POOL.value, terms.traffic_bytes, due, terms)


def port_order(terms: Terms, prices: Prices) -> Order:
    """A dedicated port of these terms; the quote names its tier."""
    due = due_micro(terms.traffic_bytes, prices)
    subject = f"{Product.PORT.value}:{terms.tier}"
    return Order(Product.PORT, subject, terms.traffic_bytes, due, terms, tier=terms.tier)


def top_up_order(session: Session, traffic: int, prices: Prices, tier: str = "") -> Order:
    """More traffic for the key of a session, at its tier's price; the quote names the key."""
    subject = f"{Product.TOP_UP.value}:{session.pak_id}"
    due = due_micro(traffic, prices)
    return Order(Product.TOP_UP, subject, traffic, due, None, session.pak_id, session.username, tier)
