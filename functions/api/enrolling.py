"""Routes by which devices enrol: both register calls, refresh, and the modems of farms."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from functions.api.audit import concerns, event_of, told
from functions.api.auth import api_key, caller
from functions.api.desk import Desk
from functions.api.device_view import MICRO_PER_USDC, DeviceView
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, source_address
from functions.limits import spend
from shared.access.live import Limit
from shared.access.model import Scope
from shared.access.rules import network_of
from shared.grading.live import ask_probe
from shared.guard.model import AuditEvent
from shared.kernel.codes import IpType
from shared.kernel.ids import DEVICE_ID, UNKNOWN_COUNTRY, AccountId, DeviceId
from shared.kernel.traffic import traffic_unit
from shared.runtime.clock import now_ms
from shared.runtime.settings import Stage
from shared.supply.model import Consent, Kind, Modem, Origin
from shared.supply.rules import NAME, TERMS, WALLET, looks_random, slug
from shared.supply.rules import network_of as site_of
from shared.supply.service import Arrival, EnrolFault, Enrolled, device_id_for, wallet_key
from shared.wire.egress import EgressPolicy, EgressVerdict, check_address

REFRESHES_PER_SOURCE = Limit("refresh_source", 1_200, 60)
WALLETS_PER_SOURCE = Limit("wallet_source", 30, 3600)
"""New wallet accounts, and new devices in all of them: nobody vouches for either."""
SITE_FACTOR = 10
"""A site has 65,536 subscribers' networks of IPv6; its limit is this many times a subscriber's."""
RESERVED_PREFIXES = ("agent_", "modem_")
_STATUS = {
    EnrolFault.NAME_TAKEN: 409,
    EnrolFault.DEVICE_LIMIT: 403,
    EnrolFault.UNPROVEN_LIMIT: 403,
    EnrolFault.CONSENT_WITHDRAWN: 403,
    EnrolFault.REFRESH_INVALID: 401,
    EnrolFault.REFRESH_REUSED: 401,
}

Text = Annotated[str, Field(max_length=256)]


def _wallet(text: str) -> str:
    if not WALLET.fullmatch(text):
        raise ValueError("an EVM address (0x and 40 hex digits) or a Solana address")
    return text


WalletText = Annotated[str, Field(max_length=64), AfterValidator(_wallet)]


class Body(BaseModel):
    """Bodies are camelCase outside; unknown fields are ignored, as old clients send many."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)


class ConsentBody(Body):
    """The owner's agreement as an SDK sends it. `acceptedAt` is when the device says that its owner was asked."""

    termsVersion: Annotated[str, Field(min_length=1, max_length=64)]
    method: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "sdk"
    acceptedAt: Annotated[int, Field(ge=0, le=10**14)] = 0


class AgentBody(Body):
    """`POST /v1/peer/agents/register`. What the device says of its country is kept beside what its address says.

    `ownerTokens`: what its relays see shall decide nothing; it refreshes with `purpose: owner` when its owner decides.
    """

    name: Text
    type: Text = "custom"
    apiKey: Text | None = None
    walletAddress: WalletText | None = None
    connectionMethod: Text | None = None
    sdkVersion: Text | None = None
    country: Text = ""
    ownerTokens: StrictBool = False
    consent: ConsentBody | None = None


class SdkBody(Body):
    """`POST /v1/peer/register`. What the device says of country and carrier decides nothing."""

    deviceId: Text
    apiKey: Text
    country: Text = ""
    consent: ConsentBody | None = None


class RefreshBody(Body):
    """A refresh token to be replaced; the token that comes with the next one is for relays, or for the owner's acts."""

    refreshToken: Text
    purpose: Literal["relay", "owner"] = "relay"


class ModemBody(Body):
    """`POST /v1/farmer/modems`: where a modem's proxy listens, and its own credentials."""

    name: Text
    host: Text
    port: Annotated[int, Field(ge=1, le=65535)]
    username: Text
    password: Text
    carrier: Text = ""


class Enrolling(Desk):
    """Routes' work."""

    table_name = "devices"

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        super().__init__(wiring)
        self._view = DeviceView(wiring)

    def _limited(self, request: Request, limit: Limit, who: str) -> None:
        """Count a call, or 429."""
        spend(request, self.w.redis, [limit], who, now_ms(), closed=True)

    def _source(self, request: Request) -> str:
        """The caller's address, unless it registers too much."""
        address = source_address(request)
        most = self.w.settings.registrations_per_minute
        self._limited(request, Limit("register_source", most, 60), f"ip:{network_of(address)}")
        if ":" in address:
            self._limited(request, Limit("register_site", most * SITE_FACTOR, 60), f"ip:{site_of(address)}")
        return address

    def _of_account(self, request: Request, account_id: AccountId) -> AccountId:
        limit = Limit("register_account", self.w.settings.registrations_per_key_per_minute, 60)
        self._limited(request, limit, account_id)
        return account_id

    def register_agent(self, request: Request, body: AgentBody) -> dict[str, Any]:
        """An agent by key or by wallet alone."""
        if not NAME.fullmatch(body.name):
            raise ProblemError(400, "INVALID_FIELD", "name: 1 to 128 letters, digits, spaces and _.:@-")
        consent = self._consent(body.consent)
        if not body.apiKey and not body.walletAddress:
            raise ProblemError(400, "INVALID_FIELD", "apiKey: give an API key or a walletAddress")
        address = self._source(request)
        if body.apiKey:
            account_id, secret = self._supplier(body.apiKey), body.apiKey
        else:
            wallet = body.walletAddress or ""
            account_id, is_new = self.w.enrolment.wallet_account(wallet)
            if is_new or not self.w.enrolment.knows(account_id, body.name):
                self._limited(request, WALLETS_PER_SOURCE, f"ip:{network_of(address)}")
            secret = f"wallet:{wallet_key(wallet)}"
        arrival = Arrival(
            account_id=self._of_account(request, account_id),
            device_id=device_id_for(secret, body.name),
            name=body.name,
            kind=Kind.AGENT,
            address=address,
            proven=bool(body.apiKey),
            apart=body.ownerTokens,
            attempt=request.headers.get("idempotency-key", ""),
            event=self._event(request, account_id),
            consent=consent,
            claimed_consent_ms=body.consent.acceptedAt if body.consent else 0,
            wallet=body.walletAddress,
            claimed_country=body.country,
        )
        answer = self._registered(request, arrival)
        if looks_random(body.name):
            answer["warning"] = "this name looks random: another name at the next start makes another device"
        return answer

    def register_sdk(self, request: Request, body: SdkBody) -> dict[str, Any]:
        """An SDK device under the id that its app sends."""
        if not DEVICE_ID.fullmatch(body.deviceId) or body.deviceId.startswith(RESERVED_PREFIXES):
            message = "deviceId: 1 to 128 letters, digits and _.:-, not beginning with agent_ or modem_"
            raise ProblemError(400, "INVALID_FIELD", message)
        consent = self._consent(body.consent)
        address = self._source(request)
        account_id = self._of_account(request, self._supplier(body.apiKey))
        arrival = Arrival(
            account_id=account_id,
            device_id=DeviceId(body.deviceId),
            name=body.deviceId,
            kind=Kind.SDK,
            address=address,
            proven=True,
            event=self._event(request, account_id),
            consent=consent,
            claimed_consent_ms=body.consent.acceptedAt if body.consent else 0,
            claimed_country=body.country,
        )
        answer = self._registered(request, arrival)
        return {"device": {"deviceId": answer["deviceId"]}, **answer}

    def _event(self, request: Request, account_id: AccountId) -> AuditEvent:
        """What a registration leaves; which device it concerns is found out by it."""
        concerns(request, "", account_id, "registration")
        return event_of(request)

    def _registered(self, request: Request, arrival: Arrival) -> dict[str, Any]:
        answer = self.enrolled(self.w.enrolment.register(arrival))
        told(request)
        return answer

    def _supplier(self, text: str) -> AccountId:
        """The account of an API key that may enrol devices, or 401 or 403."""
        key = api_key(self.w, text)
        if Scope.SUPPLY not in key.scopes:
            raise ProblemError(403, "SCOPE_MISSING", f"this API key lacks the scope {Scope.SUPPLY.value}")
        return key.account_id

    def _consent(self, body: ConsentBody | None) -> Consent | None:
        """A receipt for terms that hold, at our own time; 400 for others."""
        if body is None:
            return None
        terms = self.w.live.get("terms") or TERMS
        if body.termsVersion not in terms["accepted"]:
            message = f"consent.termsVersion: the current terms are {terms['current']}"
            raise ProblemError(400, "INVALID_FIELD", message)
        return Consent(body.termsVersion, body.method, now_ms())

    def refresh(self, request: Request, device_id: str, body: RefreshBody) -> dict[str, Any]:
        """The next tokens of a device."""
        address = source_address(request)
        self._limited(request, REFRESHES_PER_SOURCE, f"ip:{network_of(address)}")
        for_owner = body.purpose == "owner"
        ident = DeviceId(device_id)
        return self.enrolled(self.w.enrolment.refresh(ident, body.refreshToken, address, for_owner=for_owner))

    def enrolled(self, result: Enrolled | EnrolFault) -> dict[str, Any]:
        """What a registered or refreshed device goes on with."""
        if isinstance(result, EnrolFault):
            raise ProblemError(_STATUS[result], result.name, result.value)
        device = result.device
        return {
            "deviceId": device.device_id,
            "jwt": result.token,
            "token": result.token,
            "refreshToken": result.refresh_token,
            "relay": result.relay,
            "relays": list(result.relays),
            "earningsPerGB": self._view.rate(device, device.origin.ip_type) / MICRO_PER_USDC,
            "trafficUnit": traffic_unit(),
            "ipType": device.origin.ip_type.value,
            "country": device.origin.country.upper(),
            "consentRecorded": self._view.consented(device, result.owner),
        }

    def add_modem(self, request: Request, body: ModemBody) -> dict[str, Any]:
        """A farm's modem; its exit is classified, and paid, by what probes see of it."""
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

        unseen = Origin(UNKNOWN_COUNTRY, IpType.UNKNOWN)
        added = self.w.enrolment.add_modem(
            key.account_id, body.name, unseen, slug(body.carrier), seal, event_of(request)
        )
        if isinstance(added, EnrolFault):
            raise ProblemError(_STATUS[added], added.name, added.value)
        told(request)
        self.w.redis.run(ask_probe(added.device_id))
        ip_type = self._view.ip_type(added)
        return {
            "deviceId": added.device_id,
            "pool": added.pool.value,
            "ipType": ip_type.value,
            "earningsPerGB": self._view.rate(added, ip_type) / MICRO_PER_USDC,
            "trafficUnit": traffic_unit(),
        }


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of enrolment."""
    routes = Routes()
    enrolling = Enrolling(wiring)

    @routes.post("/v1/peer/agents/register")
    def register_agent(request: Request, body: AgentBody) -> dict[str, Any]:
        return enrolling.register_agent(request, body)

    @routes.post("/v1/peer/register")
    def register_sdk(request: Request, body: SdkBody) -> dict[str, Any]:
        return enrolling.register_sdk(request, body)

    @routes.post("/v1/peer/agents/{device_id}/refresh")
    @routes.post("/v1/peer/token/{device_id}/refresh")
    def refresh(request: Request, device_id: str, body: RefreshBody) -> dict[str, Any]:
        return enrolling.refresh(request, device_id, body)

    @routes.post("/v1/farmer/modems")
    def modem(request: Request, body: ModemBody) -> dict[str, Any]:
        return enrolling.add_modem(request, body)

    return routes
