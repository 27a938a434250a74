"""Reserved devices (the contract, section 8): a device held for one pool access key, under a lease that its username pins.

A private pool is a pool access key of the caller's account; what belongs to another account is not there. Decision 0072.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from functions.api.audit import run_told, told
from functions.api.auth import caller
from functions.api.desk import Desk
from functions.api.resellers import operation_of
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, seconds_up
from shared.access.live import Limit, count_calls
from shared.access.model import DisabledReason, Pak, Quality, Scope
from shared.access.rules import is_expired
from shared.access.table import get_pak
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import PAK_ID, Country, DeviceId, EndpointId, PakId
from shared.pool import lease_table as rows
from shared.pool import leases as rules
from shared.pool.leases import Lease
from shared.pool.leasing import Leasing
from shared.pool.live import are_listed
from shared.pool.model import Failover, Rotation
from shared.pool.presence import read_presence
from shared.pool.rotation import Outcome, RotationState, read_rotation
from shared.pool.username import read_country
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import transact

PAGE_MAX: Final = 50
HOUR_S: Final = 3600
NO_DEVICE_RETRY_S: Final = 60
_PLACE: Final = re.compile(r"[0-9]{13}#l[a-z0-9]{8,12}")
_SOLD_TYPES: Final = frozenset({IpType.MOBILE, IpType.RESIDENTIAL, IpType.DATACENTER})

IdleSeconds = Annotated[int, Field(strict=True, ge=0, le=10**9)]


class LeaseBody(BaseModel):
    """`POST …/leases`. `country` is a code or `any`; `idleTtlSec` is kept within 120 and 43200."""

    model_config = ConfigDict(extra="ignore")
    country: Annotated[str, Field(max_length=64)]
    ipType: IpType | None = None
    carrier: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,64}$")] | None = None
    idleTtlSec: IdleSeconds | None = None
    failover: Failover = Failover.SAME_COUNTRY


class ExtendBody(BaseModel):
    """`POST …/extend`: the idle time begins again, with another length if one is sent."""

    model_config = ConfigDict(extra="ignore")
    idleTtlSec: IdleSeconds | None = None


class ModeBody(BaseModel):
    """`PATCH …/rotation-mode`: `ondemand` (also `manual`, `sticky`), or `auto5`, `auto10`, `auto20`, `auto60`."""

    model_config = ConfigDict(extra="ignore")
    mode: Annotated[str, Field(max_length=32)]


class LeaseDesk(Desk):
    """Routes' work."""

    @property
    def leasing(self) -> Leasing:
        """Rows and holds."""
        return Leasing(self.w.dynamo, self.w.redis, self.table, now_ms)

    def own_pool(self, request: Request, pool_id: str) -> Pak:
        """The key that is the private pool; 404 for anybody else's."""
        by = caller(self.w, request, Scope.RESELL)
        named = PAK_ID.fullmatch(pool_id) is not None
        pak = self.w.dynamo.run(get_pak(self.table, PakId(pool_id))) if named else None
        gone = pak is None or pak.disabled_reason is DisabledReason.DELETED
        if pak is None or gone or pak.account_id != by.account_id:
            raise ProblemError(404, "NOT_FOUND", "there is no such pool")
        return pak

    def own(self, request: Request, lease_id: str, *, released: bool = False) -> Lease:
        """A lease of the caller's account, which stands unless asked otherwise; 404 for anybody else's."""
        by = caller(self.w, request, Scope.RESELL)
        lease = self.leasing.find(lease_id) if rules.LEASE_ID.fullmatch(lease_id) else None
        if lease is None or lease.account_id != by.account_id or (lease.released_at_ms and not released):
            raise _absent()
        return lease

    def setting(self, name: str, default: int) -> int:
        """A bound, from the live setting `leases`."""
        return int(self.w.live.get("leases").get(name, default))

    # reserving

    def reserve(self, request: Request, pool_id: str, body: LeaseBody) -> dict[str, Any]:
        """Hold a free device for a key. A repeat under the same Idempotency-Key answers the same lease."""
        pak = self.own_pool(request, pool_id)
        if not pak.enabled or is_expired(pak, now_ms()):
            raise ProblemError(409, "KEY_NOT_ACTIVE", "the key of this pool is disabled or expired")
        draft, pools = self._draft(request, pak, body)
        leasing = self.leasing
        known = leasing.find(draft.lease_id) if operation_of(request) else None
        if known is not None and known.pak_id == pak.pak_id and not known.released_at_ms:
            told(request)  # an earlier try of the same operation reserved it
            return self.shown(known)
        share_percent = rules.lease_percent_of(self.w.live.get("leases"))
        lease = leasing.hold_new(draft, pools, share_percent)
        if lease is None:
            raise _none_free()
        most = self.setting("per_account", rules.PER_ACCOUNT_DEFAULT)
        try:
            conflict = run_told(self.w, request, transact(rows.create_items(self.table, lease, most)))
        except BaseException:
            leasing.let_go(lease)  # where it was written after all, the job holds it again
            raise
        if conflict is not None:
            leasing.let_go(lease)
            raise ProblemError(409, "TOO_MANY_LEASES", f"at most {most} reserved devices; release one first")
        return self.shown(lease)

    def _draft(self, request: Request, pak: Pak, body: LeaseBody) -> tuple[Lease, tuple[Pool, ...]]:
        """The lease that is asked for, on no device yet, and the pools that it may come from; 400 naming the field."""
        try:
            country: Country | None = read_country(body.country.lower())
        except ValueError:
            raise ProblemError(400, "INVALID_FIELD", "country: a code of two letters, or any") from None
        if body.ipType is not None and body.ipType not in _SOLD_TYPES:
            raise ProblemError(400, "INVALID_FIELD", "ipType: mobile, residential or datacenter")
        pools, ip_type = rules.locked_to(body.ipType, pak.ip_type, modems_only=pak.quality is Quality.SAFE)
        if not pools:
            raise ProblemError(
                400, "INVALID_FIELD", f"ipType: the key of this pool is for {pak.ip_type} only"
            )
        now, idle_s = now_ms(), rules.idle_of(body.idleTtlSec)
        draft = Lease(
            lease_id="l" + (operation_of(request) or new_id())[:12],
            pak_id=pak.pak_id,
            account_id=pak.account_id,
            pool=pools[0],
            country=country,
            ip_type=ip_type,
            carrier=body.carrier or "",
            failover=body.failover,
            idle_s=idle_s,
            endpoint_id=EndpointId(""),
            created_at_ms=now,
            expires_at_ms=now + idle_s * 1000,
        )
        return draft, pools

    # changing

    def extend(self, request: Request, lease_id: str, body: ExtendBody | None) -> dict[str, Any]:
        """The idle time begins again now."""
        lease = self.own(request, lease_id)
        asked = body.idleTtlSec if body else None
        idle_s = lease.idle_s if asked is None else rules.idle_of(asked)
        fields = {"idle_s": idle_s, "expires_at_ms": now_ms() + idle_s * 1000}
        extended = run_told(self.w, request, rows.change(self.table, lease, fields))
        if extended is None:
            raise _absent()
        if self.leasing.hold(extended) is None:
            raise _none_free()  # it had run out, and its device is somebody else's now
        return self.shown(extended)

    def set_mode(self, request: Request, lease_id: str, body: ModeBody) -> dict[str, Any]:
        """Whether the device is asked for another address by itself."""
        lease, mode = self.own(request, lease_id), rules.MODES.get(body.mode.lower())
        if mode is None:
            raise ProblemError(400, "INVALID_FIELD", f"mode: one of {', '.join(rules.MODES)}")
        if mode is not Rotation.ON_DEMAND:
            _check_rotates(lease)
        changed = run_told(self.w, request, rows.change(self.table, lease, {"rotation": mode.value}))
        if changed is None:
            raise _absent()
        return self.shown(changed)

    def rotate(self, request: Request, lease_id: str) -> dict[str, Any]:
        """Ask the device for another address; how that went stands in the lease, when the device has said."""
        lease = self.own(request, lease_id)
        _check_rotates(lease)
        now = now_ms()
        wait_ms = lease.rotated_at_ms + rules.COOLDOWN_MS - now
        if wait_ms > 0:
            raise _too_soon("ROTATION_COOLDOWN", "this device was asked a moment ago", wait_ms)
        if self.w.redis.run(read_presence(DeviceId(lease.endpoint_id))) is None:
            message = "the device of this lease is away; nothing was asked"
            raise ProblemError(409, "DEVICE_AWAY", message, {"Retry-After": str(NO_DEVICE_RETRY_S)})
        budget = Limit("rotate", self.setting("rotations_per_hour", rules.PER_HOUR_DEFAULT), HOUR_S)
        (spent,) = self.w.redis.run(count_calls([budget], f"lease:{lease.lease_id}", now))
        if spent.wait_ms:
            words = f"at most {budget.calls} rotations an hour"
            raise _too_soon("ROTATION_BUDGET_SPENT", words, spent.wait_ms)
        fields = {"rotated_at_ms": now, "rotation_id": new_id()}
        rotated = run_told(self.w, request, rows.change(self.table, lease, fields, unless_rotated=True))
        if rotated is None:
            raise _too_soon(
                "ROTATION_COOLDOWN", "this device was asked in the same moment", rules.COOLDOWN_MS
            )
        self.leasing.ask_rotation(rotated)
        return self.shown(rotated)

    def release(self, request: Request, lease_id: str) -> dict[str, Any]:
        """End a lease: its username fails closed, its device is free for others. A repeat makes sure of that."""
        lease = self.own(request, lease_id, released=True)
        if not lease.released_at_ms:
            run_told(self.w, request, transact(rows.release_items(self.table, lease, now_ms())))
        told(request)
        self.leasing.let_go(lease)
        return {"id": lease.lease_id, "released": True}

    # looking

    def page(self, request: Request, pool_id: str, limit: int, cursor: str) -> dict[str, Any]:
        """Leases of a pool that stand, the newest first."""
        pak = self.own_pool(request, pool_id)
        if cursor and _PLACE.fullmatch(cursor) is None:
            raise ProblemError(400, "INVALID_FIELD", "cursor: send what nextCursor said")
        bound = max(1, min(limit, PAGE_MAX))
        page = self.w.dynamo.run(rows.leases_of(self.table, pak.pak_id, bound, cursor))
        found = [self.leasing.find(place.partition("#")[2]) for place in page.rows]
        shown = [self.shown(lease) for lease in found if lease is not None and not lease.released_at_ms]
        following = page.rows[-1] if page.next_key is not None and page.rows else None
        return {"leases": shown, "count": len(shown), "nextCursor": following}

    def shown(self, lease: Lease) -> dict[str, Any]:
        """A lease for its holder: never an address, and no secret; the password is the key's."""
        settings = self.w.settings
        return {
            "id": lease.lease_id,
            "leaseId": lease.lease_id,
            "poolId": lease.pak_id,
            "status": "active" if self._is_there(lease) else "unavailable",
            "endpointId": lease.endpoint_id,
            "pool": lease.pool.value,
            "country": lease.country.upper() if lease.country else "any",
            "ipType": lease.ip_type.value if lease.ip_type else None,
            "carrier": lease.carrier or None,
            "failover": lease.failover.value,
            "idleTtlSec": lease.idle_s,
            "createdAt": lease.created_at_ms,
            "lastUsedAt": lease.used_at_ms or None,
            "expiresAt": lease.expires_at_ms,
            "rotationMode": lease.rotation.value,
            "rotation": self._rotation(lease),
            "proxy": {
                "host": settings.gateway_host,
                "httpPort": settings.gateway_http_port,
                "socksPort": settings.gateway_socks_port,
                "username": lease.username(),
            },
        }

    def _is_there(self, lease: Lease) -> bool:
        """Whether its device is on sale and, for a peer, connected."""
        (listed,) = self.w.redis.run(are_listed(lease.pool, [lease.endpoint_id]))
        if not listed or lease.pool is Pool.MBL:
            return listed
        return self.w.redis.run(read_presence(DeviceId(lease.endpoint_id))) is not None

    def _rotation(self, lease: Lease) -> dict[str, Any] | None:
        """How the last rotation went; None when none was asked for."""
        if not lease.rotation_id:
            return None
        said = self.w.redis.run(read_rotation(DeviceId(lease.endpoint_id), lease.rotation_id))
        said = said or Outcome(RotationState.UNANSWERED, lease.rotated_at_ms)
        late = now_ms() - lease.rotated_at_ms > rules.ROTATION_MAX_MS
        state = RotationState.UNANSWERED if said.state is RotationState.ASKED and late else said.state
        over = state in {RotationState.DONE, RotationState.REFUSED}
        return {
            "requestId": lease.rotation_id,
            "state": state.value,
            "askedAt": lease.rotated_at_ms,
            "answeredAt": said.at_ms if over else None,
            "error": said.error or None,
            "addressChanged": said.changed,
        }


def _check_rotates(lease: Lease) -> None:
    """409 for a modem: nothing tells it to change its address."""
    if lease.pool is Pool.MBL:
        message = "modems do not change their address on request; reserve a device of ipType residential"
        raise ProblemError(409, "ROTATION_UNSUPPORTED", message)


def _too_soon(code: str, words: str, wait_ms: int) -> ProblemError:
    wait_s = seconds_up(wait_ms)
    return ProblemError(409, code, f"{words}; wait {wait_s} s", {"Retry-After": str(wait_s)})


def _none_free() -> ProblemError:
    message = "no device of that kind is free now; ask again later, or for another country or IP type"
    return ProblemError(409, "NO_DEVICE_FREE", message, {"Retry-After": str(NO_DEVICE_RETRY_S)})


def _absent() -> ProblemError:
    return ProblemError(404, "NOT_FOUND", "there is no such lease")


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of reserved devices."""
    routes = Routes(prefix="/v1/private-pool")
    desk = LeaseDesk(wiring)

    @routes.get("/leases/{lease_id}")
    def one(request: Request, lease_id: str) -> dict[str, Any]:
        """A lease: its device, its end, and how its last rotation went."""
        return desk.shown(desk.own(request, lease_id))

    @routes.post("/leases/{lease_id}/rotate", status_code=202)
    def rotate(request: Request, lease_id: str) -> dict[str, Any]:
        """Ask the device for another address. 409 within 10 s of the last time, beyond the hour's budget, for a modem, and
        while the device is away. Poll `rotation.state` of the lease: asked, done, refused, unanswered (after 90 s)."""
        return desk.rotate(request, lease_id)

    @routes.post("/leases/{lease_id}/extend")
    def extend(request: Request, lease_id: str, body: ExtendBody | None = None) -> dict[str, Any]:
        """Begin the idle time again, with another length if one is sent."""
        return desk.extend(request, lease_id, body)

    @routes.patch("/leases/{lease_id}/rotation-mode")
    def set_mode(request: Request, lease_id: str, body: ModeBody) -> dict[str, Any]:
        """Have the device asked for another address by itself every 5 to 60 minutes, or only on request."""
        return desk.set_mode(request, lease_id, body)

    @routes.delete("/leases/{lease_id}")
    def release(request: Request, lease_id: str) -> dict[str, Any]:
        """Release the device: the lease's username fails closed at once, and open tunnels of it are cut."""
        return desk.release(request, lease_id)

    @routes.post("/{pool_id}/leases")
    def reserve(request: Request, pool_id: str, body: LeaseBody) -> dict[str, Any]:
        """Reserve a device for a pool access key. Traffic costs what it always does; a lease that nothing used for
        `idleTtlSec` is released. 409 when no device is free, or the account has all that it may have."""
        return desk.reserve(request, pool_id, body)

    @routes.get("/{pool_id}/leases")
    def listed(request: Request, pool_id: str, limit: int = PAGE_MAX, cursor: str = "") -> dict[str, Any]:
        """Reserved devices of a pool access key, the newest first."""
        return desk.page(request, pool_id, limit, cursor)

    return routes
