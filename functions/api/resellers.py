"""Resellers' keys: create, list, read, change, top up, reveal, end, and what happened to them."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from functions.api import history
from functions.api.amounts import Amount
from functions.api.auth import caller, fresh
from functions.api.desk import Desk
from functions.api.history import record_of_key, write_of_key
from functions.api.paging import own_cursor, write_cursor
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access import table as access
from shared.access.idempotency import once_item
from shared.access.model import AccountKind, ApiKey, DisabledReason, Pak, Quality, Scope
from shared.access.prepaid import Prepaid, get_prepaid, move_items
from shared.access.rules import CAP_MAX_BYTES, LABEL_MAX_CHARS, cap_draw, cap_fault, is_expired
from shared.access.secrets import new_pak_secret
from shared.access.settling import settle_later_item
from shared.guard.table import AUDIT_PAGE_MAX
from shared.kernel.ids import PAK_ID, PakId
from shared.kernel.money import BYTES_PER_GB, NotADecimal, gb_number, parse_gb
from shared.kernel.traffic import traffic_unit
from shared.metering.live import open_meter, read_leased, read_used
from shared.metering.rules import day_after, day_of
from shared.metering.table import usage_days
from shared.pool.live import publish_revoke_pak
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import Conflict, TransactItem

KEYS_PAGE_MAX: Final = 1000
USAGE_DAYS_MAX: Final = 90
DAY_MS: Final = 86_400_000
MEGABYTE: Final = 1_000_000
EXPIRY_MAX_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""
TOP_UP_TRIES_MAX: Final = 8


Label = Annotated[str, Field(min_length=1, max_length=LABEL_MAX_CHARS, pattern=r"^[^\x00-\x1f\x7f]*$")]
Expiry = Annotated[int, Field(strict=True, ge=0, le=EXPIRY_MAX_MS)]


class CreateBody(BaseModel):
    """`POST /v1/reseller/pool-keys`."""

    model_config = ConfigDict(extra="ignore")
    label: Label
    trafficCapGB: Amount | None
    expiresAt: Expiry | None = None
    qualityTier: Quality = Quality.STANDARD


class ChangeBody(BaseModel):
    """`PATCH`: only what is sent is changed; a null `expiresAt` removes it."""

    model_config = ConfigDict(extra="ignore")
    label: Label | None = None
    enabled: StrictBool | None = None
    trafficCapGB: Amount | None = None
    expiresAt: Expiry | None = None
    qualityTier: Quality | None = None


class TopUpBody(BaseModel):
    """`POST …/topup`."""

    model_config = ConfigDict(extra="ignore")
    addTrafficGB: Amount | None = None
    extendDays: Annotated[int, Field(strict=True, ge=0, le=3650)] | None = None


class Resellers(Desk):
    """Routes' work."""

    def own(self, request: Request, pak_id: str) -> tuple[ApiKey, Pak]:
        """The caller and a key of theirs; anybody else's is not there."""
        key = caller(self.w, request, Scope.RESELL)
        named = PAK_ID.fullmatch(pak_id) is not None
        pak = self.w.dynamo.run(access.get_pak(self.table, PakId(pak_id))) if named else None
        if pak is None or pak.account_id != key.account_id or pak.disabled_reason is DisabledReason.DELETED:
            raise _absent()
        return key, pak

    def create(self, request: Request, body: CreateBody) -> dict[str, Any]:
        """A new key; the only answer but `reveal` that holds its secret."""
        key = caller(self.w, request, Scope.RESELL)
        prepaid = self.prepaid(key)
        cap = self.cap(key, body.trafficCapGB, prepaid)
        now, secret, pak_id = now_ms(), new_pak_secret(), PakId(operation_of(request) or new_id())
        pak = Pak(
            pak_id=pak_id,
            account_id=key.account_id,
            label=body.label,
            secret_hash=self.w.box.hash(secret),
            secret_sealed=self.w.box.seal(secret, f"pak#{pak_id}"),
            cap_bytes=cap,
            used_bytes=0,
            enabled=True,
            disabled_reason=None,
            expires_at_ms=body.expiresAt,
            quality=body.qualityTier,
            socks_allowed=True,
            created_at_ms=now,
            updated_at_ms=now,
            drawn_bytes=cap or 0 if prepaid is not None else 0,
        )
        items = [*access.mint_items(self.table, pak), *move_items(self.table, prepaid, pak.drawn_bytes)]
        conflict = write_of_key(self.w, request, key, pak, "create", items, begins=True)
        if conflict is not None:
            return self.made_before(pak, conflict)
        return self.record(pak) | {"key": secret}

    def cap(self, key: ApiKey, text: str | None, prepaid: Prepaid | None) -> int | None:
        """The bytes of a cap that this account may give, or 400."""
        account = self.w.dynamo.run(access.get_account(self.table, key.account_id))
        if account is None:
            raise ProblemError(401, "API_KEY_INVALID", "the key's account does not exist")
        cap = _bytes(text, "trafficCapGB")
        fault = cap_fault(cap, account.kind)
        if fault is None and cap is None and prepaid is not None:
            fault = "trafficCapGB: a key that draws on a prepaid balance has a cap"
        if fault is not None:
            raise ProblemError(400, "INVALID_FIELD", fault)
        return cap

    def prepaid(self, key: ApiKey) -> Prepaid | None:
        """The balance that the account's caps are drawn from; None for an account on invoice."""
        return self.w.dynamo.run(get_prepaid(self.table, key.account_id))

    def made_before(self, pak: Pak, conflict: Conflict) -> dict[str, Any]:
        """The key that an earlier try of the same operation made, whose response nobody got; 402 for a low balance."""
        if 0 not in conflict.failed:
            raise _insufficient()
        made = self.w.dynamo.run(access.get_pak(self.table, pak.pak_id))
        if made is None or made.account_id != pak.account_id:
            raise ProblemError(503, "TEMPORARILY_UNAVAILABLE", "please retry")
        return self.record(made) | {"key": self.w.box.open(made.secret_sealed, f"pak#{made.pak_id}")}

    def change(self, request: Request, pak_id: str, body: ChangeBody) -> dict[str, Any]:
        """Change what was sent."""
        key, pak = self.own(request, pak_id)
        sent = body.model_fields_set
        fields: dict[str, object] = {}
        if body.label is not None:
            fields["label"] = body.label
        if body.qualityTier is not None:
            fields["quality"] = body.qualityTier.value
        if "expiresAt" in sent:
            fields["expires_at_ms"] = body.expiresAt
        if "trafficCapGB" in sent:
            fields["cap_bytes"] = self.cap(key, body.trafficCapGB, self.prepaid(key))
        if body.enabled is not None:
            fields["enabled"] = body.enabled
            fields["disabled_reason"] = None if body.enabled else DisabledReason.ADMIN.value
        items = self.changes(key, pak, fields) if fields else []
        conflict = write_of_key(self.w, request, key, pak, "update", items)
        if conflict is not None and len(items) == 1 and "drawn_bytes" not in fields:
            raise _absent()
        _settle(conflict)
        return self.tell(pak)

    def changes(self, key: ApiKey, pak: Pak, fields: dict[str, object]) -> list[TransactItem]:
        """A change of a key; what its cap grows or shrinks by moves from or to the balance."""
        cap, prepaid = fields.get("cap_bytes"), self.prepaid(key)
        if not isinstance(cap, int) or prepaid is None:
            return [access.set_item(self.table, pak.pak_id, fields, now_ms())]
        drawn = cap_draw(pak, cap, self.used(pak))
        fields["drawn_bytes"] = pak.drawn_bytes + drawn
        item = access.change_item(self.table, pak, fields, now_ms())
        return [item, *move_items(self.table, prepaid, drawn)]

    def top_up(self, request: Request, pak_id: str, body: TopUpBody) -> dict[str, Any]:
        """More traffic, more days, both in one write; it does not turn a key on."""
        key, pak = self.own(request, pak_id)
        add, days = _bytes(body.addTrafficGB, "addTrafficGB") or 0, body.extendDays or 0
        if not add and not days:
            raise ProblemError(400, "INVALID_FIELD", "addTrafficGB: give addTrafficGB, extendDays or both")
        for _ in range(TOP_UP_TRIES_MAX):
            conflict = self.raised(request, key, pak, add, days)
            changed = self.w.dynamo.run(access.get_pak(self.table, pak.pak_id)) or pak
            if conflict is None:
                return self.tell(changed)
            if 0 not in conflict.failed:
                raise _insufficient()
            if changed.disabled_reason is DisabledReason.DELETED:
                raise _absent()
            pak = changed  # somebody else changed the key in the same moment: go on from there
        raise ProblemError(409, "CHANGED_MEANWHILE", "the key changed in the same moment, please retry")

    def raised(self, request: Request, key: ApiKey, pak: Pak, add: int, days: int) -> Conflict | None:
        """Write a top-up; None also when an earlier try of the same operation wrote it."""
        if add and pak.cap_bytes is None:
            raise ProblemError(400, "INVALID_FIELD", "addTrafficGB: this key has no cap to raise")
        fault = cap_fault((pak.cap_bytes or 0) + add, _ANY_KIND) if add else None
        if fault is not None:
            raise ProblemError(400, "INVALID_FIELD", fault.replace("trafficCapGB", "addTrafficGB"))
        now, operation = now_ms(), operation_of(request)
        expires = max(now, pak.expires_at_ms or 0) + days * DAY_MS if days else None
        if expires is not None and expires > EXPIRY_MAX_MS:
            raise ProblemError(400, "INVALID_FIELD", "extendDays: later than the year 9999")
        prepaid = self.prepaid(key)
        item = access.top_up_item(
            self.table,
            pak.pak_id,
            add,
            expires,
            now,
            reenable=False,
            expiry_was=(pak.expires_at_ms,),
            cap_max_bytes=CAP_MAX_BYTES,
            drawn_bytes=add if prepaid is not None else 0,
        )
        once = [once_item(self.table, operation, now)] if operation else []
        drawn = move_items(self.table, prepaid, add)
        conflict = write_of_key(self.w, request, key, pak, "topup", [item, *drawn, *once])
        done_before = conflict is not None and once and len(drawn) + 1 in conflict.failed
        return None if done_before else conflict

    def regenerate(self, request: Request, pak_id: str) -> dict[str, Any]:
        """Another secret; the old one stops in the same moment."""
        key, pak = self.own(request, pak_id)
        fresh(self.w, request, key)
        secret = new_pak_secret()
        sealed = self.w.box.seal(secret, f"pak#{pak.pak_id}")
        hashed = self.w.box.hash(secret)
        items = access.regenerate_items(self.table, pak, hashed, sealed, now_ms())
        if write_of_key(self.w, request, key, pak, "regenerate", items) is not None:
            raise ProblemError(409, "CHANGED_MEANWHILE", "the key changed in the same moment, please retry")
        return self.tell(pak) | {"key": secret}

    def reveal(self, request: Request, pak_id: str) -> dict[str, Any]:
        """The secret again, on record."""
        key, pak = self.own(request, pak_id)
        fresh(self.w, request, key)
        record_of_key(self.w, request, key, pak, "reveal")
        return self.record(pak) | {"key": self.w.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")}

    def delete(self, request: Request, pak_id: str) -> dict[str, Any]:
        """End a key for good; its row stays, because its last bytes are still to be counted.

        What it did not use returns to the balance when they are, and its live counter is dropped: see
        `shared/access/settling.py`.
        """
        key, pak = self.own(request, pak_id)
        fresh(self.w, request, key)
        now = now_ms()
        fields: dict[str, object] = {"enabled": False, "disabled_reason": DisabledReason.DELETED.value}
        items = [
            access.set_item(self.table, pak.pak_id, fields, now),
            settle_later_item(self.table, pak, now),
        ]
        if write_of_key(self.w, request, key, pak, "delete", items) is not None:
            raise _absent()
        self.tell(pak)
        return {"id": pak.pak_id, "deleted": True}

    def tell(self, pak: Pak) -> dict[str, Any]:
        """Tell the live network of a change that stands, and answer the key as it is now."""
        changed = self.w.dynamo.run(access.get_pak(self.table, pak.pak_id)) or pak
        self.w.redis.run(open_meter(changed.pak_id, changed.used_bytes, changed.cap_bytes))
        self.w.redis.run(publish_revoke_pak(changed.pak_id))
        return self.record(changed)

    def page(self, key: ApiKey, response: Response, limit: int, cursor: str) -> list[dict[str, Any]]:
        """Keys of the account, the newest first, as a bare array; where to go on stands in `X-Next-Cursor`."""
        start = own_cursor(cursor, key.account_id)
        bound = max(1, min(limit, KEYS_PAGE_MAX))
        found = self.w.dynamo.run(access.list_paks(self.table, key.account_id, bound, start))
        if found.next_key is not None:
            response.headers["X-Next-Cursor"] = write_cursor(found.next_key)
        paks = [p for p in found.rows if p.disabled_reason is not DisabledReason.DELETED]
        return [self.record(p) for p in paks]

    def used(self, pak: Pak) -> int:
        """Bytes that a key may have used by now: for money. What is shown comes from the roll-up alone.

        Gateways tell every five seconds what they carried; until then their leases count as carried. Raises
        StoreUnavailable: nothing is given back on a guess.
        """
        counted = max(pak.used_bytes, self.w.redis.run(read_used(pak.pak_id)) or 0)
        return counted + self.w.redis.run(read_leased(pak.pak_id, now_ms()))

    def record(self, pak: Pak) -> dict[str, Any]:
        """A key without its secret."""
        used = pak.used_bytes
        return {
            "id": pak.pak_id,
            "username": pak.account_id,
            "label": pak.label,
            "enabled": pak.enabled,
            "disabledReason": pak.disabled_reason.value if pak.disabled_reason else None,
            "trafficCapGB": None if pak.cap_bytes is None else gb_number(pak.cap_bytes),
            "trafficUsedMB": used / MEGABYTE,
            "trafficUsedGB": gb_number(used),
            "expiresAt": pak.expires_at_ms,
            "isExpired": is_expired(pak, now_ms()),
            "lastUsedAt": pak.last_used_at_ms,
            "createdAt": pak.created_at_ms,
            "updatedAt": pak.updated_at_ms,
            "qualityTier": pak.quality.value,
            "bytesPerGB": BYTES_PER_GB,
        }


def _absent() -> ProblemError:
    return ProblemError(404, "NOT_FOUND", "there is no such key")


def _insufficient() -> ProblemError:
    message = "the prepaid balance does not cover this; buy more traffic first"
    return ProblemError(402, "INSUFFICIENT_BALANCE", message)


def _settle(conflict: Conflict | None) -> None:
    """Nothing, or why a change and its draw on the balance were not written: the change is the first item."""
    if conflict is None:
        return
    if 0 in conflict.failed:
        raise ProblemError(409, "CHANGED_MEANWHILE", "the key changed in the same moment, please retry")
    raise _insufficient()


def operation_of(request: Request) -> str:
    """The id of the idempotent operation that runs, as long as a pak's id; "" without an Idempotency-Key."""
    return str(getattr(request.state, "operation_id", ""))[:24]


_ANY_KIND: Final = AccountKind.RESELLER


def _bytes(value: str | None, name: str) -> int | None:
    """A number of GB as bytes; 400 naming the field."""
    if value is None:
        return None
    try:
        return parse_gb(value)
    except NotADecimal:
        raise ProblemError(400, "INVALID_FIELD", f"{name}: a number of GB with at most nine places") from None


Place = Annotated[str, Query(pattern=r"^[!-~]{0,256}$")]
Sequence = Annotated[int, Query(ge=0, lt=10**12)]
Day = Annotated[str, Query(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of resellers."""
    routes = Routes(prefix="/v1/reseller/pool-keys")
    work = Resellers(wiring)

    routes.post("")(work.create)
    routes.patch("/{pak_id}")(work.change)
    routes.post("/{pak_id}/topup")(work.top_up)
    routes.post("/{pak_id}/regenerate")(work.regenerate)
    routes.post("/{pak_id}/reveal")(work.reveal)
    routes.delete("/{pak_id}")(work.delete)

    @routes.get("")
    def keys(
        request: Request, response: Response, limit: int = KEYS_PAGE_MAX, cursor: str = ""
    ) -> list[dict[str, Any]]:
        return work.page(caller(work.w, request, Scope.RESELL), response, limit, cursor)

    @routes.get("/audit")
    def audit_of_all(
        request: Request, limit: int = AUDIT_PAGE_MAX, before: Place = "", action: str = ""
    ) -> list[dict[str, Any]]:
        return history.of_account(work.w, caller(work.w, request, Scope.RESELL), action, before, limit)

    @routes.get("/{pak_id}")
    def one(request: Request, pak_id: str) -> dict[str, Any]:
        return work.record(work.own(request, pak_id)[1])

    @routes.get("/{pak_id}/usage")
    def usage(request: Request, pak_id: str, since: Day = "", days: int = USAGE_DAYS_MAX) -> dict[str, Any]:
        """Days of traffic, the oldest first; `nextSince` is where a series that is longer goes on."""
        _, pak = work.own(request, pak_id)
        bound = max(1, min(days, USAGE_DAYS_MAX))
        first = since or day_of(now_ms() - (bound - 1) * DAY_MS)
        table = work.w.settings.table("usage")
        page = work.w.dynamo.run(usage_days(table, f"pak#{pak.pak_id}", first, bound))
        days_shown = [{"day": d, "bytesOut": up, "bytesIn": down} for d, up, down in page.rows]
        following = str(page.next_key["sk"]["S"]).removeprefix("day#") if page.next_key else ""
        return {
            "usage": days_shown,
            "nextSince": day_after(following) if following else None,
            "trafficUnit": traffic_unit(),
        }

    @routes.get("/{pak_id}/audit")
    def audit(
        request: Request,
        pak_id: str,
        limit: int = AUDIT_PAGE_MAX,
        before: Sequence | None = None,
        action: str = "",
    ) -> list[dict[str, Any]]:
        return history.of_key(work.w, work.own(request, pak_id)[1], action, before, limit)

    return routes
