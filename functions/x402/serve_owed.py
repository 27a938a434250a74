"""The job that serves what was paid and, after a crash, not served; see `shared/sale/owed.py`."""

import functools
import logging
from typing import Any

from functions.x402.balance import wholesale
from functions.x402.wiring import Wiring
from shared.guard.service import enter_loop
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.sale.model import Order, Prices, Product
from shared.sale.owed import OwedRun
from shared.sale.rules import read_prices

log = logging.getLogger("psx.jobs")


def _prices(wiring: Wiring, order: Order) -> Prices | None:
    if order.product is Product.BALANCE:
        return wholesale(wiring, order.traffic_bytes, wiring.live.get("wholesale"))
    return read_prices(wiring.live.get("prices"), order.tier)


def serve_owed(wiring: Wiring) -> dict[str, Any]:
    """Every minute: serve, or put on the refund list, what is late; put back lost holds of ports. Answers counts."""
    guard = wiring.settings.table("guard")
    refused = enter_loop(wiring.dynamo, guard, "serve_owed", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    run = OwedRun(
        wiring.counter,
        guard,
        functools.partial(_prices, wiring),
        wiring.counter.now_ms,
    )
    report = dict(run.run().as_json())
    try:
        report["heldAgain"] = wiring.counter.mint.ports.hold_again()
    except StoreUnavailable as error:
        report["failures"] = [*report["failures"], f"ports: {error}"]
    log.info("owed", extra={"report": report})
    return report
