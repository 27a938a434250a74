"""The job `buy_as_customer`: buys the least there is, by the public API and with a wallet's money, and uses what it bought.

402, a signed transfer (x402 v1, `exact`), credentials, one page through the gateway: what a stranger's agent does. What it
may spend is the setting `purchases`; the kill switch and its loop limit hold it. The watchdog tells what it found. It needs
the chain's SDK to sign, so it stands here and not beside the other jobs. Decision 0064.
"""

import base64
import hashlib
import http.client
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from functions.x402.echo import seen_as
from functions.x402.wiring import TEST_KEY_BYTES, Wiring
from shared.chain.model import Authorization
from shared.guard.model import AuditEvent
from shared.guard.service import enter_loop, write_audited
from shared.guard.table import read_versions, replace_setting
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import TransactItem, transact
from shared.runtime.settings import secret_bytes
from shared.sale.model import Problem, Rail
from shared.upkeep.purchase import (
    BUDGET,
    STATE,
    Attempt,
    Budget,
    Purchases,
    beyond_day,
    beyond_each,
    purchases_row,
    read_budget,
    read_purchases,
)

LOOP: Final = "buy_as_customer"
PATH: Final = "/v1/x402/pool"
"""Without terms: the least purchase of the default tier."""
ASK_TIMEOUT_S: Final = 15.0
PAGE_TIMEOUT_S: Final = 3.0
PAGE_TRIES: Final = 3
PAYABLE_FOR_S: Final = 600
ANSWER_MAX_BYTES: Final = 256 * 1024
FINAL: Final = frozenset({Problem.NOT_YOURS.value, Problem.OTHER_PRODUCT.value})
"""What the sale says of our own payment when it was claimed, and will say whenever it is shown again."""
log = logging.getLogger("psx.jobs")

Asks = Callable[[Mapping[str, str]], tuple[int, Any]]
"""Headers -> (status, JSON) of the purchase; status 0 when nobody answered."""
Uses = Callable[[str, str], bool]
"""(username, secret) -> whether a page came through the gateway."""


class Moved(Exception):
    """Another run changed the state meanwhile: its word counts."""


class Customer:
    """One run."""

    def __init__(self, w: Wiring, key: bytes, ask: Asks, use: Uses) -> None:
        self._w, self._key, self._ask, self._use = w, key, ask, use
        self._guard = w.settings.table("guard")
        self._known = w.dynamo.run(read_versions(self._guard, STATE))
        self.state = read_purchases(self._known.value) if self._known else Purchases()

    def run(self, budget: Budget) -> str:
        """Go on with a payment that is under way, or buy when that is due. Answers what became of it; raises Moved."""
        if self.state.attempt is None:
            refused = self._begin(budget)
            if refused is not None:
                self._keep(replace(self.state, looked_ms=now_ms()))
                return refused
        return self._pay()

    def _begin(self, budget: Budget) -> str | None:
        """Fix the next payment before it is shown to anybody; why there is none, or None."""
        state, now = self.state, now_ms()
        if not state.is_due(budget, now):
            return "not due"
        status, body = self._ask({})
        rail = self._w.counter.exact_rail()
        due_micro, fault = quoted(status, body, rail)
        fault = fault or beyond_each(budget, due_micro)
        if fault is not None:
            self.state = replace(state, fault=fault)
            return fault
        self.state = replace(state, fault="")
        refused = beyond_day(budget, state.spent_on(now), due_micro)
        if refused is not None:
            return refused
        attempt = Attempt(new_id(), due_micro, rail.recipient, now // 1000 + PAYABLE_FOR_S, now)
        self._keep(self.state.begun(attempt), "purchase_begun", due_micro)
        return None

    def _pay(self) -> str:
        attempt = self.state.attempt
        assert attempt is not None  # noqa: S101 - fixed before
        status, body = self._ask({"X-Payment": payment_header(self._signed(attempt))})
        if status == 200:
            fault = self._unusable(body)
            self._keep(self.state.ended(now_ms(), fault), "purchase_ended", attempt.due_micro)
            return fault or "bought"
        words = f"{status} {body.get('code', '') if isinstance(body, dict) else ''}".strip()
        if status == 402:  # certain: nothing was settled
            fault = f"the payment was refused: {words}"
            self._keep(self.state.ended(now_ms(), fault), "purchase_refused", attempt.due_micro)
            return fault
        if status in {403, 409} and isinstance(body, dict) and body.get("code") in FINAL:
            fault = f"the payment bought something, and its answer was lost: {words}"
            self._keep(self.state.ended(now_ms(), fault), "purchase_answer_lost", attempt.due_micro)
            return fault
        self._keep(replace(self.state, looked_ms=now_ms(), fault=f"the sale answers {words}"))
        return f"unknown: {words}"

    def _unusable(self, body: Any) -> str:
        """Why what was bought carries nothing; empty when it does."""
        try:
            name, secret = str(body["proxy"]["username"]), str(body["proxy"]["password"])
        except (KeyError, TypeError):
            return "paid, and the answer holds no credentials"
        works = any(self._use(name, secret) for _ in range(PAGE_TRIES))
        return "" if works else "paid, and the key carries nothing through the gateway"

    def _signed(self, attempt: Attempt) -> Authorization:
        """The same attempt gives the same signature: showing it again can pay only once."""
        from shared.chain.buyer import sign_transfer  # noqa: PLC0415 - loaded with the chain

        rail = self._w.counter.exact_rail()
        return sign_transfer(
            self._key,
            chain_id=rail.chain_id or 0,
            contract=rail.asset,
            recipient=attempt.recipient,
            amount_micro=attempt.due_micro,
            nonce="0x" + hashlib.sha256(f"customer {attempt.attempt_id}".encode()).hexdigest(),
            before_s=attempt.before_s,
        )

    def _keep(self, state: Purchases, action: str = "", amount_micro: int = 0) -> None:
        """Store the state if it is still as it was read; what moves money leaves its event. Raises Moved."""
        w, now = self._w, now_ms()
        items: list[TransactItem] = [
            replace_setting(self._guard, STATE, purchases_row(state), now, self._known, 0)
        ]
        if action:
            event = AuditEvent(f"loop#{LOOP}", action, LOOP, now, metadata={"amount_micro": amount_micro})
            conflict = write_audited(w.dynamo, w.settings.table("audit"), event, items)
        else:
            conflict = w.dynamo.run(transact(items))
        if conflict is not None:
            raise Moved
        self.state, self._known = state, w.dynamo.run(read_versions(self._guard, STATE))


def quoted(status: int, body: Any, rail: Rail) -> tuple[int, str | None]:
    """(micro-USDC due, None) of a 402 that asks for money where ours goes; otherwise why it is not paid."""
    if status != 402:
        return 0, f"the sale answers {status} to a stranger who asks for the price"
    try:
        offer = next(a for a in body["accepts"] if a["scheme"] == "exact" and a["network"] == rail.network)
        due, pays = int(offer["maxAmountRequired"]), (str(offer["payTo"]), str(offer["asset"]))
    except (KeyError, TypeError, ValueError, StopIteration):
        return 0, "the sale offers no signed transfer"
    if tuple(p.lower() for p in pays) != (rail.recipient.lower(), rail.asset.lower()):
        return 0, "the sale asks for money to another address or in another coin than ours"
    return due, None if due > 0 else "the sale asks for nothing"


def payment_header(signed: Authorization) -> str:
    """A signed transfer as clients of x402 v1 show it."""
    told = {
        "x402Version": 1,
        "scheme": "exact",
        "network": "base",
        "payload": {
            "signature": signed.signature,
            "authorization": {
                "from": signed.payer,
                "to": signed.recipient,
                "value": str(signed.amount_micro),
                "validAfter": str(signed.valid_after_s),
                "validBefore": str(signed.valid_before_s),
                "nonce": signed.nonce,
            },
        },
    }
    return base64.b64encode(json.dumps(told).encode()).decode()


def buy_as_customer(wiring: Wiring) -> dict[str, Any]:
    """The job. Answers what it did, or why it did nothing."""
    w, s = wiring, wiring.settings
    refused = enter_loop(w.dynamo, s.table("guard"), LOOP, now_ms())
    if refused is not None:
        return {"refused": refused.value}
    budget, missing = read_budget(w.live.get(BUDGET)), _missing(w)
    if budget is None or missing:
        return _rest(w, missing or f"no budget: the setting {BUDGET} is not set, or allows nothing")
    customer = Customer(
        w,
        secret_bytes(s.customer_key, TEST_KEY_BYTES),
        lambda headers: _asked(s.api_base_url, headers),
        lambda name, secret: bool(seen_as(s, name, secret, PAGE_TIMEOUT_S)),
    )
    try:
        outcome = customer.run(budget)
    except Moved:
        outcome = "another run was faster"
    report = {"outcome": outcome, "spentTodayMicro": customer.state.spent_on(now_ms())}
    log.info("bought as a customer", extra={"report": report})
    return report


def _missing(w: Wiring) -> str:
    key, page = w.settings.customer_key.get_secret_value(), w.settings.echo_url
    absent = [name for name, value in (("PSX_CUSTOMER_KEY", key), ("PSX_ECHO_URL", page)) if not value]
    return f"not configured: {', '.join(absent)}" if absent else ""


def _rest(w: Wiring, why: str) -> dict[str, Any]:
    """Nobody wants purchases: forget the state, so that nobody waits for one, but never a payment that is under way."""
    guard = w.settings.table("guard")
    known = w.dynamo.run(read_versions(guard, STATE))
    if known and known.value and known.value.get("attempt") is None:
        w.dynamo.run(transact([replace_setting(guard, STATE, {}, now_ms(), known, 0)]))
    return {"skipped": why}


def _asked(api: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    base = urlsplit(api)
    kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
    connection = kind(base.netloc, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", base.path.rstrip("/") + PATH, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(ANSWER_MAX_BYTES) or b"null")
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()
