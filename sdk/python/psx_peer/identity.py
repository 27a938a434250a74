"""A device's identity: registered once, refreshed after, kept in a file that only its owner can read.

All sockets of a device share one identity; however many of them are told that it is no longer valid, it is renewed once.
"""

import asyncio
import contextlib
import hashlib
import http.client
import json
import logging
import secrets
import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from psx_peer import __version__
from psx_peer.options import Options
from psx_peer.state import read_state, write_state

REQUEST_TIMEOUT_S: Final = 15
ANSWER_MAX_BYTES: Final = 1024 * 1024
ATTEMPT_BYTES: Final = 16

log = logging.getLogger("psx_peer")


class ApiRefused(Exception):
    """The API answered with an error; `status` says which."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.code = code

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status >= 500 or self.status == 429 or self.code == "IDEMPOTENCY_IN_PROGRESS"


class ConsentWithdrawn(ApiRefused):
    """The owner took their agreement back: nothing is shared, and no SDK agrees in their place."""


@dataclass(frozen=True)
class Identity:
    """Who this device is, and where it goes."""

    device_id: str
    token: str
    refresh_token: str
    relay: str
    relays: tuple[str, ...]
    earnings_per_gb: float


def tls_context(options: Options) -> ssl.SSLContext:
    """Verifying TLS, with the system's or the given certificates."""
    return ssl.create_default_context(cafile=str(options.ca_file) if options.ca_file else None)


def call_api(
    options: Options,
    path: str,
    body: dict[str, Any],
    credential: dict[str, str] | None = None,
    method: str = "POST",
) -> dict[str, Any]:
    """One JSON call, with a header for who calls. Raises ApiRefused, OSError or http.client.HTTPException. Blocks."""
    url = urlsplit(options.api)
    source = (options.bind, 0) if options.bind else None
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(
            url.netloc, timeout=REQUEST_TIMEOUT_S, source_address=source, context=tls_context(options)
        )
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=REQUEST_TIMEOUT_S, source_address=source)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", **(credential or {})}
        connection.request(method, url.path + path, json.dumps(body), headers)
        answer = connection.getresponse()
        raw = answer.read(ANSWER_MAX_BYTES)
    try:
        parsed = json.loads(raw)
    except ValueError:
        parsed = {}
    if answer.status >= 400 or not isinstance(parsed, dict):
        told = parsed if isinstance(parsed, dict) else {}
        code = str(told.get("code", ""))
        kind = ConsentWithdrawn if code == "CONSENT_WITHDRAWN" else ApiRefused
        raise kind(answer.status, str(told.get("message", answer.reason)), code)
    return parsed


class IdentityKeeper:
    """Gives the current identity and renews it once for everybody who finds it stale."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = asyncio.Lock()
        self._current: Identity | None = None
        self._over: ApiRefused | None = None
        self._attempt = ""

    async def get(self) -> Identity:
        """The identity, registering when there is none yet."""
        async with self._lock:
            if self._current is None:
                self._current = await asyncio.to_thread(self._once, self._saved())
            return self._current

    async def renew(self, stale: Identity) -> Identity:
        """Another identity than the stale one; whoever comes second gets what the first one fetched."""
        async with self._lock:
            if self._current is None or self._current.token == stale.token:
                saved = {"deviceId": stale.device_id, "refreshToken": stale.refresh_token}
                self._current = await asyncio.to_thread(self._once, saved)
            return self._current

    def _once(self, saved: dict[str, str]) -> Identity:
        """`_obtain`, unless the API has said its last word: no other socket asks again."""
        if self._over is not None:
            raise self._over
        try:
            return self._obtain(saved)
        except ApiRefused as refusal:
            if not refusal.passes:
                self._over, self._attempt = refusal, ""
                self._keep_attempt("")
            raise

    def _saved(self) -> dict[str, str]:
        """What an earlier start of this same device kept."""
        state = read_state(self._options.state_file) if self._options.keep_state else {}
        if state.get("name", self._options.name) != self._options.name:
            return {}
        return {name: value for name, value in state.items() if isinstance(value, str)}

    def _obtain(self, saved: dict[str, str]) -> Identity:
        try:
            if saved.get("deviceId") and saved.get("refreshToken"):
                try:
                    return self._refresh(saved)
                except ApiRefused as refusal:
                    if refusal.passes or isinstance(refusal, ConsentWithdrawn):
                        raise
            self._agree_again(saved)
            return self._register()
        except ConsentWithdrawn:
            self._forget_agreement(saved.get("deviceId", ""))
            raise

    def _agree_again(self, saved: dict[str, str]) -> None:
        """Tell the API when a person agreed after a withdrawal: what is sent along with a registration does not count."""
        options, device_id = self._options, saved.get("withdrawn")
        if device_id and options.api_key and options.consent.method != "flag":
            path = f"/v1/peer/my-devices/{device_id}/consent"
            call_api(options, path, options.consent.as_json(), {"X-API-Key": options.api_key})

    def withdraw(self) -> None:
        """Withdraw the owner's agreement for this device, by the key or by its own token.

        Raises as `call_api`, and KeyError where no device was registered.
        """
        saved, options = self._saved(), self._options
        device_id = saved["deviceId"]
        if options.api_key:
            credential = {"X-API-Key": options.api_key}
            path = f"/v1/peer/my-devices/{device_id}/consent"
        else:
            credential = {"Authorization": f"Bearer {self._refresh(saved, purpose='owner').token}"}
            path = f"/v1/peer/agents/{device_id}/consent"
        call_api(options, path, {}, credential, "DELETE")
        self._forget_agreement(device_id)

    def _forget_agreement(self, device_id: str) -> None:
        """The next start asks again."""
        if self._options.keep_state:
            kept = read_state(self._options.state_file)
            withdrawn = device_id or str(kept.get("withdrawn", ""))
            write_state(self._options.state_file, {"name": self._options.name, "withdrawn": withdrawn})

    def _refresh(self, saved: dict[str, str], **purpose: str) -> Identity:
        device_id = saved["deviceId"]
        body = {"refreshToken": saved["refreshToken"], **purpose}
        answer = call_api(self._options, f"/v1/peer/agents/{device_id}/refresh", body)
        return self._keep(device_id, answer, saved["refreshToken"])

    def _register(self) -> Identity:
        options = self._options
        body: dict[str, Any] = {
            "name": options.name,
            "type": "python",
            "connectionMethod": "relay",
            "sdkVersion": f"python-{__version__}",
            "ownerTokens": True,
            "consent": options.consent.as_json(),
        }
        if options.api_key:
            body["apiKey"] = options.api_key
        if options.wallet:
            body["walletAddress"] = options.wallet
        once = {"Idempotency-Key": self._attempt_key(body)}
        answer = call_api(options, "/v1/peer/agents/register", body, once)
        return self._keep(str(answer["deviceId"]), answer, str(answer["refreshToken"]))

    def _attempt_key(self, body: dict[str, Any]) -> str:
        """What names this registration until it is answered, also over a restart: whoever lost the answer gets it again.

        A device without an API key is known by it as the one that began.
        """
        self._attempt = self._attempt or self._saved().get("attempt") or secrets.token_hex(ATTEMPT_BYTES)
        self._keep_attempt(self._attempt)
        said = f"{self._attempt}\n{json.dumps(body, sort_keys=True)}"
        return hashlib.sha256(said.encode()).hexdigest()

    def _keep_attempt(self, attempt: str) -> None:
        saved, options = self._saved(), self._options
        if options.keep_state and saved.get("attempt", "") != attempt:
            kept = {name: value for name, value in saved.items() if name != "attempt"}
            more = {"attempt": attempt} if attempt else {}
            consent = options.consent.as_json()
            write_state(options.state_file, {**kept, "name": options.name, "consent": consent, **more})

    def _keep(self, device_id: str, answer: dict[str, Any], before: str) -> Identity:
        relay = self._options.relay or str(answer["relay"])
        identity = Identity(
            device_id=device_id,
            token=str(answer["token"]),
            refresh_token=str(answer.get("refreshToken") or before),
            relay=relay,
            relays=tuple(str(r) for r in answer.get("relays", ())),
            earnings_per_gb=float(answer.get("earningsPerGB", 0)),
        )
        self._attempt = ""
        if self._options.keep_state:
            write_state(
                self._options.state_file,
                {
                    "name": self._options.name,
                    "deviceId": identity.device_id,
                    "refreshToken": identity.refresh_token,
                    "consent": self._options.consent.as_json(),
                },
            )
        log.info(
            "[REGISTERED] device=%s relay=%s sockets=%d usdcPerGB=%g",
            identity.device_id,
            identity.relay,
            self._options.connections,
            identity.earnings_per_gb,
        )
        return identity
