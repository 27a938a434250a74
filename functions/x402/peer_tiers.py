"""The flag of the peer tiers: off, and turned on only when a key of each tier was seen to stay within its IP type.

The test mints a key as a sale would, goes through the gateway to a page that says who asks, and tries to break out by every
username that could. What a device's IP type is, the live network says, as it does for routing. See decision 0021.
"""

import base64
import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel

from functions.http import ProblemError
from functions.x402.admin import recorded
from functions.x402.wiring import Wiring
from shared.access.model import DisabledReason, Pak, Quality
from shared.access.secrets import new_pak_secret
from shared.access.table import mint, suspend
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import DeviceId, PakId
from shared.pool.live import listed_ids, read_presence
from shared.runtime.clock import new_id, now_ms
from shared.runtime.dynamo import StoreUnavailable

SETTING: Final = "peer_tiers"
CAP_BYTES: Final = 5_000_000
KEY_LIFE_MS: Final = 300_000
TIMEOUT_S: Final = 10
ANSWER_MAX_BYTES: Final = 4096
TRIES: Final = 2
PEERS_MAX: Final = 5_000
TYPES: Final = (IpType.MOBILE, IpType.RESIDENTIAL)


class FlagBody(BaseModel):
    """`POST /v1/x402/admin/peer-tiers`."""

    on: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of the test: which username, and the exit's IP type (empty: refused)."""

    wanted: str
    username: str
    found: str

    @property
    def honoured(self) -> bool:
        """Whether the key stayed within its type."""
        return self.found in {"", self.wanted}


def usernames(account: str, wanted: str) -> tuple[str, ...]:
    """What the buyer of a tier is told first, then what might break out of it."""
    others = [t.value for t in IpType if t.value not in {wanted, IpType.UNKNOWN.value}]
    return (
        f"{account}-peer-any-iptype-{wanted}",
        f"{account}-peer-any",
        f"{account}-any-any",
        f"{account}-mbl-any",
        f"{account}-mbl-any-failover-any",
        *(f"{account}-peer-any-iptype-{other}" for other in others),
        *(f"{account}-any-any-iptype-{other}-failover-any" for other in others),
    )


def verdict(seen: list[Seen], wanted: str) -> str | None:
    """Why a tier may not be sold; None when it may."""
    broke_out = next((s for s in seen if not s.honoured), None)
    if broke_out is not None:
        return f"{wanted}: {broke_out.username} left through {broke_out.found}"
    first = [s for s in seen if s.username.endswith(f"-peer-any-iptype-{wanted}")]
    return None if any(s.found == wanted for s in first) else f"{wanted}: no request came through"


class SelfTest:
    """One run."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring

    def run(self) -> tuple[list[str], list[str]]:
        """(IP types that hold, faults). Raises StoreUnavailable."""
        tiers = self._w.live.get("prices").get("tiers", {})
        wanted = sorted({row["ip_type"] for row in tiers.values() if row.get("ip_type")})
        if not self._w.settings.echo_url:
            return [], ["no page that tells who asks is configured (PSX_ECHO_URL)"]
        if not wanted:
            return [], ["prices: no tier of peers is priced"]
        faults = [fault for fault in map(self._tier, wanted) if fault]
        return ([], faults) if faults else (wanted, [])

    def _tier(self, wanted: str) -> str | None:
        w, secret, pak_id = self._w, new_pak_secret(), PakId(new_id())
        table = w.settings.table("access")
        w.dynamo.run(mint(table, self._key(pak_id, secret, wanted)))
        try:
            return verdict(list(self._requests(secret, wanted)), wanted)
        finally:
            w.dynamo.run(suspend(table, pak_id, DisabledReason.DELETED, now_ms()))

    def _key(self, pak_id: PakId, secret: str, wanted: str) -> Pak:
        now, box = now_ms(), self._w.box
        return Pak(
            pak_id=pak_id,
            account_id=self._w.counter.mint.house,
            label="self-test of the peer tiers",
            secret_hash=box.hash(secret),
            secret_sealed=box.seal(secret, f"pak#{pak_id}"),
            cap_bytes=CAP_BYTES,
            used_bytes=0,
            enabled=True,
            disabled_reason=None,
            expires_at_ms=now + KEY_LIFE_MS,
            quality=Quality.STANDARD,
            socks_allowed=False,
            created_at_ms=now,
            updated_at_ms=now,
            ip_type=wanted,
        )

    def _requests(self, secret: str, wanted: str) -> Iterator[Seen]:
        types = self._types()
        for username in usernames(self._w.counter.mint.house, wanted) * TRIES:
            address = self._exit(username, secret)
            yield Seen(wanted, username, types.get(address, "an unknown address") if address else "")

    def _types(self) -> dict[str, str]:
        """What the live network says of each peer's address."""
        found: dict[str, str] = {}
        listed: frozenset[str] = self._w.redis.run(listed_ids(Pool.PEER))
        for device_id in sorted(listed)[:PEERS_MAX]:
            presence = self._w.redis.run(read_presence(DeviceId(device_id)))
            if presence is not None:
                found[presence.ip] = presence.ip_type.value
        return found

    def _exit(self, username: str, secret: str) -> str:
        """The address that the echo page saw; empty when the gateway or the exit refused."""
        url, s = urlsplit(self._w.settings.echo_url), self._w.settings
        port = url.port or 443
        token = base64.b64encode(f"{username}:{secret}".encode()).decode()
        context = ssl.create_default_context(cafile=s.echo_ca or None)
        through = http.client.HTTPSConnection(
            s.gateway_host, s.gateway_http_port, timeout=TIMEOUT_S, context=context
        )
        through.set_tunnel(url.hostname or "", port, {"Proxy-Authorization": f"Basic {token}"})
        try:
            through.request("GET", url.path or "/", headers={"Host": url.netloc, "Connection": "close"})
            said = json.loads(through.getresponse().read(ANSWER_MAX_BYTES))
            return str(said["ip"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return ""
        finally:
            through.close()


def router(wiring: Callable[[], Wiring]) -> APIRouter:
    """The flag's routes."""
    routes = APIRouter(prefix="/v1/x402/admin")

    @routes.post("/peer-tiers")
    def turn(request: Request, body: FlagBody) -> dict[str, Any]:
        w = wiring()
        recorded(w, request, "peer_tiers_asked", on=body.on)
        tested: list[str] = []
        if body.on:
            try:
                tested, faults = SelfTest(w).run()
            except StoreUnavailable as error:
                tested, faults = [], [str(error)]
            if faults:
                _write(w, on=False, tested=[], faults=faults)
                raise ProblemError(409, "SELF_TEST_FAILED", "; ".join(faults))
        _write(w, on=body.on, tested=tested, faults=[])
        recorded(w, request, "peer_tiers_turned", on=body.on, tested=tested)
        return {"on": body.on, "tested": tested}

    return routes


def _write(w: Wiring, **value: Any) -> None:
    now = now_ms()
    w.dynamo.run(write_setting(w.settings.table("guard"), SETTING, {**value, "at_ms": now}, now))
