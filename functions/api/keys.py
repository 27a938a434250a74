"""API keys of an account: made, listed, rotated with a time of grace, ended. Shown once, stored as hashes."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, Field

from functions.api.auth import caller, fresh
from functions.api.desk import Desk
from functions.api.history import write_of_account
from functions.api.paging import PART_MAX, part
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access import table as access
from shared.access.model import ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.runtime.clock import now_ms

GRACE_MAX_S: Final = 7 * 86_400


class NewKeyBody(BaseModel):
    """`POST /v1/account/api-keys`."""

    scopes: Annotated[list[Scope], Field(min_length=1)]
    label: Annotated[str, Field(max_length=128)] = ""


class RotateBody(BaseModel):
    """`POST …/rotate`: how long the old key goes on."""

    graceSeconds: Annotated[int, Field(ge=0, le=GRACE_MAX_S)] = 0


class AccountKeys(Desk):
    """Routes' work."""

    def mine(self, by: ApiKey) -> list[ApiKey]:
        """Live keys of the caller's account."""
        page = self.w.dynamo.run(
            access.api_key_hashes(self.table, by.account_id, access.API_KEYS_PER_ACCOUNT_MAX)
        )
        found = (self.w.dynamo.run(access.find_api_key(self.table, key_hash)) for key_hash in page.rows)
        return [key for key in found if key is not None and not key.has_ended(now_ms())]

    def one(self, by: ApiKey, key_id: str) -> ApiKey:
        """A live key of the account by its id, or 404."""
        found = next((key for key in self.mine(by) if key.key_id == key_id), None)
        if found is None:
            raise _absent()
        return found

    def make(self, request: Request, by: ApiKey, scopes: frozenset[Scope], label: str) -> dict[str, Any]:
        """Another key, with nothing that its maker may not do."""
        lacking = scopes - by.scopes - {Scope.READ}
        if lacking:
            message = f"you cannot give what you do not have: {', '.join(sorted(lacking))}"
            raise ProblemError(403, "SCOPE_MISSING", message)
        text = new_api_key()
        made = ApiKey(token_hash(text), by.account_id, scopes, now_ms(), label)
        items, facts = access.api_key_items(self.table, made), {"key": made.key_id, "scopes": sorted(scopes)}
        if write_of_account(self.w, request, by, "api_key_create", items, **facts) is not None:
            raise too_many_keys()
        return shown(made) | {"apiKey": text}

    def rotate(self, request: Request, by: ApiKey, key_id: str, grace_s: int) -> dict[str, Any]:
        """A key in another one's place, which ends after the grace."""
        old = self.one(by, key_id)
        if not old.scopes - {Scope.READ} <= by.scopes:
            raise ProblemError(403, "SCOPE_MISSING", "that key may do more than you")
        text, now = new_api_key(), now_ms()
        made = ApiKey(token_hash(text), old.account_id, old.scopes, now, old.label)
        ended = access.end_api_key_items(self.table, old, now + grace_s * 1000, succeeded=True)
        items = [*ended, *access.api_key_items(self.table, made, successor=True)]
        facts = {"key": old.key_id, "successor": made.key_id}
        if write_of_account(self.w, request, by, "api_key_rotate", items, **facts) is not None:
            raise _absent()
        return shown(made) | {"apiKey": text, "oldKeyEndsAt": now + grace_s * 1000}

    def end(self, request: Request, by: ApiKey, key_id: str) -> dict[str, Any]:
        """A key stops at once."""
        old = self.one(by, key_id)
        items = access.end_api_key_items(self.table, old, now_ms())
        if write_of_account(self.w, request, by, "api_key_end", items, key=old.key_id) is not None:
            raise _absent()
        return {"id": key_id, "ended": True}


def too_many_keys() -> ProblemError:
    """An account has all the API keys that it may have."""
    return ProblemError(409, "TOO_MANY_KEYS", f"at most {access.API_KEYS_PER_ACCOUNT_MAX} API keys")


def _absent() -> ProblemError:
    return ProblemError(404, "NOT_FOUND", "there is no such API key")


def shown(key: ApiKey) -> dict[str, Any]:
    """A key without anything that works as one."""
    return {
        "id": key.key_id,
        "label": key.label,
        "scopes": sorted(key.scopes),
        "createdAt": key.created_at_ms,
        "endsAt": key.ends_at_ms,
    }


def _place(key: ApiKey) -> str:
    """The newest first."""
    return f"{10**13 - key.created_at_ms:014d}:{key.key_id}"


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of API keys."""
    routes = Routes(prefix="/v1/account/api-keys")
    work = AccountKeys(wiring)

    @routes.get("")
    def listed(request: Request, limit: int = PART_MAX, cursor: str = "") -> dict[str, Any]:
        keys = work.mine(caller(work.w, request, Scope.KEYS))
        page, following = part(keys, limit, cursor, _place)
        return {"apiKeys": [shown(key) for key in page], "count": len(page), "nextCursor": following}

    @routes.post("")
    def make(request: Request, body: NewKeyBody) -> dict[str, Any]:
        by = fresh(work.w, request, caller(work.w, request, Scope.KEYS))
        return work.make(request, by, frozenset(body.scopes), body.label)

    @routes.post("/{key_id}/rotate")
    def rotate(request: Request, key_id: str, body: RotateBody) -> dict[str, Any]:
        by = fresh(work.w, request, caller(work.w, request, Scope.KEYS))
        return work.rotate(request, by, key_id, body.graceSeconds)

    @routes.delete("/{key_id}")
    def end(request: Request, key_id: str) -> dict[str, Any]:
        by = fresh(work.w, request, caller(work.w, request, Scope.KEYS))
        return work.end(request, by, key_id)

    return routes
