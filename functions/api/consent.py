"""Routes of consent: an owner accepts for all devices or for one, withdraws, and anybody learns what a device id is."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import Request

from functions.api.audit import run_told
from functions.api.auth import by_device, caller, device_of, managed_device
from functions.api.desk import Desk
from functions.api.enrolling import Body, ConsentBody
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, source_network
from functions.limits import spend
from shared.access.live import Limit
from shared.access.model import ApiKey, Scope
from shared.grading.live import account_mark, device_mark, mark_changed
from shared.kernel.ids import DEVICE_ID, DeviceId, EndpointId
from shared.pool.live import unlist_endpoint
from shared.pool.presence import revoke_account
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import DynamoRequest
from shared.supply import owners
from shared.supply import table as devices
from shared.supply.model import Device, OwnerConsent, Receipt
from shared.supply.rules import TERMS, has_consent

T = TypeVar("T")
LOOKUPS: Final = Limit("device_lookup", 30, 60)
RECEIPTS_TOLD: Final = 50
WHAT_IT_IS: Final = (
    "A device id names one device that shares its internet connection through psx. It is not a password: whoever knows it "
    "can read this page and nothing more."
)


class AcceptBody(Body):
    """Consent of an owner for every device of the account."""

    termsVersion: str


class Consents(Desk):
    """Routes' work."""

    table_name = "devices"

    @property
    def terms(self) -> Any:
        """The terms that hold."""
        return self.w.live.get("terms") or TERMS

    def _checked(self, version: str) -> str:
        if version not in self.terms["accepted"]:
            message = f"termsVersion: the current terms are {self.terms['current']}"
            raise ProblemError(400, "INVALID_FIELD", message)
        return version

    def _write(self, request: Request, write: DynamoRequest[T], receipt: Receipt) -> T:
        """An act of consent or its end, with its receipt and its event."""
        return run_told(self.w, request, write, owners.receipt_item(self.table, receipt, new_id()))

    def accept_all(self, request: Request, key: ApiKey, version: str) -> dict[str, Any]:
        """An owner accepts once for every device, for clients that know nothing of consent. Withdrawn ones stay so."""
        counts = self.w.dynamo.run(devices.read_counts(self.table, key.account_id))
        total = sum(count for count, _ in counts.values())
        given = OwnerConsent(self._checked(version), now_ms(), who(key), total)
        subject, row = f"acct#{key.account_id}", {"consent": owners.owner_consent_row(given)}
        receipt = Receipt(subject, "accepted", version, "owner", who(key), given.accepted_at_ms, 0, total)
        self._write(request, owners.change_owner(self.table, key.account_id, row), receipt)
        self.w.redis.run(mark_changed([account_mark(key.account_id)]))
        return self.of_account(key)

    def of_account(self, key: ApiKey) -> dict[str, Any]:
        """What the owner agreed to, and every act of it."""
        owner = self.w.dynamo.run(owners.get_owner(self.table, key.account_id))
        given = owner.consent
        page = self.w.dynamo.run(owners.receipts(self.table, f"acct#{key.account_id}", RECEIPTS_TOLD))
        return {
            "accountId": key.account_id,
            "termsVersion": given.terms_version if given else None,
            "acceptedAt": given.accepted_at_ms if given else None,
            "acceptedBy": given.accepted_by if given else None,
            "devices": given.devices if given else None,
            "withdrawnAt": owner.withdrawn_at_ms or None,
            "currentTerms": self.terms["current"],
            "receipts": [_told(receipt) for receipt in page.rows],
        }

    def withdraw_all(self, request: Request, key: ApiKey) -> dict[str, Any]:
        """An owner ends it for all devices there are: their tunnels end now, and none is listed until they agree again."""
        now = now_ms()
        counts = self.w.dynamo.run(devices.read_counts(self.table, key.account_id))
        total = sum(count for count, _ in counts.values())
        receipt = Receipt(f"acct#{key.account_id}", "withdrawn", "", "owner", who(key), now, 0, total)
        write = owners.revoke_owner(self.table, key.account_id, {"withdrawn_ms": now}, ("consent",))
        owner = self._write(request, write, receipt)
        for call in revoke_account(key.account_id, owner.generation):
            self.w.redis.run(call)
        self.w.redis.run(mark_changed([account_mark(key.account_id)]))
        return self.of_account(key)

    def accept(self, request: Request, device: Device, body: ConsentBody) -> dict[str, Any]:
        """Agreement for one device, also after it was withdrawn."""
        now, version = now_ms(), self._checked(body.termsVersion)
        held = device.consent
        if held is not None and held.terms_version == version and device.withdrawn_at_ms is None:
            owner = self.w.dynamo.run(owners.get_owner(self.table, device.account_id))
            if has_consent(device, owner, self.terms):
                return self.of_device(device)  # said before: no second receipt
        receipt = Receipt(
            subject=f"dev#{device.device_id}",
            action="accepted",
            terms_version=version,
            method=body.method,
            by=self.by(request, device),
            at_ms=now,
            claimed_at_ms=body.acceptedAt,
        )
        fields = {"consent": {"version": version, "method": body.method, "at_ms": now}}
        write = devices.change(self.table, device.device_id, fields, ("withdrawn_ms",))
        changed = self._write(request, write, receipt)
        self.w.redis.run(mark_changed([device_mark(device.device_id)]))
        return self.of_device(changed or device)

    def withdraw(self, request: Request, device: Device, by: str, method: str = "api") -> dict[str, Any]:
        """The end of agreement for one device: off sale and every tunnel closed now."""
        now = now_ms()
        receipt = Receipt(f"dev#{device.device_id}", "withdrawn", "", method, by, now)
        write = devices.revoke(self.table, device.device_id, {"withdrawn_ms": now})
        changed = self._write(request, write, receipt)
        self.w.redis.run(unlist_endpoint(device.pool, EndpointId(device.device_id)))
        self.w.redis.run(mark_changed([device_mark(device.device_id)]))
        self.w.enrolment.tell(changed)
        return self.of_device(changed or device)

    def by(self, request: Request, device: Device) -> str:
        """Who acts, as receipts name them."""
        if by_device(self.w, request):
            return f"device {device.device_id}"
        return who(caller(self.w, request, Scope.SUPPLY))

    def of_device(self, device: Device) -> dict[str, Any]:
        """What was agreed to for a device, and every act of it."""
        owner = self.w.dynamo.run(owners.get_owner(self.table, device.account_id))
        page = self.w.dynamo.run(owners.receipts(self.table, f"dev#{device.device_id}", RECEIPTS_TOLD))
        own = device.consent
        return {
            "deviceId": device.device_id,
            "consentRecorded": has_consent(device, owner, self.terms),
            "termsVersion": own.terms_version if own else None,
            "acceptedAt": own.accepted_at_ms if own else None,
            "withdrawnAt": device.withdrawn_at_ms,
            "currentTerms": self.terms["current"],
            "receipts": [_told(receipt) for receipt in page.rows],
        }

    def about(self, request: Request, device_id: str) -> dict[str, Any]:
        """What anybody may know of a device id: that it is one, since when, and how its owner ends it."""
        who = f"ip:{source_network(request)}"
        spend(request, self.w.redis, [LOOKUPS], who, now_ms(), closed=False)
        known = DEVICE_ID.fullmatch(device_id) is not None
        device = self.w.dynamo.run(devices.get_device(self.table, DeviceId(device_id))) if known else None
        if device is None:
            return {"deviceId": device_id[:128], "known": False, "whatItIs": WHAT_IT_IS, **self._how("{id}")}
        owner = self.w.dynamo.run(owners.get_owner(self.table, device.account_id))
        return {
            "deviceId": device.device_id,
            "known": True,
            "whatItIs": WHAT_IT_IS,
            "kind": device.kind.value,
            "registeredAt": device.created_at_ms,
            "consent": {
                "recorded": has_consent(device, owner, self.terms),
                "termsVersion": device.consent.terms_version if device.consent else None,
                "withdrawnAt": device.withdrawn_at_ms,
            },
            **self._how(device.device_id),
        }

    def _how(self, device_id: str) -> dict[str, Any]:
        api = self.w.settings.api_base_url
        return {
            "howToWithdraw": [
                "Stop the app or the psx-peer process on the device: its connections end at once.",
                "Withdraw in the app or by `psx-peer -withdraw`, which call "
                f"DELETE {api}/v1/peer/agents/{device_id}/consent with the device's own token.",
                "Whoever holds the account's API key calls "
                f"DELETE {api}/v1/peer/my-devices/{device_id}/consent with X-API-Key, "
                f"or DELETE {api}/v1/peer/consent for every device of the account.",
            ],
            "effect": "The device goes off sale and its open connections end within seconds; "
            "it serves nobody until its owner agrees again.",
        }


def who(key: ApiKey) -> str:
    """Whose key it is, as receipts name them."""
    return key.person or f"key {key.key_id}"


def _told(receipt: Receipt) -> dict[str, Any]:
    return {
        "action": receipt.action,
        "termsVersion": receipt.terms_version or None,
        "method": receipt.method,
        "by": receipt.by,
        "at": receipt.at_ms,
        "claimedAt": receipt.claimed_at_ms or None,
        "devices": receipt.devices,
    }


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of consent."""
    routes = Routes()
    consents = Consents(wiring)

    @routes.post("/v1/peer/consent")
    def accept_all(request: Request, body: AcceptBody) -> dict[str, Any]:
        return consents.accept_all(request, caller(consents.w, request, Scope.SUPPLY), body.termsVersion)

    @routes.get("/v1/peer/consent")
    def read_all(request: Request) -> dict[str, Any]:
        return consents.of_account(caller(consents.w, request, Scope.SUPPLY))

    @routes.delete("/v1/peer/consent")
    def withdraw_all(request: Request) -> dict[str, Any]:
        return consents.withdraw_all(request, caller(consents.w, request, Scope.SUPPLY))

    @routes.get("/v1/peer/agents/{device_id}/consent")
    @routes.get("/v1/peer/my-devices/{device_id}/consent")
    def read(request: Request, device_id: str) -> dict[str, Any]:
        return consents.of_device(device_of(consents.w, request, device_id))

    @routes.post("/v1/peer/agents/{device_id}/consent")
    @routes.post("/v1/peer/my-devices/{device_id}/consent")
    def accept(request: Request, device_id: str, body: ConsentBody) -> dict[str, Any]:
        return consents.accept(request, managed_device(consents.w, request, device_id), body)

    @routes.delete("/v1/peer/agents/{device_id}/consent")
    @routes.delete("/v1/peer/my-devices/{device_id}/consent")
    def withdraw(request: Request, device_id: str) -> dict[str, Any]:
        device = managed_device(consents.w, request, device_id)
        return consents.withdraw(request, device, consents.by(request, device))

    @routes.get("/v1/peer/devices/{device_id}")
    def about(request: Request, device_id: str) -> dict[str, Any]:
        return consents.about(request, device_id)

    return routes
