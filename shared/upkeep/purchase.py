"""The synthetic customer's purchases: what it may spend and when, and what the last one says. Pure.

The setting `purchases` is the budget; without one nothing is bought. What was spent and what is under way stands in the
setting `purchase_state`. Money counts as spent from the moment before it may move, and a payment whose outcome is unknown
is shown again, never replaced.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from shared.metering.rules import day_of

BUDGET: Final = "purchases"
STATE: Final = "purchase_state"
SERVED_WITHIN_MS: Final = 180_000
"""A payment that has bought nothing for this long is somebody's fault."""
SILENT_MAX_MS: Final = 30 * 60_000
"""A customer that has not looked for this long does not run any more."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: on one purchase and in a UTC day, in micro-USDC, and one purchase in how many seconds."""

    each_micro: int
    day_micro: int
    every_s: int


def read_budget(setting: Mapping[str, Any]) -> Budget | None:
    """The setting as a budget; None while nobody set one, or it allows nothing."""
    if not setting:
        return None
    found = Budget(int(setting["each_micro"]), int(setting["day_micro"]), int(setting["every_s"]))
    return found if found.day_micro else None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A payment that may have been made: enough to show exactly the same one again."""

    attempt_id: str
    due_micro: int
    recipient: str
    before_s: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Purchases:
    """What is known of the purchases. `fault` is what was wrong with the last one."""

    day: str = ""
    spent_micro: int = 0
    begun_ms: int = 0
    looked_ms: int = 0
    bought_ms: int = 0
    fault: str = ""
    attempt: Attempt | None = None

    def spent_on(self, now_ms: int) -> int:
        """What this UTC day has cost."""
        return self.spent_micro if self.day == day_of(now_ms) else 0

    def is_due(self, budget: Budget, now_ms: int) -> bool:
        """Whether it is time to buy again. A clock that went back does not hold it up."""
        return not 0 <= now_ms - self.begun_ms < budget.every_s * 1000

    def begun(self, attempt: Attempt) -> "Purchases":
        """A payment is about to be shown: it counts from here on."""
        spent = self.spent_on(attempt.at_ms) + attempt.due_micro
        return replace(
            self, day=day_of(attempt.at_ms), spent_micro=spent, begun_ms=attempt.at_ms, attempt=attempt
        )

    def ended(self, now_ms: int, fault: str = "") -> "Purchases":
        """The outcome is certain."""
        bought_ms = self.bought_ms if fault else now_ms
        return replace(self, attempt=None, bought_ms=bought_ms, fault=fault, looked_ms=now_ms)


def read_purchases(setting: Mapping[str, Any]) -> Purchases:
    """The stored state."""
    attempt = setting.get("attempt")
    return Purchases(**{**setting, "attempt": Attempt(**attempt) if attempt else None})


def purchases_row(purchases: Purchases) -> dict[str, Any]:
    """The inverse of `read_purchases`."""
    return asdict(purchases)


def beyond_each(budget: Budget, due_micro: int) -> str | None:
    """Why nothing may be bought at this price."""
    if due_micro <= budget.each_micro:
        return None
    return f"the least purchase costs {due_micro} micro-USDC, and one may cost {budget.each_micro}"


def beyond_day(budget: Budget, spent_micro: int, due_micro: int) -> str | None:
    """Why nothing more may be bought today."""
    if spent_micro + due_micro <= budget.day_micro:
        return None
    return f"{spent_micro} of {budget.day_micro} micro-USDC are spent today, and the next purchase costs {due_micro}"


def purchase_fault(setting: Mapping[str, Any] | None, now_ms: int) -> str | None:
    """What the watchdog says of the purchases; None when they are well, or nobody wants any."""
    if not setting:
        return None
    known = read_purchases(setting)
    if known.attempt is not None and now_ms - known.attempt.at_ms > SERVED_WITHIN_MS:
        return f"paid and not served: {known.fault or 'no answer'}"
    if known.fault and known.attempt is None:
        return known.fault
    if now_ms - known.looked_ms > SILENT_MAX_MS:
        return "the job that buys has not run for half an hour"
    return None
