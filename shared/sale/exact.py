"""The `exact` rail: a signed transfer is checked, taken on once, sent from our gas wallet, and waited for.

Nothing is sent before it was stored, so a crash at any step is gone on from by the next request or by the job. Whoever
gets a transfer to the chain, it pays us: the contract's log decides, not our receipt. See decision 0011.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from shared.chain.eip3009 import terms_fault
from shared.chain.model import (
    Authorization,
    Depth,
    Invalid,
    InvalidReason,
    Network,
    ReadFailed,
    Unknown,
    UnknownReason,
    Valid,
    Verdict,
)
from shared.chain.rules import deepest
from shared.chain.settler import LOG_RANGE_BLOCKS, TRANSFER_GAS, SignedTransfer
from shared.metering.rules import day_of
from shared.runtime.dynamo import Contended, RunsDynamo, TransactItem, transact
from shared.sale import exact_table as rows
from shared.sale.exact_table import Payer, Stage, Transfer
from shared.sale.model import Proof
from shared.sale.owed_table import Owed, forget, owe_item

SETTLE_WAIT_S: Final = 12.0
"""A buyer waits this long for the chain, which is six blocks of Base, before being told to ask again."""
POLL_S: Final = 0.15
UNSTICK_AFTER_S: Final = 3.0
EXPIRED_FOR_S: Final = 120
NONCE_TRIES_MAX: Final = 8
RESERVE_TRIES_MAX: Final = 8
"""Tries to take a transfer on while others of the same payer are taken on; then its buyer asks again."""
UNCOUNT_TRIES_MAX: Final = 8
UNDER_WAY_MAX: Final = 4
"""Transfers of one payer at a time: who moves the balance away in between burns no more of our gas by it."""
REVERTED_DAY_MAX_WEI: Final = 10**16
"""What transactions that did nothing may burn on one UTC day, for all payers: a hundredth of an ether, some ten thousand
reverted transfers at Base's ordinary fee. Beyond it nothing more is taken on until the day is over."""


class Settles(Protocol):
    """The chain's side of the rail; `EvmSettler` is the one there is."""

    address: str

    def refused(
        self, authorization: Authorization, quorum: int, under_way_micro: int = 0
    ) -> InvalidReason | UnknownReason | None: ...

    def height(self) -> int: ...

    def nonce_on_chain(self) -> int: ...

    def sign(self, authorization: Authorization | None, gas_nonce: int) -> SignedTransfer: ...

    def dearer(self, raw: str) -> SignedTransfer | None: ...

    def send(self, raw: str) -> bool: ...

    def reverted_wei(self, tx_hash: str) -> int | None: ...

    def outcome(
        self, authorization: Authorization, tx_hash: str, from_block: int, depths: Sequence[Depth]
    ) -> Verdict: ...

    def is_used(self, authorization: Authorization, quorum: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a transfer. `first_hand`: this requester brought it to us before it was in the chain."""

    verdict: Verdict
    first_hand: bool


@dataclass(frozen=True, slots=True)
class ExactRail:
    """Wired once per container."""

    dynamo: RunsDynamo
    table: str
    settler: Callable[[], Settles]
    now_ms: Callable[[], int]
    recipients: Callable[[], Sequence[str]]
    is_open: Callable[[], bool]
    """Whether the gas wallet was found able to send: else nothing more is taken on."""
    wait_s: float = SETTLE_WAIT_S

    def settle(
        self,
        authorization: Authorization,
        owed: Owed,
        depths: Sequence[Depth],
        begin: Callable[[], None] = lambda: None,
    ) -> Settled:
        """Get a transfer into the chain and tell what it paid. INVALID says that no money has moved.

        `owed` is kept from the moment the transfer is taken on, so that the purchase is served even if its buyer never asks
        again. `begin` is called before a transfer is taken on that passed every check; what it raises keeps it from that.
        """
        try:
            return self._settle(authorization, owed, depths, begin)
        except ReadFailed as failed:
            return Settled(Unknown(failed.reason), False)

    def has_taken_on(self, authorization: Authorization) -> bool:
        """Whether exactly this was brought to us before: its money may have moved."""
        found = self.dynamo.run(rows.get_transfer(self.table, authorization.key))
        return found is not None and found.authorization == authorization

    def is_spent(self) -> bool:
        """Whether reverted transactions have burned all that they may today. Raises ReadFailed without a gas wallet."""
        wallet, day = self.settler().address, day_of(self.now_ms())
        return (self.dynamo.run(rows.reverted_wei(self.table, wallet, day)) or 0) >= REVERTED_DAY_MAX_WEI

    def _settle(
        self, authorization: Authorization, owed: Owed, depths: Sequence[Depth], begin: Callable[[], None]
    ) -> Settled:
        transfer = self.dynamo.run(rows.get_transfer(self.table, authorization.key))
        for _ in range(RESERVE_TRIES_MAX):
            if transfer is not None:
                break
            taken = self._take_on(authorization, owed, depths, begin)
            if isinstance(taken, Settled):
                return taken
            transfer = taken
        if transfer is None:
            return Settled(Unknown(UnknownReason.PAYER_BUSY), False)
        first_hand = transfer.requester == owed.requester and transfer.subject == owed.order.subject
        if transfer.authorization != authorization:
            return Settled(Invalid(InvalidReason.AUTH_USED_OTHERWISE), False)
        if transfer.stage is Stage.FAILED:
            return Settled(Invalid(InvalidReason(transfer.reason)), first_hand)
        return Settled(self.finish(transfer, depths, self.wait_s), first_hand)

    def _take_on(
        self, authorization: Authorization, owed: Owed, depths: Sequence[Depth], begin: Callable[[], None]
    ) -> Transfer | Settled | None:
        """Check everything, then reserve. A transfer that is in the chain already is judged, not sent.

        None when another one of its payer was taken on in the same moment: look at the balance again.
        """
        settler, now = self.settler(), self.now_ms()
        fault = terms_fault(
            authorization, recipients=self.recipients(), due_micro=owed.order.due_micro, now_s=now // 1000
        )
        if fault in {InvalidReason.AUTH_RECIPIENT, InvalidReason.AUTH_AMOUNT}:
            return Settled(Invalid(fault), False)
        payer = self.dynamo.run(rows.get_payer(self.table, authorization.payer))
        known = payer or Payer()
        refused = settler.refused(authorization, deepest(depths), known.under_way_micro)
        height = settler.height()
        if refused is InvalidReason.AUTH_USED_OTHERWISE:
            return Settled(settler.outcome(authorization, "", height - LOG_RANGE_BLOCKS, depths), False)
        if fault is not None:
            return Settled(Invalid(fault), False)
        if isinstance(refused, InvalidReason):
            return Settled(Invalid(refused), False)
        if known.closed_until_s > now // 1000:
            return Settled(Invalid(InvalidReason.AUTH_PAYER_REVERTED), False)
        if known.transfers >= UNDER_WAY_MAX:
            return Settled(Unknown(UnknownReason.PAYER_BUSY), False)
        if refused is not None or not self.is_open() or self.is_spent():
            return Settled(Unknown(refused or UnknownReason.RAIL_CLOSED), False)
        begin()
        return self._reserve(authorization, owed, height, payer)

    def _reserve(
        self, authorization: Authorization, owed: Owed, height: int, payer: Payer | None
    ) -> Transfer | None:
        """Take it on, unless another transfer of its payer was taken on since their sum was read."""
        now = self.now_ms()
        lease, subject = now + rows.LEASE_MS, owed.order.subject
        transfer = Transfer(
            authorization, owed.requester, subject, Stage.RESERVED, now, lease, height, counted=True
        )
        owing = replace(owed, order=replace(owed.order, proof=Proof.EXACT))
        items = [
            rows.reserve_item(self.table, transfer),
            rows.count_item(self.table, transfer, payer),
            owe_item(self.table, owing),
        ]
        with contextlib.suppress(Contended):
            if self.dynamo.run(transact(items)) is None:
                return self._sign(transfer)
        return self.dynamo.run(rows.get_transfer(self.table, authorization.key))

    def finish(self, transfer: Transfer, depths: Sequence[Depth], wait_s: float) -> Verdict:
        """Send what is stored and wait for the chain. Raises ReadFailed."""
        # Whoever comes late need not wait to see that it is stuck: the job gives each transfer one second.
        began, waits_for_s = time.monotonic(), (self.now_ms() - transfer.reserved_at_ms) / 1000
        unstick_at_s = 0.0 if waits_for_s > UNSTICK_AFTER_S else UNSTICK_AFTER_S
        if transfer.stage is Stage.SENT:
            self.settler().send(transfer.raw)
        while True:
            verdict: Verdict = Unknown(UnknownReason.NOT_SETTLED)
            if transfer.stage is Stage.RESERVED:
                transfer = self._resume(transfer)
            else:
                found = self.settler()
                verdict = found.outcome(transfer.authorization, transfer.tx_hash, transfer.from_block, depths)
            waited = time.monotonic() - began
            if not isinstance(verdict, Unknown):
                return self._settled(transfer, verdict)
            if waited >= wait_s:
                return self._given_up(transfer, verdict, depths)
            if waited >= unstick_at_s and transfer.stage is Stage.SENT:
                unstick_at_s = waited + UNSTICK_AFTER_S
                self._unstick(transfer)
            time.sleep(POLL_S)

    def _settled(self, transfer: Transfer, verdict: Verdict) -> Verdict:
        if transfer.counted:  # first: nobody comes back for a transfer that is final
            self._uncount(transfer, verdict)
        if isinstance(verdict, Invalid):  # taken on, and then it moved nothing
            key = transfer.authorization.key
            self.dynamo.run(rows.fail(self.table, key, verdict.reason))
            self.dynamo.run(forget(self.table, Network.BASE, key))
        return verdict

    def _burned(self, transfer: Transfer, verdict: Verdict) -> TransactItem | None:
        """What our transaction burned, if it was another one that paid, or none. Raises ReadFailed.

        One that is final before ours is mined (it was canceled, or sent by somebody else) burns what it may at most.
        """
        if not transfer.tx_hash or (isinstance(verdict, Valid) and verdict.tx_hash == transfer.tx_hash):
            return None
        settler, now = self.settler(), self.now_ms()
        wei = settler.reverted_wei(transfer.tx_hash)
        if wei is None:
            never = verdict == Invalid(InvalidReason.AUTH_EXPIRED)  # ours was not mined in an hour
            paid = (
                isinstance(verdict, Valid) and settler.nonce_on_chain() > transfer.gas_nonce
            )  # ours, at another fee
            wei = 0 if never or paid else TRANSFER_GAS * transfer.fee_wei
        return rows.reverted_item(self.table, settler.address, day_of(now), wei, now) if wei else None

    def _uncount(self, transfer: Transfer, verdict: Verdict) -> None:
        """Others of the same payer may become final in the same moment. Raises Contended when they go on doing so.

        A payer whose transfer burned gas and paid nothing is remembered: to do it again takes a newly funded wallet.
        """
        burned = self._burned(transfer, verdict)
        closes = burned is not None and isinstance(verdict, Invalid)
        until_s = self.now_ms() // 1000 + rows.CLOSED_S if closes else 0
        for left in reversed(range(UNCOUNT_TRIES_MAX)):
            try:
                self.dynamo.run(rows.uncount(self.table, transfer, burned, until_s))
                return
            except Contended:
                if not left:
                    raise
                time.sleep(POLL_S)

    def _given_up(self, transfer: Transfer, verdict: Verdict, depths: Sequence[Depth]) -> Verdict:
        """Still unknown; but an unused authorization that expired a while ago will never move money.

        That is as final as money that is gone, so as many nodes must say so as the largest payment needs.
        """
        expired = transfer.authorization.valid_before_s + EXPIRED_FOR_S < self.now_ms() // 1000
        if expired and not self.settler().is_used(transfer.authorization, deepest(depths)):
            return self._settled(transfer, Invalid(InvalidReason.AUTH_EXPIRED))
        return verdict

    def _resume(self, transfer: Transfer) -> Transfer:
        """What another instance reserved, as it is now; when that instance is gone, its work is done here."""
        now = self.now_ms()
        if now <= transfer.lease_until_ms:
            found = self.dynamo.run(rows.get_transfer(self.table, transfer.authorization.key))
            return found or transfer
        taken = self.dynamo.run(rows.take_over(self.table, transfer, now))
        if taken is not None:
            return self._sign(taken)
        return self.dynamo.run(rows.get_transfer(self.table, transfer.authorization.key)) or transfer

    def _sign(self, transfer: Transfer) -> Transfer:
        """Give a reserved transfer its transaction, store it, send it."""
        settler = self.settler()
        for _ in range(NONCE_TRIES_MAX):
            nonce = self._nonce(settler)
            signed = settler.sign(transfer.authorization, nonce)
            request = rows.store_sent(
                self.table, settler.address, transfer, signed.raw, signed.tx_hash, nonce, signed.max_fee_wei
            )
            conflict = self.dynamo.run(request)
            if conflict is None:
                settler.send(signed.raw)
                break
            if 1 in conflict.failed:  # somebody took the transfer over; the nonce must not stay unused
                self._use_up(settler, nonce)
                break
        return self.dynamo.run(rows.get_transfer(self.table, transfer.authorization.key)) or transfer

    def _nonce(self, settler: Settles) -> int:
        """A nonce of the gas wallet that nobody else has."""
        on_chain = settler.nonce_on_chain()
        for _ in range(NONCE_TRIES_MAX):
            nonce = self.dynamo.run(rows.next_nonce(self.table, settler.address))
            if nonce is None:
                self.dynamo.run(rows.start_nonces(self.table, settler.address, on_chain))
            elif nonce < on_chain:
                self.dynamo.run(rows.skip_to(self.table, settler.address, on_chain))
            else:
                return nonce
        raise ReadFailed(UnknownReason.NOT_SETTLED)

    def _use_up(self, settler: Settles, nonce: int) -> None:
        """A nonce without a transaction holds up all later ones: bind it to one that does nothing."""
        empty = settler.sign(None, nonce)
        if self.dynamo.run(rows.bind_nonce(self.table, settler.address, nonce, empty.raw, empty.tx_hash)):
            settler.send(empty.raw)

    def _unstick(self, transfer: Transfer) -> None:
        """The chain waits for an earlier nonce, lost ours, or wants more gas."""
        settler = self.settler()
        waiting_for = settler.nonce_on_chain()
        if waiting_for < transfer.gas_nonce:
            raw = self.dynamo.run(rows.nonce_raw(self.table, settler.address, waiting_for))
            if raw is None:
                self._use_up(settler, waiting_for)
            else:
                self._push(settler, waiting_for, raw)
        elif waiting_for == transfer.gas_nonce:
            settler.send(transfer.raw)
            raised = settler.dearer(transfer.raw)
            if raised is not None:
                self._raise_fee(settler, transfer, raised)

    def _push(self, settler: Settles, nonce: int, raw: str) -> None:
        """Send what an earlier nonce does, at a higher fee when its own has become too low: nobody else may come for it."""
        settler.send(raw)
        raised = settler.dearer(raw)
        if raised is None:
            return
        kept = rows.replace_nonce(self.table, settler.address, nonce, raw, raised.raw, raised.tx_hash)
        if self.dynamo.run(kept) is not None:
            settler.send(raised.raw)

    def _raise_fee(self, settler: Settles, transfer: Transfer, raised: SignedTransfer) -> None:
        request = rows.replace_sent(self.table, transfer, raised.raw, raised.tx_hash, raised.max_fee_wei)
        if self.dynamo.run(request) is not None:
            settler.send(raised.raw)
