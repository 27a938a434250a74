"""Routes of devices and their owners: register, refresh, status, earnings, listing, consent, modems."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from functions.api.audit import concerns
from functions.api.auth import api_key, caller, device_of
from functions.api.wiring import Wiring
from functions.http import ProblemError, source_address
from functions.limits import spend
from shared.access.live import Limit
from shared.access.model import Scope
from shared.access.rules import network_of
from shared.access.table import set_account_consent
from shared.grading.live import enqueue_probe
from shared.grading.model import PROBE_MODE
from shared.grading.rules import PASSES_TO_LIST
from shared.grading.table import get_grade
from shared.kernel.codes import IpType
from shared.kernel.ids import DEVICE_ID, AccountId, Country, DeviceId, EndpointId
from shared.kernel.traffic import traffic_unit
from shared.metering.table import usage_days
from shared.pool.live import read_presence, unlist_endpoint
from shared.runtime.clock import now_ms
from shared.runtime.settings import Stage
from shared.settlement.rules import RateMissing, rate_for
from shared.settlement.service import owed_micro
from shared.supply.model import Consent, Device, Kind, Modem, Origin
from shared.supply.rules import NAME, looks_random, slug
from shared.supply.service import EnrolFault, Enrolled, device_id_for
from shared.supply.table import change, get_device, of_account
from shared.wire.egress import EgressPolicy, EgressVerdict, check_address

DEVICES_PAGE_MAX: Final = 200
EARNINGS_DAYS_MAX: Final = 90
MICRO_PER_USDC: Final = 1_000_000

Text = Annotated[str, Field(max_length=256)]


class Body(BaseModel):
    """Bodies are camelCase outside; unknown fields are ignored, as old clients send many."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)


class ConsentBody(Body):
    """The owner's agreement as an SDK sends it."""

    termsVersion: Text
    method: Text = "sdk"
    acceptedAt: int = 0


class AgentBody(Body):
    """`POST /v1/peer/agents/register`."""

    name: Text
    type: Text = "custom"
    apiKey: Text | None = None
    walletAddress: Text | None = None
    connectionMethod: Text | None = None
    sdkVersion: Text | None = None
    consent: ConsentBody | None = None


class SdkBody(Body):
    """`POST /v1/peer/register`. What the device says of country and carrier is ignored."""

    deviceId: Text
    apiKey: Text
    consent: ConsentBody | None = None


class RefreshBody(Body):
    """A refresh token to be replaced."""

    refreshToken: Text


class ListingBody(Body):
    """The owner's wish."""

    listed: bool


class AcceptBody(Body):
    """Consent of an owner for every device of the account."""

    termsVersion: Text


class ModemBody(Body):
    """`POST /v1/farmer/modems`: where a modem's proxy listens, and its own credentials."""

    name: Text
    host: Text
    port: Annotated[int, Field(ge=1, le=65535)]
    username: Text
    password: Text
    carrier: Text = ""


class Peers:
    """Routes' work."""

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        self._wiring = wiring

    @property
    def w(self) -> Wiring:
        """The container's wiring."""
        return self._wiring()

    def limit(self, request: Request) -> str:
        """The caller's address, unless it registers too much: 429."""
        address = source_address(request)
        limit = Limit("register", self.w.settings.registrations_per_minute, 60)
        spend(request, self.w.redis, [limit], f"ip:{network_of(address)}", now_ms(), closed=True)
        return address

    def register_agent(self, request: Request, body: AgentBody) -> dict[str, Any]:
        """An agent by key or by wallet alone."""
        if not NAME.fullmatch(body.name):
            raise ProblemError(400, "INVALID_FIELD", "name: 1 to 128 letters, digits, spaces and _.:@-")
        address = self.limit(request)
        if body.apiKey:
            account_id, secret = api_key(self.w, body.apiKey).account_id, body.apiKey
        elif body.walletAddress:
            account_id = self.w.enrolment.wallet_account(body.walletAddress)
            secret = f"wallet:{body.walletAddress.lower()}"
        else:
            raise ProblemError(400, "INVALID_FIELD", "apiKey: give an API key or a walletAddress")
        enrolled = self.w.enrolment.register(
            account_id,
            device_id_for(secret, body.name),
            body.name,
            Kind.AGENT,
            address,
            _consent(body.consent),
            body.walletAddress,
        )
        answer = self.enrolled(enrolled)
        concerns(request, f"dev#{answer['deviceId']}", account_id, "api_key" if body.apiKey else "wallet")
        if looks_random(body.name):
            answer["warning"] = "this name looks random: another name at the next start makes another device"
        return answer

    def register_sdk(self, request: Request, body: SdkBody) -> dict[str, Any]:
        """An SDK device under the id that its app sends."""
        if not DEVICE_ID.fullmatch(body.deviceId):
            raise ProblemError(400, "INVALID_FIELD", "deviceId: 1 to 128 letters, digits and _.:-")
        address = self.limit(request)
        account_id = api_key(self.w, body.apiKey).account_id
        device_id = DeviceId(body.deviceId)
        enrolled = self.w.enrolment.register(
            account_id, device_id, body.deviceId, Kind.SDK, address, _consent(body.consent), None
        )
        answer = self.enrolled(enrolled)
        concerns(request, f"dev#{answer['deviceId']}", account_id, "api_key")
        return {"device": {"deviceId": answer["deviceId"]}, **answer}

    def enrolled(self, result: Enrolled | EnrolFault) -> dict[str, Any]:
        """What a registered or refreshed device goes on with."""
        if isinstance(result, EnrolFault):
            status = 409 if result is EnrolFault.NAME_TAKEN else 401
            raise ProblemError(status, result.name, result.value)
        device = result.device
        return {
            "deviceId": device.device_id,
            "jwt": result.token,
            "token": result.token,
            "refreshToken": result.refresh_token,
            "relay": result.relay,
            "relays": list(result.relays),
            "earningsPerGB": self.rate(device) / MICRO_PER_USDC,
            "ipType": device.origin.ip_type.value,
            "country": device.origin.country.upper(),
            "consentRecorded": device.consent is not None,
        }

    def rate(self, device: Device) -> int:
        """What the device earns now, in micro-USDC per GB; 503 while nobody has set rates."""
        try:
            return rate_for(self.w.live.get("rates"), device.origin.ip_type, device.account_id)
        except RateMissing:
            raise ProblemError(503, "RATES_NOT_SET", "rates are not set yet; please retry later") from None

    def status(self, device: Device) -> dict[str, Any]:
        """Whether a device is connected, verified and on sale, and what to do if not."""
        grade = self.w.dynamo.run(get_grade(self.w.settings.table("grades"), device.device_id))
        online = device.kind is Kind.MODEM or self.w.redis.run(read_presence(device.device_id)) is not None
        latest = grade.latest if grade else None
        return {
            "deviceId": device.device_id,
            "name": device.name,
            "online": online,
            "verified": bool(grade and (grade.passes >= PASSES_TO_LIST or grade.listed)),
            "listed": bool(grade and grade.listed),
            "listingReason": grade.reason if grade else "not_probed",
            "listingWanted": device.listing_wanted,
            "consentRecorded": device.consent is not None,
            "speedTier": grade.tier.value if grade else "unknown",
            "ipType": device.origin.ip_type.value,
            "country": device.origin.country.upper(),
            "probe": None
            if latest is None
            else {
                "probeMode": PROBE_MODE,
                "at": latest.at_ms,
                "failureReason": latest.failure.value if latest.failure else None,
                "connectMs": latest.connect_ms,
                "tlsHandshakeMs": latest.tls_handshake_ms,
                "ttfbMs": latest.ttfb_ms,
                "throughputKBps": latest.throughput_kbps,
            },
        }

    def earnings(self, device: Device) -> dict[str, Any]:
        """Bytes of the device by day, and what its owner's account is owed."""
        table = self.w.settings.table
        page = self.w.dynamo.run(
            usage_days(table("usage"), f"dev#{device.device_id}", "2000-01-01", EARNINGS_DAYS_MAX)
        )
        owed = owed_micro(self.w.dynamo, table("ledger"), device.account_id)
        return {
            "deviceId": device.device_id,
            "servedBytes": sum(up + down for _, up, down in page.rows),
            "days": [{"day": day, "bytes": up + down} for day, up, down in page.rows],
            "earningsPerGB": self.rate(device) / MICRO_PER_USDC,
            "trafficUnit": traffic_unit(),
            "accountPendingMicroUSDC": str(owed),
        }

    def set_listing(self, device: Device, listed: bool) -> dict[str, Any]:
        """The owner's wish; a no is carried out at once."""
        table = self.w.settings.table("devices")
        changed = self.w.dynamo.run(change(table, device.device_id, {"listing_wanted": listed})) or device
        if not listed:
            self.w.redis.run(unlist_endpoint(device.pool, EndpointId(device.device_id)))
        return self.status(changed)

    def add_modem(self, request: Request, body: ModemBody) -> dict[str, Any]:
        """A farm's modem; its exit is classified by probing."""
        key = caller(self.w, request, Scope.SUPPLY)
        if not NAME.fullmatch(body.name) or ":" in body.username:
            raise ProblemError(400, "INVALID_FIELD", "name or username: has characters that are not allowed")
        # Nodes will dial this: a farm must not be able to point them into the operator's own network.
        verdict = check_address(body.host, body.port, EgressPolicy())
        if verdict is not EgressVerdict.ALLOWED and self.w.settings.stage is not Stage.LOCAL:
            raise ProblemError(
                400, "INVALID_FIELD", "host: the public IP address that the modem's proxy listens on"
            )

        def seal(device_id: DeviceId) -> Modem:
            text = f"{body.username}:{body.password}"
            return Modem(body.host, body.port, self.w.modem_box.seal(text, f"modem#{device_id}"))

        origin = Origin(Country("zz"), IpType.MOBILE)
        added = self.w.enrolment.add_modem(
            AccountId(key.account_id), body.name, origin, slug(body.carrier), seal
        )
        if isinstance(added, EnrolFault):
            raise ProblemError(409, added.name, added.value)
        self.w.redis.run(enqueue_probe(added.device_id, now_ms()))
        return {
            "deviceId": added.device_id,
            "pool": added.pool.value,
            "earningsPerGB": self.rate(added) / MICRO_PER_USDC,
        }


def _consent(body: ConsentBody | None) -> Consent | None:
    return None if body is None else Consent(body.termsVersion, body.method, body.acceptedAt or now_ms())


def router(wiring: Callable[[], Wiring]) -> APIRouter:
    """All routes of devices and owners."""
    routes = APIRouter()
    peers = Peers(wiring)

    @routes.post("/v1/peer/agents/register")
    def register_agent(request: Request, body: AgentBody) -> dict[str, Any]:
        return peers.register_agent(request, body)

    @routes.post("/v1/peer/register")
    def register_sdk(request: Request, body: SdkBody) -> dict[str, Any]:
        return peers.register_sdk(request, body)

    @routes.post("/v1/peer/agents/{device_id}/refresh")
    @routes.post("/v1/peer/token/{device_id}/refresh")
    def refresh(device_id: str, body: RefreshBody) -> dict[str, Any]:
        return peers.enrolled(peers.w.enrolment.refresh(DeviceId(device_id), body.refreshToken))

    @routes.get("/v1/peer/agents/{device_id}/status")
    @routes.get("/v1/peer/my-devices/{device_id}/verification")
    def status(request: Request, device_id: str) -> dict[str, Any]:
        return peers.status(device_of(peers.w, request, device_id))

    @routes.get("/v1/peer/agents/{device_id}/earnings")
    @routes.get("/v1/peer/earnings/{device_id}")
    def earnings(request: Request, device_id: str) -> dict[str, Any]:
        return peers.earnings(device_of(peers.w, request, device_id))

    @routes.get("/v1/peer/my-devices")
    def my_devices(request: Request, limit: int = DEVICES_PAGE_MAX) -> dict[str, Any]:
        key = caller(peers.w, request, Scope.SUPPLY)
        bound = max(1, min(limit, DEVICES_PAGE_MAX))
        page = peers.w.dynamo.run(of_account(peers.w.settings.table("devices"), key.account_id, bound))
        found = [
            peers.w.dynamo.run(get_device(peers.w.settings.table("devices"), d.device_id)) for d in page.rows
        ]
        return {
            "devices": [peers.status(d) for d in found if d is not None],
            "more": page.next_key is not None,
        }

    @routes.patch("/v1/peer/my-devices/{device_id}/listing")
    def listing(request: Request, device_id: str, body: ListingBody) -> dict[str, Any]:
        return peers.set_listing(device_of(peers.w, request, device_id), body.listed)

    @routes.post("/v1/peer/consent")
    def consent(request: Request, body: AcceptBody) -> dict[str, Any]:
        key = caller(peers.w, request, Scope.SUPPLY)
        table = peers.w.settings.table("access")
        account = peers.w.dynamo.run(set_account_consent(table, key.account_id, body.termsVersion))
        return {"accountId": key.account_id, "termsVersion": account.consent_version if account else None}

    @routes.post("/v1/farmer/modems")
    def modem(request: Request, body: ModemBody) -> dict[str, Any]:
        return peers.add_modem(request, body)

    return routes
