"""The job that lets the sale open: money routes stay closed until the house account, recipients and chains are right."""

import logging
from collections.abc import Sequence
from typing import Any

from functions.x402.wiring import Wiring
from shared.access.model import AccountKind
from shared.access.table import get_account
from shared.chain.model import Depth, ReadFailed
from shared.guard.model import Incident
from shared.guard.service import enter_loop
from shared.guard.table import close_incident, open_incident, write_setting
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms
from shared.sale.exact import REVERTED_DAY_MAX_WEI
from shared.sale.model import Rail
from shared.sale.rules import read_depths, read_prices

SETTING = "sale"
GAS_SPENT = "reverted-gas"
log = logging.getLogger("psx.jobs")


def validate_sale(wiring: Wiring) -> dict[str, Any]:
    """Check everything that money depends on and record the result. Answers {ok, faults}."""
    settings = wiring.settings
    guard = settings.table("guard")
    refused = enter_loop(wiring.dynamo, guard, "validate_sale", now_ms())
    if refused is not None:
        return {"ok": False, "refused": refused.value}
    faults = []
    account = wiring.dynamo.run(get_account(settings.table("access"), AccountId(settings.house_account)))
    if account is None or account.kind is not AccountKind.HOUSE:
        faults.append("house account: missing, or not a house account")
    if read_prices(wiring.live.get("prices")) is None:
        faults.append("prices: not set")
    faults += wiring.chains.faults(lambda network: max(d.quorum for d in _depths(wiring, network)))
    faults += depth_faults(wiring)
    now = now_ms()
    exact_faults = [*wiring.chains.exact_faults(), *_budget_faults(wiring, now)]
    found = {
        "ok": not faults,
        "rails": validated_rails(wiring.rails),
        "faults": faults,
        "exact": not faults and not exact_faults,
        "exactFaults": exact_faults,
        "at_ms": now,
    }
    wiring.dynamo.run(write_setting(guard, SETTING, found, now))
    if faults:
        log.warning("sale closed", extra={"faults": faults})
    return found


def _budget_faults(wiring: Wiring, now: int) -> list[str]:
    """Whether the gas of reverted transfers closes `exact` for today; its incident ends with the day."""
    guard = wiring.settings.table("guard")
    try:
        is_spent = wiring.counter.exact.is_spent()
    except ReadFailed:  # there is no gas wallet
        return []
    if not is_spent:
        wiring.dynamo.run(close_incident(guard, GAS_SPENT, now))
        return []
    words = (
        f"signed transfers (exact) are closed until 0:00 UTC: those that reverted burned {REVERTED_DAY_MAX_WEI} wei today; "
        "payments by transaction hash go on"
    )
    wiring.dynamo.run(open_incident(guard, Incident(GAS_SPENT, "reverted_gas_spent", words, now)))
    return [words]


def validated_rails(rails: Sequence[Rail]) -> list[str]:
    """What was validated: with another recipient, asset or chain the sale is closed until that is validated too."""
    return [f"{r.network} {r.chain_id} {r.asset} {r.recipient}" for r in rails]


def _depths(wiring: Wiring, network: str) -> Sequence[Depth]:
    return read_depths(wiring.live.get("confirmations"), network)


def depth_faults(wiring: Wiring) -> list[str]:
    """Amount bands that no payment could ever satisfy."""
    faults = []
    for network, urls in (
        ("base", wiring.settings.evm_rpc_urls),
        ("solana", wiring.settings.solana_rpc_urls),
    ):
        depths = _depths(wiring, network)
        if max(d.quorum for d in depths) > len(urls.split(",")):
            faults.append(f"{network}: confirmations ask for more nodes than there are")
        if depths[-1].up_to_micro is not None:
            faults.append(f"{network}: confirmations say nothing about the largest amounts")
    return faults
