"""The job that serves what was paid and, after a crash, not served; see `shared/sale/owed.py`."""

import functools
import logging
from typing import Any, Final

from functions.x402.balance import wholesale
from functions.x402.wiring import Wiring
from shared.guard.service import enter_loop
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.sale.model import Order, Prices, Product
from shared.sale.owed import OwedRun
from shared.sale.ports import HeldAgain
from shared.sale.rules import read_prices

HOLDS_MAX_MS: Final = 4_000
"""What is left of the function's 29 s when the owed purchases took all of theirs."""
log = logging.getLogger("psx.jobs")


def _prices(wiring: Wiring, order: Order) -> Prices | None:
    if order.product is Product.BALANCE:
        return wholesale(wiring, order.traffic_bytes, wiring.live.get("wholesale"))
    told = (read_prices(setting, order.tier) for setting in wiring.live.versions("prices"))
    return next((found for found in told if found is not None), None)


def serve_owed(wiring: Wiring) -> dict[str, Any]:
    """Every minute: serve, or put on the refund list, what is late; put back lost holds of ports. Answers counts."""
    guard = wiring.settings.table("guard")
    refused = enter_loop(wiring.dynamo, guard, "serve_owed", now_ms())
    if refused is not None:
        return {"refused": refused.value}
    run = OwedRun(wiring.counter, guard, functools.partial(_prices, wiring), wiring.counter.now_ms)
    report = dict(run.run().as_json())
    try:
        held = wiring.counter.mint.ports.hold_again(HOLDS_MAX_MS)
    except StoreUnavailable as error:
        held = HeldAgain(0, (f"ports: {error}",))
    report |= {"heldAgain": held.put_back, "failures": [*report["failures"], *held.faults]}
    log.info("owed", extra={"report": report})
    return report
