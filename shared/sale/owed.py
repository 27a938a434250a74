"""The job that serves what a crash left: paid, accepted, and no credentials yet. What cannot be served is put on a list.

It does what the buyer's own next request would do, so both may run at once: the claim row lets one of them mint. No row
keeps another one waiting: whatever goes wrong with it counts against it alone, and the order changes from run to run.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shared.chain.model import Invalid, ReadFailed, Several, Unknown, Valid, Verdict
from shared.guard.model import Incident
from shared.guard.service import standing_incidents
from shared.guard.table import close_incident, open_incident
from shared.runtime.dynamo import StoreUnavailable
from shared.sale import exact_table
from shared.sale import owed_table as rows
from shared.sale.minting import Refunded
from shared.sale.model import Order, Payment, Prices
from shared.sale.owed_table import Owed, Refund, Unreadable
from shared.sale.ports import DEVICE_WAIT_MS, NoDevice
from shared.sale.service import Counter
from shared.sale.verifying import is_too_many, too_many_refund

LATE_MS: Final = 60_000
PAID_NOT_SERVED: Final = "paid_not_served"
UNREADABLE: Final = "owed_unreadable"
_PAID: Final = "paid#"
PAGE: Final = 100
LISTED_MAX: Final = 5_000
"""Rows that one run reads; how many of them it looks at is bounded by its time."""
RUN_MAX_MS: Final = 20_000
"""After this no further row is begun: the function ends at 29 s, and one look may wait for several nodes."""
TRIES_MAX: Final = 10
UNKNOWN_MAX_MS: Final = 86_400_000
"""A day: what no node could tell by then (a payment that was reorganised away among them) is for a human."""
SETTLE_WAIT_S: Final = 1.0
log = logging.getLogger("psx.jobs")


@dataclass(slots=True)
class Report:
    """What one run did."""

    waiting: int = 0
    late: int = 0
    left: int = 0
    served: int = 0
    refundable: int = 0
    unpaid: int = 0
    unknown: int = 0
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> Mapping[str, Any]:
        """For logs and the invoker."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OwedRun:
    """One run of the job."""

    counter: Counter
    guard_table: str
    prices: Callable[[Order], Prices | None]
    now_ms: Callable[[], int]

    def run(self) -> Report:
        """Look at what is late, each once, until the time is up; the rest is `left` to the next run."""
        began, report = self.now_ms(), Report()
        waiting, unreadable = self._waiting(report)
        late = [owed for owed in waiting if began - owed.seen_at_ms >= LATE_MS]
        report.waiting, report.late, report.left = len(waiting), len(late), len(late)
        for owed in sorted(late, key=lambda owed: _turn(owed, began)):
            if self.now_ms() - began >= RUN_MAX_MS:
                log.warning("owed purchases are left to the next run", extra={"left": report.left})
                break
            report.left -= 1
            self._late(owed, report)
        if len(waiting) < LISTED_MAX:
            try:
                self._close_settled(
                    {incident_name(owed.network, owed.key) for owed in waiting} | unreadable, began
                )
            except StoreUnavailable as error:
                report.failures.append(f"incidents: {error}")
        return report

    def _close_settled(self, standing: set[str], began: int) -> None:
        """Incidents of payments that are owed no more, whoever served them and whatever a human decided; and of rows that
        can be read again, or are gone.
        """
        for incident in standing_incidents(self.counter.mint.dynamo, self.guard_table):
            if self.now_ms() - began >= RUN_MAX_MS:
                return
            if incident.kind not in {PAID_NOT_SERVED, UNREADABLE} or incident.name in standing:
                continue
            if incident.kind == UNREADABLE:
                self._run(close_incident(self.guard_table, incident.name, self.now_ms()))
                continue
            network, _, payment_key = incident.name.removeprefix(_PAID).partition("#")
            refund = self._run(rows.get_refund(self._table, network, payment_key))
            if refund is None or refund.state != rows.OPEN:
                self._run(close_incident(self.guard_table, incident.name, self.now_ms()))

    def _waiting(self, report: Report) -> tuple[list[Owed], set[str]]:
        """What waits, and the incidents of what cannot be read."""
        found, unreadable, start = list[Owed](), set[str](), None
        while len(found) < LISTED_MAX:
            page = self._run(rows.all_owed(self._table, PAGE, start))
            found += [row for row in page.rows if isinstance(row, Owed)]
            unreadable |= {self._unreadable(row, report) for row in page.rows if isinstance(row, Unreadable)}
            start = page.next_key
            if start is None:
                break
        return found, unreadable

    def _unreadable(self, row: Unreadable, report: Report) -> str:
        """A human looks at it; the versions that can read it serve it. Answers its incident."""
        report.failures.append(f"unreadable: {row.fault}")
        log.error("an owed purchase cannot be read", extra={"payment": row.where, "error": row.fault})
        words = f"the owed purchase {row.where} cannot be read ({row.fault}): was an update rolled back?"
        incident = Incident(f"owed-unreadable#{row.where}", UNREADABLE, words, self.now_ms())
        self._run(open_incident(self.guard_table, incident))
        return incident.name

    @property
    def _table(self) -> str:
        return self.counter.mint.table("sales")

    @property
    def _run(self) -> Any:
        return self.counter.mint.dynamo.run

    def _late(self, owed: Owed, report: Report) -> None:
        """One purchase; whatever goes wrong with it must not keep the others waiting."""
        verdict: Verdict | None = None
        try:
            words = f"{owed.network} payment {owed.tx_hash or owed.key} was accepted and is not served"
            incident = Incident(incident_name(owed.network, owed.key), PAID_NOT_SERVED, words, self.now_ms())
            self._run(open_incident(self.guard_table, incident))
            verdict, payment = self._verdict(owed)
            self._act(owed, payment, verdict, report)
        except Exception as error:  # noqa: BLE001 - a fault of one row, whatever it is, is counted and told
            self._broken(owed, verdict, error, report)

    def _act(self, owed: Owed, payment: Payment, verdict: Verdict, report: Report) -> None:
        if isinstance(verdict, Invalid):
            self._done(owed)
            report.unpaid += 1
        elif isinstance(verdict, Unknown):
            report.unknown += 1
            self._too_old(owed, verdict.reason.value, report)
        elif is_too_many(verdict):
            self._give_up(owed, too_many_refund(owed, verdict, self.now_ms()), report)
        else:
            prices = self.prices(owed.order)
            if prices is None:
                raise StoreUnavailable("prices: what was bought is not on sale any more")
            try:
                self.counter.serve(owed.order, prices, payment, verdict, owed.requester)
            except Refunded:
                report.failures.append("refunded already")
            self._done(owed)
            report.served += 1

    def _verdict(self, owed: Owed) -> tuple[Verdict, Payment]:
        """What the chain says now. Raises ReadFailed."""
        depths = self.counter.depths(owed.network)
        transfer = self._run(exact_table.get_transfer(self._table, owed.key))
        if transfer is None:
            payer = owed.key.partition("#")[2]
            payment = Payment(owed.network, owed.tx_hash, payer=payer)
            reading = self.counter.chain().judge(payment, depths)
            return reading.of(payer) if isinstance(reading, Several) else reading, payment
        payment = Payment(owed.network, "", "", transfer.authorization)
        return self.counter.exact.finish(transfer, depths, SETTLE_WAIT_S), payment

    def _done(self, owed: Owed) -> None:
        self._run(rows.forget(self._table, owed.network, owed.key))
        name = incident_name(owed.network, owed.key)
        self._run(close_incident(self.guard_table, name, self.now_ms()))

    def _broken(self, owed: Owed, verdict: Verdict | None, error: Exception, report: Report) -> None:
        """Tell what went wrong with a row and count it; words of an error that nobody foresaw may hold anything."""
        foreseen = isinstance(error, (StoreUnavailable, ReadFailed))
        why = f"{type(error).__name__}: {error}" if foreseen else type(error).__name__
        report.failures.append(why)
        where = {"network": owed.network, "payment": owed.key, "error": why}
        log.error("an owed purchase could not be served", extra=where)
        try:
            self._failed(owed, verdict if isinstance(verdict, Valid) else None, error, why, report)
        except StoreUnavailable as away:
            report.failures.append(f"not counted: {away}")

    def _is_hopeless(self, owed: Owed, error: Exception) -> bool:
        """Whether a paid purchase was tried for long enough: devices come back later than faults go."""
        if isinstance(error, NoDevice):
            return self.now_ms() - owed.seen_at_ms >= DEVICE_WAIT_MS
        return owed.tries + 1 >= TRIES_MAX

    def _failed(self, owed: Owed, paid: Valid | None, error: Exception, why: str, report: Report) -> None:
        """Try again in a minute; in the end a human decides, and the incident stays open for them."""
        if paid is not None and self._is_hopeless(owed, error):
            tx_hash, now = paid.tx_hash or owed.tx_hash, self.now_ms()
            found = Refund(owed.network, owed.key, tx_hash, paid.payer, paid.amount_micro, why[:200], now)
            self._give_up(owed, found, report)
        elif (paid is not None or not self._too_old(owed, why, report)) and not isinstance(error, NoDevice):
            self._run(rows.tried(self._table, owed))  # to wait for a device is no fault: it has its own bound

    def _too_old(self, owed: Owed, why: str, report: Report) -> bool:
        """Whether nobody could say for so long whether it was paid that it became a human's to find out.

        Nothing is lost by it: a payment that is seen after all takes its row off the list when it is served.
        """
        now = self.now_ms()
        if now - owed.seen_at_ms < UNKNOWN_MAX_MS:
            return False
        words = f"whether it was paid is unknown for too long: {why}"[:200]
        payer = "" if owed.key.startswith("auth:") else owed.key.partition("#")[2]
        self._give_up(owed, Refund(owed.network, owed.key, owed.tx_hash, payer, 0, words, now), report)
        return True

    def _give_up(self, owed: Owed, found: Refund, report: Report) -> None:
        """Hand it to a human, who may have it already; unless its buyer was served in the meantime.

        Its device is free before its row is gone: what a store that is away keeps from being done is done a minute later.
        """
        self.counter.abandon(owed.order, owed.key)
        conflict = self._run(rows.give_up(self._table, owed, found))
        if conflict is not None and 0 in conflict.failed:
            report.served += 1
            return
        if conflict is not None:
            self._run(rows.forget(self._table, owed.network, owed.key))
        report.refundable += 1


def _turn(owed: Owed, now_ms: int) -> bytes:
    """A place in the order of a run that is another one in the next: slow rows are not always before the same others."""
    return hashlib.sha256(f"{now_ms}#{owed.network}#{owed.key}".encode()).digest()


def incident_name(network: str, payment_key: str) -> str:
    """One incident per payment."""
    return f"{_PAID}{network}#{payment_key}"
