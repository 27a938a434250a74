"""Health, and what only an admin's API key may do: accounts, keys, settings, the kill switch. Every change is on record."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Request, Response
from pydantic import BaseModel, StrictBool

from functions.api.auth import caller, fresh
from functions.api.history import record_of_account, write_of_account
from functions.api.keys import too_many_keys
from functions.api.setting_changes import SECOND_PERSON, change_setting, propose_setting
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.grading.live import EVERYTHING, mark_changed
from shared.grading.rules import parse_thresholds
from shared.guard.model import Switch
from shared.guard.settings import sale_faults, setting_fault
from shared.guard.table import read_setting, read_switch, set_switch
from shared.kernel.ids import ACCOUNT_ID, AccountId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import marshal
from shared.runtime.settings import Stage
from shared.supply.live import put_regions
from shared.supply.model import parse_regions
from shared.wire.egress import parse_domains

SETTABLE: Final = frozenset(
    {
        "prices",
        "rates",
        "confirmations",
        "wholesale",
        "recipients",
        "relays",
        "terms",
        "grading",
        "domains",
        "purchases",
        "leases",
    }
)
RELISTING: Final = frozenset({"terms", "grading"})
"""Settings that every listing depends on."""


class AccountBody(BaseModel):
    """A new account."""

    accountId: str
    kind: AccountKind


class KeyBody(BaseModel):
    """A new API key."""

    scopes: list[Scope]


class SwitchBody(BaseModel):
    """The kill switch."""

    stopped: StrictBool
    reason: str


def check_setting(name: str, value: dict[str, Any], *, local: bool) -> None:
    """400, naming what is wrong, for a setting that must not be written."""
    fault = setting_fault(name, value)
    if fault is None:
        try:
            marshal(value)
            if name == "grading":
                parse_thresholds(value)
            if name == "domains":
                parse_domains(value)
            if name == "relays":
                regions = parse_regions(value)
                if not local and not all(region.url.startswith("wss://") for region in regions):
                    raise ValueError("a url must begin with wss://")
        except (TypeError, ValueError) as error:
            fault = (
                str(error)
                if name in {"relays", "grading", "domains"}
                else "amounts are integers, no fractions"
            )
    if fault is not None:
        raise ProblemError(400, "INVALID_FIELD", f"{name}: {fault}")


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Operations' routes."""
    routes = Routes()

    def admin(request: Request) -> ApiKey:
        return fresh(wiring(), request, caller(wiring(), request, Scope.ADMIN))

    @routes.get("/health")
    def health() -> dict[str, Any]:
        w = wiring()
        sale, switch = w.live.get("sale"), w.dynamo.run(read_switch(w.settings.table("guard")))
        faults = sale_faults(sale, now_ms())
        return {
            "ok": True,
            "stage": w.settings.stage.value,
            "sale": {"open": not faults, "faults": faults},
            "loopsStopped": switch.stopped,
        }

    @routes.post("/v1/admin/accounts")
    def create_account(request: Request, body: AccountBody) -> dict[str, Any]:
        w, by = wiring(), admin(request)
        if not ACCOUNT_ID.fullmatch(body.accountId):
            raise ProblemError(400, "INVALID_FIELD", "accountId: psx_ and 1 to 64 of a-z and 0-9")
        account = Account(AccountId(body.accountId), body.kind, now_ms())
        items = [access.account_item(w.settings.table("access"), account)]
        facts = {"account": body.accountId, "kind": body.kind.value}
        if write_of_account(w, request, by, "account_create", items, **facts) is not None:
            raise ProblemError(409, "ACCOUNT_EXISTS", "this account exists already")
        return {"accountId": account.account_id, "kind": account.kind.value}

    @routes.post("/v1/admin/accounts/{account_id}/api-keys")
    def create_key(request: Request, account_id: str, body: KeyBody) -> dict[str, Any]:
        w, by = wiring(), admin(request)
        table = w.settings.table("access")
        if w.dynamo.run(access.get_account(table, AccountId(account_id))) is None:
            raise ProblemError(404, "NOT_FOUND", "there is no such account")
        text = new_api_key()
        key = ApiKey(token_hash(text), AccountId(account_id), frozenset(body.scopes), now_ms())
        items, facts = (
            access.api_key_items(table, key),
            {"account": account_id, "scopes": sorted(body.scopes)},
        )
        if write_of_account(w, request, by, "api_key_create", items, **facts) is not None:
            raise too_many_keys()
        return {"accountId": account_id, "apiKey": text, "scopes": sorted(body.scopes)}

    @routes.get("/v1/admin/settings/{name}")
    def shown(request: Request, name: str) -> dict[str, Any]:
        w, _ = wiring(), caller(wiring(), request, Scope.ADMIN)
        if name not in SETTABLE:
            raise ProblemError(404, "NOT_FOUND", f"settings are: {', '.join(sorted(SETTABLE))}")
        return {"setting": name, "value": w.dynamo.run(read_setting(w.settings.table("guard"), name))}

    @routes.put("/v1/admin/settings/{name}")
    def setting(request: Request, response: Response, name: str, body: dict[str, Any]) -> dict[str, Any]:
        w, by = wiring(), admin(request)
        if name not in SETTABLE:
            raise ProblemError(404, "NOT_FOUND", f"settings are: {', '.join(sorted(SETTABLE))}")
        check_setting(name, body, local=w.settings.stage is Stage.LOCAL)
        if name in SECOND_PERSON:
            response.status_code = 202
            return propose_setting(w, request, by, name, body)
        change_setting(w, request, by, name, body, "setting_change", [])
        if name == "relays":
            w.redis.run(put_regions(body))
        if name in RELISTING:
            w.redis.run(mark_changed([EVERYTHING]))
        return {"setting": name, "value": body}

    @routes.post("/v1/admin/switch")
    def switch(request: Request, body: SwitchBody) -> dict[str, Any]:
        w, by = wiring(), caller(wiring(), request, Scope.ADMIN)
        if not body.stopped:  # stopping waits for nobody
            fresh(w, request, by)
        now = now_ms()
        turned = Switch(body.stopped, body.reason[:256], by.account_id, now)
        w.dynamo.run(set_switch(w.settings.table("guard"), turned))
        record_of_account(w, request, by, "kill_switch", stopped=body.stopped, reason=turned.reason)
        return {"stopped": body.stopped}

    return routes
