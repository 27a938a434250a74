"""The flag of the peer tiers: off, and on only while a key of each tier, bought like any other, stays within its IP type.

An admin says that the tiers are wanted; the job `test_peer_tiers` decides whether they are on, and goes on testing. It
buys a key of each tier with its own wallet (`exact`, settled on the chain), goes through the gateway to a page that says
who asks, and tries to break out by every username that could. What a device's IP type is, the live network says, as it
does for routing. A key is used until it is spent or ends; then another one is bought. See decision 0021.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import Request
from pydantic import BaseModel, StrictBool

from functions.http import ProblemError, Routes
from functions.x402.admin import admins_event, recorded
from functions.x402.echo import seen_as
from functions.x402.wiring import TEST_KEY_BYTES, Wiring
from shared.access.model import Pak
from shared.access.table import get_pak
from shared.guard.model import AuditEvent, Incident, Versions
from shared.guard.service import enter_loop, write_audited
from shared.guard.table import close_incident, open_incident, read_versions, replace_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import DeviceId, PakId
from shared.pool.live import listed_ids
from shared.pool.presence import read_presence
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import StoreUnavailable, TransactItem
from shared.runtime.settings import secret_bytes
from shared.sale.model import Bought, Offer, Payment, Prices, Problem, Terms
from shared.sale.rules import read_prices, read_terms, username_of
from shared.sale.service import pool_order

SETTING: Final = "peer_tiers"
LOOP: Final = "test_peer_tiers"
INCIDENT: Final = "peer-tiers"
RETEST_MS: Final = 10 * 60_000
RUN_MAX_S: Final = 22.0
"""A run that took longer has failed: a function may run for 29 s, and a purchase waits up to 12."""
TIMEOUT_S: Final = 5.0
ATTEMPT_LIFE_S: Final = 600
LEAST_LEFT_BYTES: Final = 5_000_000
LEAST_LEFT_MS: Final = 300_000
TRIES: Final = 2
AT_ONCE: Final = 6
PEERS_MAX: Final = 5_000
log = logging.getLogger("psx.jobs")


class FlagBody(BaseModel):
    """`POST /v1/x402/admin/peer-tiers`."""

    on: StrictBool


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of the test: which username, and the exit's IP type (empty: refused)."""

    wanted: str
    username: str
    found: str

    @property
    def honoured(self) -> bool:
        """Whether the key stayed within its type."""
        return self.found in {"", self.wanted}


def usernames(account: str, wanted: str) -> tuple[str, ...]:
    """What the buyer of a tier is told first, then what might break out of it."""
    others = [t.value for t in IpType if t.value not in {wanted, IpType.UNKNOWN.value}]
    return (
        f"{account}-peer-any-iptype-{wanted}",
        f"{account}-peer-any",
        f"{account}-any-any",
        f"{account}-mbl-any",
        f"{account}-mbl-any-failover-any",
        *(f"{account}-peer-any-iptype-{other}" for other in others),
        *(f"{account}-any-any-iptype-{other}-failover-any" for other in others),
    )


def verdict(seen: list[Seen], wanted: str) -> str | None:
    """Why a tier may not be sold; None when it may."""
    broke_out = next((s for s in seen if not s.honoured), None)
    if broke_out is not None:
        return f"{wanted}: {broke_out.username} left through {broke_out.found}"
    first = [s for s in seen if s.username.endswith(f"-peer-any-iptype-{wanted}")]
    return None if any(s.found == wanted for s in first) else f"{wanted}: no request came through"


class NotTested(Exception):
    """Why a tier could not be tested."""


class SelfTest:
    """One run. `state` is the flag as it was read; keys that are bought, and payments on their way, are kept in it."""

    def __init__(self, wiring: Wiring, state: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
        self._w = wiring
        self._state = state
        self._keep = keep
        self._until_s = time.monotonic() + RUN_MAX_S

    def run(self) -> tuple[list[str], list[str]]:
        """(IP types that hold, faults). Raises StoreUnavailable."""
        setting = self._w.live.get("prices")
        tiers = {row["ip_type"]: name for name, row in setting.get("tiers", {}).items() if row.get("ip_type")}
        if not self._w.settings.echo_url or not self._w.settings.self_test_key.get_secret_value():
            return [], [
                "no page that tells who asks, or no wallet to buy with (PSX_ECHO_URL, PSX_SELF_TEST_KEY)"
            ]
        if not tiers:
            return [], ["prices: no tier of peers is priced"]
        faults = []
        for wanted, tier in sorted(tiers.items()):
            try:
                fault = self._tier(wanted, tier, setting)
            except NotTested as error:
                fault = f"{wanted}: {error}"
            faults += [fault] if fault else []
        return ([], faults) if faults else (sorted(tiers), [])

    def _tier(self, wanted: str, tier: str, setting: dict[str, Any]) -> str | None:
        prices = read_prices(setting, tier)
        if prices is None:
            raise NotTested("not priced")
        username, secret = self._key(wanted, prices)
        first, *others = usernames(self._w.counter.mint.house, wanted)
        return verdict(list(self._requests((username, first, *others), secret, wanted)), wanted)

    def _key(self, wanted: str, prices: Prices) -> tuple[str, str]:
        """A key of the tier that can carry the test: one that was bought before, or another one."""
        w, now = self._w, now_ms()
        terms = read_terms({"tier": prices.tier}, prices)
        if not isinstance(terms, Terms):
            raise NotTested(f"{terms.field} of the least purchase cannot be sold")
        known = self._state.get("keys", {}).get(wanted)
        pak = w.dynamo.run(get_pak(w.settings.table("access"), PakId(known))) if known else None
        if pak is None or not _carries(pak, now):
            pak = self._buy(wanted, terms, prices)
        return username_of(w.counter.mint.house, terms), w.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")

    def _buy(self, wanted: str, terms: Terms, prices: Prices) -> Pak:
        """Buy like anybody, but for the flag. A payment whose outcome is unknown is shown again, never replaced."""
        from shared.chain.buyer import sign_transfer  # noqa: PLC0415 - loaded with the chain

        w, order, rail = self._w, pool_order(terms, prices), self._w.counter.exact_rail()
        attempts = self._state.setdefault("attempts", {})
        if wanted not in attempts:
            before_s = now_ms() // 1000 + ATTEMPT_LIFE_S
            told = {"due": order.due_micro, "recipient": rail.recipient, "before_s": before_s}
            attempts[wanted] = {"id": new_id(), **told}
            self._keep(self._state)
        attempt = attempts[wanted]
        nonce = hashlib.sha256(f"self-test {wanted} {attempt['id']}".encode()).hexdigest()
        signed = sign_transfer(
            secret_bytes(w.settings.self_test_key, TEST_KEY_BYTES),
            chain_id=rail.chain_id or 0,
            contract=rail.asset,
            recipient=attempt["recipient"],
            amount_micro=attempt["due"],
            nonce="0x" + nonce,
            before_s=attempt["before_s"],
        )
        counter = replace(w.counter, sells=lambda _: True)
        bought = counter.buy([Offer(order, prices)], Payment(rail.network, "", "", signed), LOOP)
        if isinstance(bought, Bought):
            self._state.setdefault("keys", {})[wanted] = bought.pak.pak_id
            del attempts[wanted]
            self._keep(self._state)
            return bought.pak
        # Certain: no money has moved; or it has, and what it bought is given out no more.
        if bought.problem in {Problem.PAYMENT_INVALID, Problem.NOT_YOURS, Problem.OTHER_PRODUCT}:
            del attempts[wanted]
            self._keep(self._state)
        raise NotTested(f"no key could be bought: {bought.problem.value}: {bought.detail}")

    def _requests(self, names: Sequence[str], secret: str, wanted: str) -> Iterator[Seen]:
        types = self._types()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            exits = list(pool.map(lambda name: (name, self._exit(name, secret)), [*names] * TRIES))
        if time.monotonic() > self._until_s:
            raise NotTested(f"the test took longer than {RUN_MAX_S:.0f} s")
        for username, address in exits:
            yield Seen(wanted, username, types.get(address, "an unknown address") if address else "")

    def _types(self) -> dict[str, str]:
        """What the live network says of each peer's address."""
        found: dict[str, str] = {}
        listed: frozenset[str] = self._w.redis.run(listed_ids(Pool.PEER))
        for device_id in sorted(listed)[:PEERS_MAX]:
            presence = self._w.redis.run(read_presence(DeviceId(device_id)))
            if presence is not None:
                found[presence.ip] = presence.ip_type.value
        return found

    def _exit(self, username: str, secret: str) -> str:
        """The address that the echo page saw; empty when the gateway or the exit refused."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            return ""
        return seen_as(self._w.settings, username, secret, min(TIMEOUT_S, left_s))


def _carries(pak: Pak, now: int) -> bool:
    """Whether a key can carry another test."""
    left = (pak.cap_bytes or 0) - pak.used_bytes
    return pak.enabled and left >= LEAST_LEFT_BYTES and (pak.expires_at_ms or 0) - now >= LEAST_LEFT_MS


class Flag:
    """The stored state: wanted (an admin's word), on (the test's), and when and what was tested."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring
        self._table = wiring.settings.table("guard")
        self.known: Versions | None = wiring.dynamo.run(read_versions(self._table, SETTING))

    @property
    def value(self) -> dict[str, Any]:
        """What is stored."""
        return dict(self.known.value) if self.known else {}

    def write(self, value: dict[str, Any], event: AuditEvent | None = None) -> bool:
        """Store a state, with its event; False when somebody else changed it since it was read."""
        w, now = self._w, now_ms()
        items: list[TransactItem] = [replace_setting(self._table, SETTING, value, now, self.known, 0)]
        told = event or AuditEvent(f"loop#{LOOP}", "peer_tiers_tested", LOOP, now)
        if write_audited(w.dynamo, w.settings.table("audit"), told, items) is not None:
            return False
        self.known = w.dynamo.run(read_versions(self._table, SETTING))
        return True


def test_peer_tiers(wiring: Wiring) -> dict[str, Any]:
    """The job: test what is wanted when it is due, and turn the flag by what the test says. Answers what it found."""
    w, guard = wiring, wiring.settings.table("guard")
    refused = enter_loop(w.dynamo, guard, LOOP, now_ms())
    if refused is not None:
        return {"refused": refused.value}
    flag = Flag(w)
    state = flag.value
    if not state.get("wanted"):
        return {"wanted": False}
    if state.get("on") and now_ms() - state.get("at_ms", 0) < RETEST_MS:
        return {"wanted": True, "on": True, "due": False}

    def keep(changed: dict[str, Any]) -> None:
        if not flag.write(changed):
            raise StoreUnavailable("the flag changed during the test")

    try:
        tested, faults = SelfTest(w, state, keep).run()
    except StoreUnavailable as error:
        tested, faults = [], [str(error)]
    _told(w, state, faults)
    same = faults and not state.get("on") and state.get("faults") == faults
    written = True if same else _decided(flag, state, tested, faults)
    report = {"wanted": True, "on": not faults, "tested": tested, "faults": faults, "written": written}
    log.info("peer tiers tested", extra={"report": report})
    return report


def _told(w: Wiring, state: dict[str, Any], faults: list[str]) -> None:
    """Keep an incident open for as long as the test says no, also when somebody closes it by hand."""
    guard, now = w.settings.table("guard"), now_ms()
    if faults:
        words = f"the peer tiers are off: {'; '.join(faults)}"[:500]
        w.dynamo.run(open_incident(guard, Incident(INCIDENT, "peer_tiers_off", words, now)))
    elif not state.get("on"):
        w.dynamo.run(close_incident(guard, INCIDENT, now))


def _decided(flag: Flag, state: dict[str, Any], tested: list[str], faults: list[str]) -> bool:
    """Store what the test says; False when the flag was changed."""
    return flag.write(state | {"on": not faults, "tested": tested, "faults": faults, "at_ms": now_ms()})


def router(wiring: Callable[[], Wiring]) -> Routes:
    """The flag's routes."""
    routes = Routes(prefix="/v1/x402/admin")

    @routes.get("/peer-tiers")
    def shown(request: Request) -> dict[str, Any]:
        recorded(wiring(), request, "peer_tiers_look")
        return _shown(Flag(wiring()).value)

    @routes.post("/peer-tiers", status_code=202)
    def turn(request: Request, body: FlagBody) -> dict[str, Any]:
        """Off at once; wanted, and on when the job has tested it (within a minute)."""
        w = wiring()
        event = admins_event(w, request, "peer_tiers_wanted", on=body.on)
        flag = Flag(w)
        state = flag.value | {"wanted": body.on}
        if not body.on:
            state |= {"on": False, "tested": [], "faults": []}
        if not flag.write(state, event):
            raise ProblemError(409, "CHANGED_MEANWHILE", "the flag changed in the same moment, please retry")
        return _shown(state)

    return routes


def _shown(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "wanted": bool(state.get("wanted")),
        "on": bool(state.get("on")),
        "tested": state.get("tested", []),
        "faults": state.get("faults", []),
        "testedAt": state.get("at_ms"),
    }
