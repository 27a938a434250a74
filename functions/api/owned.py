"""Routes of owners over their devices: lists, listing wishes, preferences, and ending tokens."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from fastapi import Request, Response
from pydantic import StrictBool

from functions.api.audit import run_told
from functions.api.auth import caller, device_of, managed_device
from functions.api.desk import Desk
from functions.api.device_view import DeviceView
from functions.api.enrolling import Body
from functions.api.paging import read_cursor, write_cursor
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, bearer
from shared.access.model import Scope
from shared.grading.live import account_mark, device_mark, mark_changed
from shared.kernel.ids import AccountId, EndpointId
from shared.pool.live import unlist_endpoint
from shared.pool.presence import revoke_account
from shared.runtime.clock import now_ms
from shared.supply import table as devices
from shared.supply.hours import parse_hours, span_of
from shared.supply.model import Device, Owner
from shared.supply.owners import change_owner, get_owner, revoke_owner
from shared.supply.tokens import Claims, verify_either

DEVICES_PAGE_MAX: Final = 200
LISTING_RUN_S: Final = 60


class ListingBody(Body):
    """The owner's wish."""

    listed: StrictBool


class ListAllBody(Body):
    """The owner's wish for every device."""

    listed: StrictBool = True


class HoursBody(Body):
    """When an owner shares: `HH:MM-HH:MM` by the clock of an IANA time zone."""

    hours: str
    timeZone: str


class PreferencesBody(Body):
    """`PATCH /v1/peer/my-preferences`: only what is sent is changed; `schedule: null` is around the clock."""

    autoList: StrictBool | None = None
    schedule: HoursBody | None = None


class Owned(Desk):
    """Routes' work."""

    table_name = "devices"

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        super().__init__(wiring)
        self.view = DeviceView(wiring)

    def account(self, request: Request) -> AccountId:
        """The calling owner."""
        return caller(self.w, request, Scope.SUPPLY).account_id

    def my_devices(self, request: Request, response: Response, limit: int, cursor: str) -> dict[str, Any]:
        """One page of the caller's devices, newest first; `X-Next-Cursor` tells where the next one begins."""
        itself = self._device_itself(request)
        if itself is not None:
            return {"devices": [self.view.status(itself)], "total": 1, "more": False}
        account_id = self.account(request)
        start = read_cursor(cursor) if cursor else None
        if start is not None and start["account_id"] != {"S": account_id}:
            raise ProblemError(400, "INVALID_FIELD", "cursor: send what X-Next-Cursor said")
        bound = max(1, min(limit, DEVICES_PAGE_MAX))
        page = self.w.dynamo.run(devices.of_account(self.table, account_id, bound, start))
        found = [self.w.dynamo.run(devices.get_device(self.table, d.device_id)) for d in page.rows]
        answer: dict[str, Any] = {
            "devices": [self.view.status(d) for d in found if d is not None],
            "total": self.count(account_id),
            "more": page.next_key is not None,
        }
        if page.next_key is not None:
            answer["nextCursor"] = response.headers["X-Next-Cursor"] = write_cursor(page.next_key)
        return answer

    def _device_itself(self, request: Request) -> Device | None:
        """The device whose own token this is: in its owner's list it sees itself alone."""
        token = bearer(request)
        claims = verify_either(token, self.w.settings.jwt_public_key.get_secret_value()) if token else None
        return device_of(self.w, request, claims.device_id) if isinstance(claims, Claims) else None

    def count(self, account_id: AccountId) -> int:
        """How many devices an account has."""
        counts = self.w.dynamo.run(devices.read_counts(self.table, account_id))
        return sum(count for count, _ in counts.values())

    def set_listing(self, request: Request, device: Device, listed: bool) -> dict[str, Any]:
        """The owner's wish; a no is carried out at once."""
        fields = {"listing_wanted": listed, "listing_set_ms": now_ms()}
        write = devices.change(self.table, device.device_id, fields)
        changed = run_told(self.w, request, write) or device
        if not listed:
            self.w.redis.run(unlist_endpoint(device.pool, EndpointId(device.device_id)))
        self.w.redis.run(mark_changed([device_mark(device.device_id)]))
        return self.view.status(changed)

    def list_all(self, request: Request, account_id: AccountId, listed: bool) -> dict[str, Any]:
        """The owner's wish for all devices there are, however many; the next listing run carries it out."""
        fields = {"listing_all": listed, "listing_all_ms": now_ms()}
        run_told(self.w, request, change_owner(self.table, account_id, fields))
        self.w.redis.run(mark_changed([account_mark(account_id)]))
        return {"listed": listed, "devices": self.count(account_id), "effectiveWithinS": LISTING_RUN_S}

    def preferences(self, owner: Owner) -> dict[str, Any]:
        """What an owner decided for all devices."""
        hours = owner.hours
        schedule = {"hours": span_of(hours), "timeZone": hours.zone} if hours else None
        return {"autoList": owner.auto_list, "listAll": owner.listing_all, "schedule": schedule}

    def prefer(self, request: Request, account_id: AccountId, body: PreferencesBody) -> dict[str, Any]:
        """Change what was sent; hours are carried out by the next listing run, and by that of the minute that they name."""
        fields: dict[str, object] = {}
        if body.autoList is not None:
            fields["auto_list"] = body.autoList
        no_hours = "schedule" in body.model_fields_set and body.schedule is None
        if body.schedule is not None:
            try:
                fields["hours"] = asdict(parse_hours(body.schedule.hours, body.schedule.timeZone))
            except ValueError as error:
                raise ProblemError(400, "INVALID_FIELD", f"schedule.{error}") from None
        if not fields and not no_hours:
            raise ProblemError(
                400, "INVALID_FIELD", "autoList: true or false, or schedule: hours and timeZone, or null"
            )
        write = change_owner(self.table, account_id, fields, ("hours",) if no_hours else ())
        owner = run_told(self.w, request, write)
        if "schedule" in body.model_fields_set:
            self.w.redis.run(mark_changed([account_mark(account_id)]))
        return self.preferences(owner)

    def revoke(self, request: Request, device: Device) -> dict[str, Any]:
        """End every token of a device."""
        self.w.enrolment.tell(run_told(self.w, request, devices.revoke(self.table, device.device_id)))
        return {"deviceId": device.device_id, "revoked": True}

    def revoke_all(self, request: Request, account_id: AccountId) -> dict[str, Any]:
        """End every token of every device of an account."""
        owner = run_told(self.w, request, revoke_owner(self.table, account_id, {}))
        for call in revoke_account(account_id, owner.generation):
            self.w.redis.run(call)
        return {"revoked": True, "devices": self.count(account_id)}


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of owners."""
    routes = Routes()
    owned = Owned(wiring)

    @routes.get("/v1/peer/agents/{device_id}/status")
    @routes.get("/v1/peer/my-devices/{device_id}/verification")
    def status(request: Request, device_id: str) -> dict[str, Any]:
        return owned.view.status(device_of(owned.w, request, device_id))

    @routes.get("/v1/peer/my-devices")
    def my_devices(
        request: Request, response: Response, limit: int = DEVICES_PAGE_MAX, cursor: str = ""
    ) -> dict[str, Any]:
        return owned.my_devices(request, response, limit, cursor)

    @routes.patch("/v1/peer/my-devices/{device_id}/listing")
    def listing(request: Request, device_id: str, body: ListingBody) -> dict[str, Any]:
        return owned.set_listing(request, managed_device(owned.w, request, device_id), body.listed)

    @routes.post("/v1/peer/my-devices/list-all")
    def list_all(request: Request, body: ListAllBody | None = None) -> dict[str, Any]:
        return owned.list_all(request, owned.account(request), body is None or body.listed)

    @routes.post("/v1/peer/my-devices/revoke-all")
    def revoke_all(request: Request) -> dict[str, Any]:
        return owned.revoke_all(request, owned.account(request))

    @routes.post("/v1/peer/my-devices/{device_id}/revoke")
    def revoke(request: Request, device_id: str) -> dict[str, Any]:
        return owned.revoke(request, managed_device(owned.w, request, device_id))

    @routes.get("/v1/peer/my-preferences")
    def preferences(request: Request) -> dict[str, Any]:
        account_id = owned.account(request)
        return owned.preferences(owned.w.dynamo.run(get_owner(owned.table, account_id)))

    @routes.patch("/v1/peer/my-preferences")
    def prefer(request: Request, body: PreferencesBody) -> dict[str, Any]:
        return owned.prefer(request, owned.account(request), body)

    return routes
