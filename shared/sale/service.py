"""Buying and topping up: verify, then mint and claim in one transaction.

There is no reservation that a crash could leave behind: a payment is either unclaimed, or claimed together with what it
bought. Two requests with one hash race for the claim row; the loser reads what the winner minted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from shared.access import table as access
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox, new_pak_secret, new_session_token, token_hash
from shared.chain.model import Invalid, Unknown, Valid, Verdict
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit
from shared.kernel.ids import AccountId, PakId
from shared.metering.live import open_meter
from shared.pool.live import publish_revoke_pak
from shared.runtime.clock import new_id
from shared.runtime.dynamo import Conflict, RunsDynamo, StoreUnavailable, transact
from shared.runtime.redis import SyncRedis
from shared.sale import table as sales
from shared.sale.live import open_quote, quoted_at
from shared.sale.model import Claim, Payment, Prices, Problem, Product, Session, Terms
from shared.sale.rules import (
    REEMIT_WINDOW_MS,
    claim_fault,
    due_micro,
    granted_bytes,
    hide_requester,
    is_enough,
    quote_id,
    username_of,
)

UNKNOWN_RETRY_S: Final = 2


class Verifies(Protocol):
    """What the sale needs of a chain."""

    def judge(self, payment: Payment) -> Verdict:
        """The verdict on a payment."""
        ...

    def proves(self, payment: Payment, payer: str) -> bool:
        """Whether the payment carries the payer's signature over itself."""
        ...


@dataclass(frozen=True, slots=True)
class Bought:
    """Credentials of a purchase; `repeated` when the same payment had bought them before."""

    pak: Pak
    username: str
    secret: str
    session_token: str
    claim: Claim
    repeated: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No credentials, and why."""

    problem: Problem
    detail: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Counter:
    """Everything a sale needs, wired once."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]
    box: SecretBox
    quote_secret: bytes
    house: AccountId
    chain: Callable[[], Verifies]
    now_ms: Callable[[], int]

    # Buying

    def quote(self, product: str, due: int, address: str) -> str:
        """The quote of a requester for an amount, remembered from its first asking on."""
        quote = quote_id(self.quote_secret, hide_requester(self.quote_secret, address), product, due)
        self.redis.run(open_quote(quote, self.now_ms()))
        return quote

    def buy(self, terms: Terms, prices: Prices, payment: Payment, address: str) -> Bought | Refused:
        """Credentials for a payment. Raises StoreUnavailable when nothing is known: ask again, never pay again."""
        known = self._claimed(payment)
        if known is not None:
            return self._again(known, Product.POOL, address, payment)
        verified = self._verify(
            payment, Product.POOL.value, due_micro(terms.traffic_bytes, prices), prices, address
        )
        if isinstance(verified, Refused):
            return verified
        return self._mint(terms, prices, payment, verified, address)

    def _claimed(self, payment: Payment) -> Claim | None:
        return self.dynamo.run(sales.get_claim(self.table("sales"), payment.network, payment.tx_hash))

    def _again(self, claim: Claim, product: Product, address: str, payment: Payment) -> Bought | Refused:
        """The same payment once more: the same purchase gets the same answer, anything else gets nothing."""
        mine = claim.requester == hide_requester(self.quote_secret, address)
        recent = self.now_ms() - claim.claimed_at_ms < REEMIT_WINDOW_MS
        if not (mine and recent) and not (payment.proof and self.chain().proves(payment, claim.payer)):
            return Refused(
                Problem.NOT_YOURS, "this payment was claimed already; its buyer can use the session token"
            )
        if claim.product is not product:
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        pak = self.dynamo.run(access.get_pak(self.table("access"), claim.pak_id))
        if pak is None:
            return Refused(Problem.RETRY, "the key of this purchase cannot be read now")
        opened = json.loads(self.box.open(claim.sealed, f"claim#{claim.network}#{claim.tx_hash}"))
        secret = self.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")
        return Bought(pak, claim.username, secret, opened["token"], claim, True)

    def _verify(
        self, payment: Payment, product: str, due: int, prices: Prices, address: str
    ) -> Valid | Refused:
        chain = self.chain()
        verdict = chain.judge(payment)
        if isinstance(verdict, Unknown):
            return Refused(Problem.PAYMENT_UNKNOWN, verdict.reason.value)
        if isinstance(verdict, Invalid):
            return Refused(Problem.PAYMENT_INVALID, verdict.reason.value)
        if not is_enough(verdict.amount_micro, due, prices.tolerance_bp):
            return Refused(Problem.PAYMENT_TOO_SMALL, f"paid {verdict.amount_micro} of {due} micro-USDC")
        quote = quote_id(self.quote_secret, hide_requester(self.quote_secret, address), product, due)
        fault = claim_fault(
            proven=bool(payment.proof) and chain.proves(payment, verdict.payer),
            quoted_at_ms=self.redis.run(quoted_at(quote)),
            paid_at_s=verdict.paid_at_s,
            now_ms=self.now_ms(),
        )
        if fault is not None:
            return Refused(fault, "nobody at this address asked for these terms before the payment was made")
        return verdict

    def _mint(
        self, terms: Terms, prices: Prices, payment: Payment, paid: Valid, address: str
    ) -> Bought | Refused:
        now = self.now_ms()
        pak_id, secret, token = PakId(new_id()), new_pak_secret(), new_session_token()
        username = username_of(self.house, terms)
        traffic = granted_bytes(paid.amount_micro, terms.traffic_bytes, prices)
        pak = Pak(
            pak_id=pak_id,
            account_id=self.house,
            label=f"x402 {payment.network}",
            secret_hash=self.box.hash(secret),
            secret_sealed=self.box.seal(secret, f"pak#{pak_id}"),
            cap_bytes=traffic,
            used_bytes=0,
            enabled=True,
            disabled_reason=None,
            expires_at_ms=now + terms.duration_s * 1000,
            quality=Quality.SAFE,
            socks_allowed=prices.socks,
            created_at_ms=now,
            updated_at_ms=now,
        )
        claim = self._claim(payment, Product.POOL, paid, pak_id, traffic, username, token, address)
        session = Session(
            session_id=new_id(),
            pak_id=pak_id,
            username=username,
            sealed=claim.sealed,
            network=payment.network,
            tx_hash=payment.tx_hash,
            amount_micro=paid.amount_micro,
            wallet=paid.payer,
            created_at_ms=now,
            expires_at_ms=now + terms.duration_s * 1000,
        )
        items = [
            sales.claim_item(self.table("sales"), claim),
            *access.mint_items(self.table("access"), pak),
            *sales.session_items(self.table("sales"), session, token_hash(token)),
        ]
        conflict = self.dynamo.run(transact(items))
        if conflict is not None:
            return self._lost_race(conflict, payment, Product.POOL, address)
        self._audit(pak_id, "create", payment, {"trafficBytes": traffic, "amountMicro": paid.amount_micro})
        return Bought(pak, username, secret, token, claim, False)

    def _claim(
        self,
        payment: Payment,
        product: Product,
        paid: Valid,
        pak_id: PakId,
        traffic: int,
        username: str,
        token: str,
        address: str,
    ) -> Claim:
        sealed = self.box.seal(json.dumps({"token": token}), f"claim#{payment.network}#{payment.tx_hash}")
        requester = hide_requester(self.quote_secret, address)
        return Claim(
            payment.network,
            payment.tx_hash,
            product,
            paid.payer,
            requester,
            pak_id,
            paid.amount_micro,
            traffic,
            username,
            sealed,
            self.now_ms(),
        )

    def _lost_race(
        self, conflict: Conflict, payment: Payment, product: Product, address: str
    ) -> Bought | Refused:
        claim = self._claimed(payment) if 0 in conflict.failed else None
        if claim is None:
            raise StoreUnavailable("mint: conflict")
        return self._again(claim, product, address, payment)

    def _audit(self, pak_id: PakId, action: str, payment: Payment, metadata: dict[str, Any]) -> None:
        facts = {"network": payment.network, "txHash": payment.tx_hash, **metadata}
        event = AuditEvent(f"pak#{pak_id}", action, "x402", self.now_ms(), auth_method="x402", metadata=facts)
        append_audit(self.dynamo, self.table("audit"), event)

    # Topping up

    def session(self, token: str) -> tuple[Session, Pak] | None:
        """The session of a token and its key."""
        session = self.dynamo.run(sales.get_session(self.table("sales"), token_hash(token)))
        pak = self.dynamo.run(access.get_pak(self.table("access"), session.pak_id)) if session else None
        return (session, pak) if session and pak else None

    def top_up(
        self,
        session: Session,
        pak: Pak,
        token: str,
        traffic: int,
        prices: Prices,
        payment: Payment,
        address: str,
    ) -> Bought | Refused:
        """More traffic for a key; a key that was suspended at its cap runs again."""
        product = f"{Product.TOP_UP.value}:{pak.pak_id}"
        known = self._claimed(payment)
        if known is not None:
            return self._topped_up_before(known, session, pak, token)
        verified = self._verify(payment, product, due_micro(traffic, prices), prices, address)
        if isinstance(verified, Refused):
            return verified
        granted = granted_bytes(verified.amount_micro, traffic, prices)
        claim = self._claim(
            payment, Product.TOP_UP, verified, pak.pak_id, granted, session.username, token, address
        )
        raised = access.top_up_item(
            self.table("access"), pak.pak_id, granted, None, self.now_ms(), reenable=True
        )
        conflict = self.dynamo.run(transact([sales.claim_item(self.table("sales"), claim), raised]))
        if conflict is not None:
            other = self._claimed(payment)
            if other is None:
                return Refused(Problem.RETRY, "the key changed meanwhile; send the same payment again")
            return self._topped_up_before(other, session, pak, token)
        changed = self.dynamo.run(access.get_pak(self.table("access"), pak.pak_id)) or pak
        self.tell(changed)
        self._audit(
            pak.pak_id, "topup", payment, {"trafficBytes": granted, "amountMicro": verified.amount_micro}
        )
        return self._credentials(session, changed, token, claim, repeated=False)

    def _topped_up_before(self, claim: Claim, session: Session, pak: Pak, token: str) -> Bought | Refused:
        if claim.product is not Product.TOP_UP or claim.pak_id != pak.pak_id:
            return Refused(Problem.OTHER_PRODUCT, "this payment was used for another purchase")
        return self._credentials(session, pak, token, claim, repeated=True)

    def extend(self, pak: Pak, seconds: int, prices: Prices) -> Pak:
        """More time, which is free, up to the catalogue's longest duration from now."""
        latest = self.now_ms() + prices.duration_max_s * 1000
        expires = min(max(pak.expires_at_ms or 0, self.now_ms()) + seconds * 1000, latest)
        fields = {"expires_at_ms": expires}
        changed = (
            self.dynamo.run(access.change(self.table("access"), pak.pak_id, fields, self.now_ms())) or pak
        )
        self.tell(changed)
        return changed

    def regenerate(self, session: Session, pak: Pak, token: str) -> Bought | None:
        """Another secret under the same username; None when somebody else did so in the same moment."""
        secret = new_pak_secret()
        sealed = self.box.seal(secret, f"pak#{pak.pak_id}")
        request = access.regenerate(self.table("access"), pak, self.box.hash(secret), sealed, self.now_ms())
        if self.dynamo.run(request) is not None:
            return None
        changed = replace(pak, secret_hash=self.box.hash(secret), secret_sealed=sealed)
        self.tell(changed)
        event = AuditEvent(f"pak#{pak.pak_id}", "regenerate", "x402", self.now_ms(), auth_method="session")
        append_audit(self.dynamo, self.table("audit"), event)
        return self.connection(session, changed, token)

    def connection(self, session: Session, pak: Pak, token: str) -> Bought | None:
        """The credentials of a session again."""
        claim = self.dynamo.run(sales.get_claim(self.table("sales"), session.network, session.tx_hash))
        return self._credentials(session, pak, token, claim, repeated=True) if claim else None

    def _credentials(self, session: Session, pak: Pak, token: str, claim: Claim, *, repeated: bool) -> Bought:
        secret = self.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")
        return Bought(pak, session.username, secret, token, claim, repeated)

    def tell(self, pak: Pak) -> None:
        """Carry a changed key to the live network; a Redis that is away hears of it when gateways read the key again."""
        try:
            self.redis.run(open_meter(pak.pak_id, pak.used_bytes, pak.cap_bytes))
            self.redis.run(publish_revoke_pak(pak.pak_id))
        except StoreUnavailable:
            return
