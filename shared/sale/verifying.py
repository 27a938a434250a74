"""Whose a payment is and what it is worth: the quote before it, the chain's word on it, and the proof that came with it.

Nothing is sold here. Answers that are not certain are UNKNOWN, which never consumes a payment. See decisions 0005 and 0020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from shared.chain.model import (
    Authorization,
    Depth,
    Invalid,
    InvalidReason,
    Network,
    ReadFailed,
    Reading,
    Several,
    Unknown,
    UnknownReason,
    Valid,
)
from shared.chain.rules import AUTHORIZATIONS_MAX, depth_for
from shared.kernel.codes import Pool
from shared.kernel.ids import PakId
from shared.pool.numbers import known
from shared.runtime.clock import random_bytes
from shared.runtime.redis import SyncRedis
from shared.sale import exact_table, owed_table
from shared.sale.exact import ExactRail, Settled
from shared.sale.live import keep_quote, open_quote, quoted_at
from shared.sale.minting import Mint
from shared.sale.model import (
    Claim,
    Offer,
    Order,
    Payment,
    Prices,
    Problem,
    Product,
    Proof,
    Quote,
    Rail,
    Refused,
    Statement,
)
from shared.sale.owed_table import Owed, Refund
from shared.sale.ports import NoDevice
from shared.sale.rules import (
    BLOCK_TIME_ERROR_MS,
    claim_fault,
    due_of_secret,
    echo_fault,
    hide_requester,
    is_as_quoted,
    is_enough,
    key_id_of,
    lease_id_of,
    meant,
    proof_text,
    quote_id,
    quote_secret,
    quote_tag,
    secret_nonce,
    statement_of,
    tag_for,
)

UNKNOWN_RETRY_S: Final = 2
REFUND_MIN_MICRO: Final = 10_000
"""A cent: giving back less costs more than it is."""
NONCE_BYTES: Final = 16
SEVERAL_PAYERS: Final = (
    "several payers paid in this transaction, and only a payer's signature tells which part is whose"
)
SHARES_UNKNOWN: Final = "several"
"""Where the payer stands in a payment's name. No payment is claimed under it, so serving one payer strikes nothing out."""
TOO_MANY_PAYERS: Final = (
    "whose part of this transaction is whose cannot be told; it is kept for a human to give back"
)
TOO_LITTLE_TO_SHARE: Final = (
    "whose part of this transaction is whose cannot be told, and it holds less than is ever given back"
)
TOO_MANY_PARTS: Final = (
    "its payer used too many signed transfers in this transaction; it is kept for a human to give back"
)
_NOTHING: Final[Reading] = Unknown(UnknownReason.NOT_FOUND)
NOT_QUOTED: Final = (
    "these terms are not on sale now, and nobody at this address was quoted them while they were"
)
SUSPENDED: Final = "this tier of peers is not on sale in this moment"
NONE_FREE: Final = "nothing of that kind is free now"
HELD_WHILE_PAYING_MS: Final = 120_000
"""So long a port's device is held for a signed transfer that is under way; what is minted holds it on."""
SHOWN_HASH: Final = "<transaction hash>"


class Verifies(Protocol):
    """What the sale needs of a chain."""

    def judge(self, payment: Payment, depths: Sequence[Depth], tag: str = "") -> Reading:
        """What a payment's hash stands for, and whether its payer put the tag into it."""
        ...

    def proves(self, statement: Statement, proof: str, payer: str, quorum: int) -> bool:
        """Whether `proof` is the payer's signature of the statement. Raises ReadFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """A payment that may be served: what was paid, the order with how it was proven, the payment under its final key."""

    paid: Valid
    order: Order
    payment: Payment
    prices: Prices


@dataclass(frozen=True, slots=True)
class Verifier:
    """Wired once per container."""

    mint: Mint
    redis: SyncRedis
    quote_secret: bytes
    chain: Callable[[], Verifies]
    exact: ExactRail
    exact_rail: Callable[[], Rail]
    depths: Callable[[str], Sequence[Depth]]
    now_ms: Callable[[], int]
    sells: Callable[[str], bool]
    """Whether exits of an IP type are on sale now; what is not stays owed to who paid for it."""
    api_base_url: str
    clock_error_ms: int = 0

    def lacks(self, order: Order) -> bool:
        """Whether nothing is free of what an order is for: no price is told then, and no signed transfer is sent.

        Of a live network that cannot count itself nothing is said. Raises StoreUnavailable.
        """
        terms = order.terms
        if terms is None:
            return False
        if order.product is Product.PORT:
            return not self.mint.ports.is_free(terms)
        pool, numbers = Pool.PEER if terms.ip_type else Pool.MBL, known(self.redis, self.now_ms())
        return numbers is not None and not numbers.is_free(pool, terms.country, terms.ip_type)

    # Quotes

    def quote(self, order: Order, address: str) -> Quote:
        """The quote of a requester for an order, remembered from its first asking on, with a secret of its own."""
        ident = self._quote_of(order, self.requester(address))
        self.redis.run(open_quote(ident, self.now_ms()))
        self.redis.run(keep_quote(ident))
        nonce = secret_nonce(order.due_micro, random_bytes(NONCE_BYTES))
        secret = quote_secret(self.quote_secret, nonce, order.subject)
        return Quote(ident, secret, quote_tag(secret), self.text_to_sign(order, "<network>", SHOWN_HASH))

    def text_to_sign(self, order: Order, network: str, tx_hash: str) -> str:
        """What the payer of an order signs."""
        return proof_text(self.statement(order, network, tx_hash))

    def statement(self, order: Order, network: str, tx_hash: str) -> Statement:
        """The same, before it is made a text."""
        return statement_of(self.quote_secret, order, network, tx_hash, self.api_base_url)

    def requester(self, address: str) -> str:
        """A source address as it is stored."""
        return hide_requester(self.quote_secret, address)

    def _quote_of(self, order: Order, requester: str) -> str:
        return quote_id(self.quote_secret, requester, order)

    # What was paid, and by whom

    def verify(self, payment: Payment, offers: Sequence[Offer], requester: str) -> Verified | Claim | Refused:
        """A payment that may be served, now owed; the claim of one that was served under its payer's name.

        `offers` are the same order at today's terms and at those of quotes that may be open still; what this buyer was told
        holds, and so does what its payer signed. Raises ReadFailed, StoreUnavailable.
        """
        told = self._told_to(payment, offers, requester)
        if not told and (payment.authorization is not None or not payment.proof):
            return Refused(Problem.NOT_YOURS, NOT_QUOTED)
        order = (told or offers)[0].order
        tag, first_hand = tag_for(self.quote_secret, payment.secret, order.subject), False
        if payment.authorization is not None:
            offer = meant(told, payment.authorization.amount_micro)
            order = offer.order
            other_terms = echo_fault(
                payment.echo, self.exact_rail().asset, self.exact.recipients(), order.due_micro
            )
            refused = self._untaken(offer, other_terms=other_terms)
            if refused is not None and not self.exact.has_taken_on(payment.authorization):
                return refused
            settled = self._settled(payment.authorization, self._owed(payment, order, requester))
            if settled is None:
                return Refused(Problem.NO_STOCK, f"{NONE_FREE}, and nothing was charged", nothing_moved=True)
            reading: Reading = settled.verdict
            first_hand = settled.first_hand
        else:
            reading = self.chain().judge(payment, self.depths(payment.network), tag)
        if isinstance(reading, Several):
            found = self._signer(payment, reading, offers)
            if found is None:
                return Refused(Problem.NOT_YOURS, SEVERAL_PAYERS)
            payment, reading = replace(payment, payer=found.payer), found
            known = self.mint.claimed(payment)
            if known is not None:
                return known
        if not isinstance(reading, Valid):
            return self._told(self._owed(payment, order, requester), reading)
        signed = () if first_hand else self._signed(payment, reading, offers)
        if not told and not signed:
            return Refused(Problem.NOT_YOURS, NOT_QUOTED)
        offer = meant([*told, *signed], reading.amount_micro)
        proof = Proof.EXACT if first_hand else Proof.SIGNATURE if signed else _by_secret(reading, tag)
        found_so = Verified(reading, replace(offer.order, proof=proof), payment, offer.prices)
        return self._bound(found_so, self._owed(payment, offer.order, requester), requester)

    def _untaken(self, offer: Offer, *, other_terms: bool) -> Refused | None:
        """Why no signed transfer for these terms is taken on now. Nothing has moved, so nothing is lost by it."""
        if not self.sells(offer.prices.ip_type):
            return Refused(Problem.NOT_ON_SALE, f"{SUSPENDED}, and nothing was charged", nothing_moved=True)
        if other_terms:
            return Refused(Problem.PAYMENT_INVALID, InvalidReason.AUTH_TERMS.value)
        # A port asks for its device under its own lease, when it is held: a repeat of the same payment holds it already.
        if offer.order.product is not Product.PORT and self.lacks(offer.order):
            return Refused(Problem.NO_STOCK, f"{NONE_FREE}, and nothing was charged", nothing_moved=True)
        return None

    def _settled(self, authorization: Authorization, owed: Owed) -> Settled | None:
        """Take a signed transfer to the chain. None when what it is for is gone: then nothing is sent.

        A port's device is held before its money moves: the chain takes seconds, in which others would take the last one.
        Only what passed every check holds one. Raises StoreUnavailable.
        """
        port = owed.order.terms if owed.order.product is Product.PORT else None

        def begin() -> None:
            if port is not None:
                lease_id = lease_id_of(self.quote_secret, owed.key)
                until_ms = self.now_ms() + HELD_WHILE_PAYING_MS
                self.mint.ports.hold(replace(port, lease_id=lease_id), PakId(key_id_of(lease_id)), until_ms)

        try:
            return self.exact.settle(authorization, owed, self.depths(Network(owed.network)), begin)
        except NoDevice:
            return None

    def _owed(self, payment: Payment, order: Order, requester: str) -> Owed:
        return Owed(payment.network, payment.key, payment.tx_hash, requester, order, self.now_ms())

    def _told_to(self, payment: Payment, offers: Sequence[Offer], requester: str) -> Sequence[Offer]:
        """Today's terms, and those of an open quote of this requester, or of the quote whose secret is shown."""
        subject = offers[0].order.subject
        sealed = tag_for(self.quote_secret, payment.secret, subject) and due_of_secret(payment.secret)

        def holds(offer: Offer) -> bool:
            if offer.current or offer.order.due_micro == sealed:
                return True
            return self.redis.run(quoted_at(self._quote_of(offer.order, requester))) is not None

        return [offer for offer in offers if holds(offer)]

    def _bound(self, found: Verified, owed: Owed, requester: str) -> Verified | Refused:
        """The same, when this requester may have it and it is enough; from here on it is owed."""
        paid, order = found.paid, found.order
        fault = self._unbound(found, requester) if order.proof is Proof.HASH else None
        if fault is not None:
            return Refused(
                fault, "nobody at this address asked for these terms before this payment was made for them"
            )
        if not is_enough(paid.amount_micro, order.due_micro, found.prices.tolerance_bp):
            return self._too_small(owed, paid)
        if is_too_many(paid):
            self.mint.dynamo.run(
                owed_table.refund(self.mint.table("sales"), too_many_refund(owed, paid, self.now_ms()))
            )
            return Refused(Problem.TOO_MANY_PARTS, f"{TOO_MANY_PARTS}; do not pay again")
        owed = replace(owed, order=order, tx_hash=paid.tx_hash or owed.tx_hash)
        self.mint.dynamo.run(owed_table.owe(self.mint.table("sales"), owed))
        return found

    def _signer(self, payment: Payment, several: Several, offers: Sequence[Offer]) -> Valid | None:
        """What the payer who signed paid, in a transaction in which several did. Raises ReadFailed.

        A contract among them that says yes to every signature, or cannot be asked, takes nothing from the others.
        """
        signers, failed = list[Valid](), None
        for paid in several.payments:
            try:
                if self._signed(payment, paid, offers):
                    signers.append(paid)
            except ReadFailed as error:
                failed = error
        if failed is not None and not signers:
            raise failed

        def worth(paid: Valid) -> tuple[bool, bool, int]:
            known, offer = (
                self.mint.claimed(replace(payment, payer=paid.payer)),
                meant(offers, paid.amount_micro),
            )
            return (
                is_enough(paid.amount_micro, offer.order.due_micro, offer.prices.tolerance_bp),
                known is None,
                paid.amount_micro,
            )

        return max(signers, key=worth) if len(signers) > 1 else next(iter(signers), None)

    def _signed(self, payment: Payment, paid: Valid, offers: Sequence[Offer]) -> tuple[Offer, ...]:
        """Those of the terms whose text the payer signed; a wrong signature is as good as none."""
        if not payment.proof:
            return ()
        tx_hash = paid.tx_hash or payment.tx_hash
        quorum = depth_for(paid.amount_micro, self.depths(payment.network)).quorum
        texts = dict[Statement, list[Offer]]()
        for offer in offers:
            texts.setdefault(self.statement(offer.order, payment.network, tx_hash), []).append(offer)
        proven = (t for t in texts if self.chain().proves(t, payment.proof, paid.payer, quorum))
        text = next(proven, None)
        return tuple(texts[text]) if text is not None else ()

    def proof_of(self, claim: Claim, payment: Payment, offers: Sequence[Offer]) -> Proof:
        """How well whoever shows a claimed payment again proves that it is theirs. Raises ReadFailed."""
        shown = replace(payment, tx_hash=claim.tx_hash, authorization=None)
        paid = Valid(claim.payer, claim.amount_micro, 0, claim.tx_hash)
        if self._signed(shown, paid, offers):
            return Proof.SIGNATURE
        tag = tag_for(self.quote_secret, payment.secret, offers[0].order.subject)
        if not tag:
            return Proof.HASH
        reading = self.chain().judge(shown, self.depths(claim.network), tag)
        if isinstance(reading, Unknown):
            raise ReadFailed(reading.reason)
        mine = isinstance(reading, Valid) and reading.tagged and reading.payer == claim.payer
        return Proof.SECRET if mine else Proof.HASH

    def _too_small(self, owed: Owed, paid: Valid) -> Refused:
        """Money that came and is not enough is not lost: a human can give it back."""
        table, at = self.mint.table("sales"), self.now_ms()
        tx_hash = paid.tx_hash or owed.tx_hash
        words = f"paid {paid.amount_micro} of {owed.order.due_micro} micro-USDC"
        if paid.amount_micro >= REFUND_MIN_MICRO:
            kept = Refund(owed.network, owed.key, tx_hash, paid.payer, paid.amount_micro, words, at)
            self.mint.dynamo.run(owed_table.refund(table, kept))
        return Refused(Problem.PAYMENT_TOO_SMALL, words)

    def _told(self, owed: Owed, reading: Unknown | Invalid) -> Refused:
        """Nothing can be sold; but money that came from nobody knows whom is for a human, not to be paid again."""
        if isinstance(reading, Unknown):
            return Refused(Problem.PAYMENT_UNKNOWN, reading.reason.value)
        if reading.reason is not InvalidReason.SEVERAL_PAYERS:
            return Refused(Problem.PAYMENT_INVALID, reading.reason.value)
        if reading.amount_micro < REFUND_MIN_MICRO:
            return Refused(Problem.SHARES_UNKNOWN, TOO_LITTLE_TO_SHARE)
        words, key = reading.reason.value, f"{owed.tx_hash}#{SHARES_UNKNOWN}"
        kept = Refund(owed.network, key, owed.tx_hash, "", reading.amount_micro, words, self.now_ms())
        self.mint.dynamo.run(owed_table.refund(self.mint.table("sales"), kept))
        return Refused(Problem.SHARES_UNKNOWN, f"{TOO_MANY_PAYERS}; do not pay again")

    def _unbound(self, found: Verified, requester: str) -> Problem | None:
        """Why this requester may not have a payment that nobody proved: it had asked for no such terms before.

        Nor may it when the payment says otherwise: by another amount, by a tag whose secret is not shown, or because
        somebody else brought us the signed transfer.
        """
        payment, paid, order = found.payment, found.paid, found.order
        if paid.has_tag or not is_as_quoted(paid.amount_micro, order.due_micro, found.prices.tolerance_bp):
            return Problem.NOT_YOURS
        for key in paid.authorizations:
            brought = self.mint.dynamo.run(exact_table.get_transfer(self.mint.table("sales"), key))
            if brought and (brought.requester, brought.subject) != (requester, order.subject):
                return Problem.NOT_YOURS
        return claim_fault(
            quoted_at_ms=self.redis.run(quoted_at(self._quote_of(order, requester))),
            paid_at_s=paid.paid_at_s,
            now_ms=self.now_ms(),
            slack_ms=self.clock_error_ms + BLOCK_TIME_ERROR_MS[payment.network],
        )


def _by_secret(paid: Valid, tag: str) -> Proof:
    """How well a payment that nobody signed is shown to be its claimer's; a wrong secret is as good as none."""
    return Proof.SECRET if paid.tagged and tag else Proof.HASH


def is_too_many(paid: Valid) -> bool:
    """Whether a payment has more names than one transaction of the store can claim."""
    return len(paid.authorizations) > AUTHORIZATIONS_MAX


def too_many_refund(owed: Owed, paid: Valid, now_ms: int) -> Refund:
    """Such a payment for a human, who looks at which of its transfers were sold one by one."""
    words = (
        f"{len(paid.authorizations)} signed transfers in one transaction: see which were sold by themselves"
    )
    return Refund(
        owed.network, owed.key, paid.tx_hash or owed.tx_hash, paid.payer, paid.amount_micro, words, now_ms
    )
