"""What a verified payment becomes: a key, a session and a claim in one transaction; or a raised cap and a claim.

Of two requests with one payment, the loser of the claim row reads what the winner minted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shared.access import table as access
from shared.access.idempotency import once_item
from shared.access.model import Pak, Quality
from shared.access.prepaid import credit_items
from shared.access.secrets import Seals, new_pak_secret, new_session_token, token_hash
from shared.chain.model import Valid
from shared.guard.model import AuditEvent
from shared.guard.service import write_audited
from shared.kernel.ids import AccountId, PakId
from shared.metering.live import open_meter
from shared.pool.live import publish_revoke_pak
from shared.runtime.clock import new_id
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable, TransactItem
from shared.runtime.redis import SyncRedis
from shared.sale import owed_table
from shared.sale import table as sales
from shared.sale.model import (
    Bought,
    Claim,
    Order,
    Payment,
    Prices,
    Problem,
    Proof,
    Refused,
    Session,
    Terms,
)
from shared.sale.ports import Ports, lease_items
from shared.sale.rules import granted_bytes, key_id_of, username_of


class Refunded(Exception):
    """The payment was given back, or is about to be: it buys nothing any more."""


@dataclass(frozen=True, slots=True)
class Mint:
    """Stores and secrets that minting needs."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]
    box: Seals
    house: AccountId
    now_ms: Callable[[], int]
    held_share_percent: Callable[[], int]

    @property
    def ports(self) -> Ports:
        """Leases of dedicated ports, on the same stores."""
        return Ports(
            self.dynamo,
            self.redis,
            self.table("sales"),
            self.table("audit"),
            self.house,
            self.now_ms,
            self.held_share_percent,
        )

    def claimed(self, payment: Payment) -> Claim | None:
        """What this payment bought before."""
        return self.claimed_by_key(payment.network, payment.key)

    def claimed_by_key(self, network: str, key: str) -> Claim | None:
        """The claim of a payment by any name of it."""
        found = self.dynamo.run(sales.get_claim(self.table("sales"), network, key))
        if found is None or found.key == key:
            return found
        return self.dynamo.run(sales.get_claim(self.table("sales"), network, found.key))

    def key(
        self, order: Order, terms: Terms, prices: Prices, payment: Payment, paid: Valid, requester: str
    ) -> Bought | Claim:
        """A new key for a payment; the claim of whoever was faster otherwise.

        Raises Refunded, NoDevice (a dedicated port finds no device) and StoreUnavailable.
        """
        now = self.now_ms()
        # A port's key is named after its lease: whoever serves this payment holds the device for the same key.
        pak_id = PakId(key_id_of(terms.lease_id) if terms.lease_id else new_id())
        secret, token = new_pak_secret(), new_session_token()
        expires = now + terms.duration_s * 1000
        username = username_of(self.house, terms)
        traffic = granted_bytes(paid.amount_micro, order)
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
            expires_at_ms=expires,
            quality=Quality.STANDARD if terms.ip_type else Quality.SAFE,
            ip_type=terms.ip_type,
            socks_allowed=prices.socks,
            created_at_ms=now,
            updated_at_ms=now,
        )
        claim = self._claim(order, payment, paid, pak_id, traffic, username, token, requester)
        session = _session(claim, paid, expires)
        items = [
            *access.mint_items(self.table("access"), pak),
            *sales.session_items(self.table("sales"), session, token_hash(token)),
        ]
        if terms.lease_id and (known := self._claimed_meanwhile(payment, paid)) is not None:
            return known  # under another name: no device is held for it, nor lacking
        lease = self.ports.hold(terms, pak_id, expires) if terms.lease_id else None
        if lease is not None:
            items += lease_items(self.table("sales"), lease)
        try:
            faster = self._write(
                claim, payment, paid, items, _event(f"pak#{pak_id}", "create", claim), begins=True
            )
        except Refunded:
            if lease is not None:
                self.ports.let_go(lease)
            raise
        if faster is not None:
            if lease is not None and faster.pak_id != pak_id:
                self.ports.let_go(lease)
            return faster
        return Bought(pak, username, secret, token, claim, False)

    def raise_cap(
        self, order: Order, pak_id: PakId, payment: Payment, paid: Valid, requester: str
    ) -> tuple[Claim, bool]:
        """More traffic for a key, which runs again when it stood at its cap; the claim, and whether it is new.

        Raises StoreUnavailable.
        """
        granted = granted_bytes(paid.amount_micro, order)
        claim = self._claim(order, payment, paid, pak_id, granted, order.username, "", requester)
        raised = access.top_up_item(self.table("access"), pak_id, granted, None, self.now_ms(), reenable=True)
        faster = self._write(claim, payment, paid, [raised], _event(f"pak#{pak_id}", "topup", claim))
        if faster is not None:
            return faster, False
        self.tell(self.pak(pak_id))
        return claim, True

    def credit(self, order: Order, payment: Payment, paid: Valid, requester: str) -> tuple[Claim, bool]:
        """More prepaid traffic for an account; the claim, and whether it is new. Raises Refunded, StoreUnavailable."""
        granted = granted_bytes(paid.amount_micro, order)
        named = replace(order, username=order.account)
        claim = self._claim(named, payment, paid, PakId(""), granted, order.account, "", requester)
        facts = {"network": claim.network, "txHash": claim.tx_hash, "amountMicro": claim.amount_micro}
        name = f"x402#{payment.network}#{payment.key}"
        items = credit_items(
            self.table("access"), AccountId(order.account), name, granted, {**facts, "at_ms": self.now_ms()}
        )
        event = _event(f"acct#{order.account}", "credit_bought", claim)
        faster = self._write(claim, payment, paid, items, event, order.account)
        return (claim, True) if faster is None else (faster, False)

    def _claim(
        self,
        order: Order,
        payment: Payment,
        paid: Valid,
        pak_id: PakId,
        traffic: int,
        username: str,
        token: str,
        requester: str,
    ) -> Claim:
        sealed = self.box.seal(json.dumps({"token": token}), f"claim#{payment.network}#{payment.key}")
        return Claim(
            network=payment.network,
            key=payment.key,
            tx_hash=paid.tx_hash or payment.tx_hash,
            product=order.product,
            payer=paid.payer,
            requester=requester,
            pak_id=pak_id,
            amount_micro=paid.amount_micro,
            traffic_bytes=traffic,
            username=username,
            sealed=sealed,
            claimed_at_ms=self.now_ms(),
            proof=order.proof,
            subject=order.subject,
        )

    def _write(
        self,
        claim: Claim,
        payment: Payment,
        paid: Valid,
        items: list[TransactItem],
        event: AuditEvent,
        account: str = "",
        *,
        begins: bool = False,
    ) -> Claim | None:
        """All or nothing, its event included; the claim that stood in the way, if one did.

        Raises Refunded, StoreUnavailable.
        """
        claims = sales.claim_items(self.table("sales"), claim, _names(payment, paid))
        known = (claim.tx_hash, f"{claim.tx_hash}#{paid.payer}", *paid.authorizations)
        served = owed_table.served_items(self.table("sales"), payment.network, payment.key, known)
        written = [*claims, *items, *served]
        conflict = write_audited(self.dynamo, self.table("audit"), event, written, account, begins=begins)
        if conflict is None:
            return None
        found = self._claimed_meanwhile(payment, paid)
        if found is not None:
            return found
        if any(index > len(claims) + len(items) for index in conflict.failed):
            raise Refunded
        raise StoreUnavailable("mint: the key cannot take more")

    def _claimed_meanwhile(self, payment: Payment, paid: Valid) -> Claim | None:
        """What a payment bought under any of its names."""
        found = (self.claimed_by_key(payment.network, key) for key in (payment.key, *_names(payment, paid)))
        return next((claim for claim in found if claim is not None), None)

    def reopen(self, claim: Claim) -> Bought | Refused:
        """What a claim minted, again."""
        pak = self.dynamo.run(access.get_pak(self.table("access"), claim.pak_id))
        if pak is None:
            return Refused(Problem.RETRY, "the key of this purchase cannot be read now")
        opened = json.loads(self.box.open(claim.sealed, f"claim#{claim.network}#{claim.key}"))
        secret = self.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")
        return Bought(pak, claim.username, secret, opened["token"], claim, True)

    def supersede(self, claim: Claim, requester: str, proof: Proof) -> Bought | Refused:
        """Take back what was given for a bare hash, and give the payer, who proved the payment, fresh credentials."""
        bought = self.reopen(claim)
        if isinstance(bought, Refused):
            return bought
        pak, secret, token = bought.pak, new_pak_secret(), new_session_token()
        sealed = self.box.seal(json.dumps({"token": token}), f"claim#{claim.network}#{claim.key}")
        now = self.now_ms()
        mine = replace(claim, requester=requester, sealed=sealed, claimed_at_ms=now, proof=proof)
        session = self.dynamo.run(sales.get_session(self.table("sales"), token_hash(bought.session_token)))
        if session is None:
            return Refused(Problem.RETRY, "the session of this purchase cannot be read now")
        changed = replace(
            pak, secret_hash=self.box.hash(secret), secret_sealed=self.box.seal(secret, f"pak#{pak.pak_id}")
        )
        fresh = replace(session, session_id=new_id(), sealed=sealed)
        items = [
            *sales.supersede_items(self.table("sales"), claim, mine, token_hash(bought.session_token)),
            *sales.session_items(self.table("sales"), fresh, token_hash(token)),
            *access.regenerate_items(
                self.table("access"), pak, changed.secret_hash, changed.secret_sealed, now
            ),
        ]
        event = _event(f"pak#{pak.pak_id}", "regenerate", mine)
        if write_audited(self.dynamo, self.table("audit"), event, items) is not None:
            return Refused(Problem.RETRY, "the purchase changed in the same moment")
        self.tell(changed)
        return Bought(changed, claim.username, secret, token, mine, False)

    def pak(self, pak_id: PakId) -> Pak:
        """A key that is known to exist. Raises StoreUnavailable."""
        found = self.dynamo.run(access.get_pak(self.table("access"), pak_id))
        if found is None:
            raise StoreUnavailable("pak: missing")
        return found

    def credentials(self, session: Session, pak: Pak, token: str, claim: Claim, *, repeated: bool) -> Bought:
        """The credentials of a session."""
        secret = self.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")
        return Bought(pak, session.username, secret, token, claim, repeated)

    def regenerate(self, pak: Pak) -> Pak | None:
        """Another secret under the same username; None when somebody else did so in the same moment."""
        secret = new_pak_secret()
        sealed = self.box.seal(secret, f"pak#{pak.pak_id}")
        items = access.regenerate_items(
            self.table("access"), pak, self.box.hash(secret), sealed, self.now_ms()
        )
        event = AuditEvent(f"pak#{pak.pak_id}", "regenerate", "x402", self.now_ms(), auth_method="session")
        if write_audited(self.dynamo, self.table("audit"), event, items) is not None:
            return None
        changed = replace(pak, secret_hash=self.box.hash(secret), secret_sealed=sealed)
        self.tell(changed)
        return changed

    def change(
        self, pak: Pak, action: str, fields: dict[str, object], once: str = "", **facts: int | None
    ) -> Pak | None:
        """Change a key of a session, on record; None when it was deleted, or what `once` names was done before."""
        items = [access.set_item(self.table("access"), pak.pak_id, fields, self.now_ms())]
        if once:
            items.append(once_item(self.table("access"), once, self.now_ms()))
        event = AuditEvent(
            f"pak#{pak.pak_id}", action, "x402", self.now_ms(), auth_method="session", metadata=facts
        )
        if write_audited(self.dynamo, self.table("audit"), event, items) is not None:
            return None
        changed = self.pak(pak.pak_id)
        self.tell(changed)
        return changed

    def tell(self, pak: Pak) -> None:
        """Carry a changed key to the live network; a Redis that is away hears of it when gateways read the key again."""
        try:
            self.redis.run(open_meter(pak.pak_id, pak.used_bytes, pak.cap_bytes))
            self.redis.run(publish_revoke_pak(pak.pak_id))
        except StoreUnavailable:
            return


def _event(stream: str, action: str, claim: Claim) -> AuditEvent:
    facts: dict[str, Any] = {
        "network": claim.network,
        "txHash": claim.tx_hash,
        "trafficBytes": claim.traffic_bytes,
        "amountMicro": claim.amount_micro,
    }
    return AuditEvent(stream, action, "x402", claim.claimed_at_ms, auth_method="x402", metadata=facts)


def _names(payment: Payment, paid: Valid) -> tuple[str, ...]:
    """What else a payment is claimed as. By hash, its payer is served once, whoever else took part."""
    if payment.authorization:
        return paid.authorizations
    return (f"{payment.tx_hash}#{paid.payer}", *paid.authorizations)


def _session(claim: Claim, paid: Valid, expires_at_ms: int) -> Session:
    return Session(
        session_id=new_id(),
        pak_id=claim.pak_id,
        username=claim.username,
        sealed=claim.sealed,
        network=claim.network,
        claim_key=claim.key,
        tx_hash=claim.tx_hash,
        amount_micro=claim.amount_micro,
        wallet=paid.payer,
        created_at_ms=claim.claimed_at_ms,
        expires_at_ms=expires_at_ms,
    )
