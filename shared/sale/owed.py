"""The job that serves what a crash left: paid, accepted, and no credentials yet. What cannot be served is put on a list.

It does what the buyer's own next request would do, so both may run at once: the claim row lets one of them mint.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shared.chain.model import Invalid, ReadFailed, Several, Valid, Verdict
from shared.guard.model import Incident
from shared.guard.table import close_incident, open_incident
from shared.runtime.dynamo import StoreUnavailable
from shared.sale import exact_table
from shared.sale import owed_table as rows
from shared.sale.minting import Refunded
from shared.sale.model import Order, Payment, Prices
from shared.sale.owed_table import Owed, Refund
from shared.sale.service import Counter

LATE_MS: Final = 60_000
PAGE: Final = 100
RUN_MAX: Final = 500
TRIES_MAX: Final = 10
SETTLE_WAIT_S: Final = 1.0


@dataclass(slots=True)
class Report:
    """What one run did."""

    waiting: int = 0
    late: int = 0
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
        """Look at everything that is late, once."""
        report, start = Report(), None
        while report.waiting < RUN_MAX:
            page = self._run(rows.all_owed(self._table, PAGE, start))
            for owed in page.rows:
                report.waiting += 1
                if self.now_ms() - owed.seen_at_ms >= LATE_MS:
                    report.late += 1
                    self._late(owed, report)
            start = page.next_key
            if start is None:
                break
        return report

    @property
    def _table(self) -> str:
        return self.counter.mint.table("sales")

    @property
    def _run(self) -> Any:
        return self.counter.mint.dynamo.run

    def _late(self, owed: Owed, report: Report) -> None:
        """One purchase; a fault with it must not keep the others waiting."""
        words = f"{owed.network} payment {owed.tx_hash or owed.key} was accepted and is not served"
        incident = Incident(incident_id(owed), "paid_not_served", words, self.now_ms())
        self._run(open_incident(self.guard_table, incident))
        try:
            self._serve(owed, report)
        except (StoreUnavailable, ReadFailed) as error:
            report.failures.append(f"{type(error).__name__}: {error}")
            self._failed(owed, None, str(error), report)

    def _serve(self, owed: Owed, report: Report) -> None:
        verdict, payment = self._verdict(owed)
        if isinstance(verdict, Invalid):
            self._done(owed)
            report.unpaid += 1
        elif isinstance(verdict, Valid):
            prices = self.prices(owed.order)
            if prices is None:
                raise StoreUnavailable("prices: not set")
            try:
                self.counter.serve(owed.order, prices, payment, verdict, owed.requester)
            except Refunded:
                report.failures.append("refunded already")
            except StoreUnavailable as error:
                self._failed(owed, verdict, str(error), report)
                return
            self._done(owed)
            report.served += 1
        else:
            report.unknown += 1

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
        self._run(close_incident(self.guard_table, incident_id(owed), self.now_ms()))

    def _failed(self, owed: Owed, paid: Valid | None, why: str, report: Report) -> None:
        """Try again in a minute; after `TRIES_MAX` a human decides, and the incident stays open for them."""
        if paid is None or owed.tries + 1 < TRIES_MAX:
            self._run(rows.tried(self._table, owed))
            return
        tx_hash = paid.tx_hash or owed.tx_hash
        found = Refund(
            owed.network, owed.key, tx_hash, paid.payer, paid.amount_micro, why[:200], self.now_ms()
        )
        self._run(rows.give_up(self._table, owed, found))
        report.refundable += 1


def incident_id(owed: Owed) -> str:
    """One incident per payment."""
    return f"{owed.seen_at_ms:013d}#paid#{owed.network}#{owed.key}"
