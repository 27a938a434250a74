"""A device's identity: registered once, refreshed after, kept in a file that only its owner can read.

All sockets of a device share one identity; however many of them are told that it is no longer valid, it is renewed once.
"""

import asyncio
import contextlib
import http.client
import json
import logging
import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from psx_peer import __version__
from psx_peer.options import Options
from psx_peer.state import read_state, write_state

REQUEST_TIMEOUT_S: Final = 15
ANSWER_MAX_BYTES: Final = 1024 * 1024

log = logging.getLogger("psx_peer")


class ApiRefused(Exception):
    """The API answered with an error; `status` says which."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


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


def call_api(options: Options, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON call. Raises ApiRefused, OSError or http.client.HTTPException. Blocks: run it in a thread."""
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
        connection.request(method, url.path + path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        raw = answer.read(ANSWER_MAX_BYTES)
    try:
        parsed = json.loads(raw)
    except ValueError:
        parsed = {}
    if answer.status >= 400 or not isinstance(parsed, dict):
        message = parsed.get("message", answer.reason) if isinstance(parsed, dict) else answer.reason
        raise ApiRefused(answer.status, str(message))
    return parsed


class IdentityKeeper:
    """Gives the current identity and renews it once for everybody who finds it stale."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = asyncio.Lock()
        self._current: Identity | None = None

    async def get(self) -> Identity:
        """The identity, registering when there is none yet."""
        async with self._lock:
            if self._current is None:
                self._current = await asyncio.to_thread(self._obtain, self._saved())
            return self._current

    async def renew(self, stale: Identity) -> Identity:
        """Another identity than the stale one; whoever comes second gets what the first one fetched."""
        async with self._lock:
            if self._current is None or self._current.token == stale.token:
                saved = {"deviceId": stale.device_id, "refreshToken": stale.refresh_token}
                self._current = await asyncio.to_thread(self._obtain, saved)
            return self._current

    def _saved(self) -> dict[str, str]:
        """What an earlier start of this same device kept."""
        state = read_state(self._options.state_file) if self._options.keep_state else {}
        if state.get("name", self._options.name) != self._options.name:
            return {}
        return {name: value for name, value in state.items() if isinstance(value, str)}

    def _obtain(self, saved: dict[str, str]) -> Identity:
        if saved.get("deviceId") and saved.get("refreshToken"):
            try:
                return self._refresh(saved)
            except ApiRefused as refusal:
                if refusal.status >= 500 or refusal.status == 429:
                    raise
        return self._register()

    def _refresh(self, saved: dict[str, str]) -> Identity:
        device_id = saved["deviceId"]
        body = {"refreshToken": saved["refreshToken"]}
        answer = call_api(self._options, "POST", f"/v1/peer/agents/{device_id}/refresh", body)
        return self._keep(device_id, answer, saved["refreshToken"])

    def _register(self) -> Identity:
        options = self._options
        body: dict[str, Any] = {
            "name": options.name,
            "type": "python",
            "connectionMethod": "relay",
            "sdkVersion": f"python-{__version__}",
            "consent": options.consent.as_json(),
        }
        if options.api_key:
            body["apiKey"] = options.api_key
        if options.wallet:
            body["walletAddress"] = options.wallet
        answer = call_api(options, "POST", "/v1/peer/agents/register", body)
        return self._keep(str(answer["deviceId"]), answer, str(answer["refreshToken"]))

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
            "[REGISTERED] device=%s relay=%s sockets=%d",
            identity.device_id,
            identity.relay,
            self._options.connections,
        )
        return identity
