"""Every route of the API as its OpenAPI document lists it, and two tenants who own one of everything that a route names.

A route that nobody described here fails the tests that go through all of them: none can be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from functions.api.handler import create_app
from shared.guard.model import Incident
from shared.guard.table import open_incident
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import GatewayId, PakId
from shared.pool.live import acquire, list_endpoint
from shared.pool.model import Acquired
from shared.pool.presence import put_presence
from shared.pool.username import parse_username
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import put
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.pool import modem, peer, presence
from tests.support.stores import moto_backend

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
PASSWORD: Final = "correct horse battery"
ABSENT: Final = {
    "pak_id": "0" * 24,
    "device_id": "agent_" + "0" * 64,
    "session_key": f"mbl:{'0' * 24}:a",
    "key_id": "0" * 16,
    "account_id": "psx_nobody",
    "ident": "0" * 24,
    "name": "nothing",
    "subject": "AS64999",
    "proposal_id": "0" * 24,
    "pool_id": "0" * 24,
    "lease_id": "l" + "0" * 12,
    "incident_id": "0000000000000#nothing",
}
"""Ids of the right shape that nothing has."""
OVERRIDE: Final = {"ipType": "residential", "reason": "test"}
RESERVED: Final = {"country": "us", "ipType": "residential"}
CONSENT: Final = {"termsVersion": "2026-11", "method": "dialog"}
PUBLIC: Final = frozenset({("GET", "/v1/peer/devices/{device_id}")})
"""Routes by which anybody learns what an id is."""


def documented() -> list[tuple[str, str]]:
    """(method, path template) of every route."""
    document = create_app(lambda: None).openapi()  # type: ignore[arg-type, return-value]  # nothing is wired to list routes
    return sorted((method.upper(), path) for path, found in document["paths"].items() for method in found)


@dataclass
class Tenant:
    """A reseller and a supplier of one owner, with one of everything."""

    functions: Functions
    name: str
    ids: dict[str, str] = field(default_factory=dict)
    reseller: dict[str, str] = field(default_factory=dict)
    supplier: dict[str, str] = field(default_factory=dict)
    email: str = ""
    signed_in: dict[str, str] = field(default_factory=dict)
    refresh_token: str = ""

    @property
    def admin(self) -> dict[str, str]:
        """The operator."""
        return {"x-api-key": self.functions.keys.admin}

    def account(self, kind: str, scopes: list[str]) -> dict[str, str]:
        """An account with a key that may do this."""
        account = f"psx_{self.name}{kind}"
        self._made("/v1/admin/accounts", {"accountId": account, "kind": kind}, self.admin)
        made = self._made(f"/v1/admin/accounts/{account}/api-keys", {"scopes": scopes}, self.admin)
        return {"x-api-key": made["apiKey"]}

    def _made(self, path: str, body: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        reply = self.functions.call(path, "POST", body, headers)
        assert reply.status in {200, 202}, (path, reply)
        return dict(reply.body)

    def furnish(self) -> Tenant:
        """Make everything."""
        account = f"psx_{self.name}reseller"
        self.reseller = self.account("reseller", ["resell", "keys"])
        self.supplier = self.account("supplier", ["supply", "keys"])
        pak = self._made("/v1/reseller/pool-keys", {"label": "k", "trafficCapGB": 1}, self.reseller)
        key = self._made("/v1/account/api-keys", {"scopes": ["resell"]}, self.reseller)
        self.email = f"{self.name}@example.org"
        person = {"email": self.email, "password": PASSWORD}
        self._made(f"/v1/admin/accounts/{account}/people", person, self.admin)
        token = self._made("/v1/auth/sign-in", person, {})["token"]
        self.signed_in = {"authorization": f"Bearer {token}"}
        api_key = self.supplier["x-api-key"]
        enrolling = {"name": self.name, "apiKey": api_key, "walletAddress": "0x" + "22" * 20}
        device = self._made("/v1/peer/agents/register", enrolling, {})
        self.refresh_token = device["refreshToken"]
        asked = {"trafficGB": 1, "reason": "wire"}
        credit = self._made(f"/v1/admin/resellers/{account}/credits", asked, self.person("first"))
        self.ids = {
            "pak_id": pak["id"],
            "key_id": key["id"],
            "device_id": device["deviceId"],
            "session_key": f"mbl:{pak['id']}:a",
            "account_id": account,
            "ident": credit["approvalId"],
            "name": "rates",
            "subject": "AS64501",
        }
        moved = {"base": ["0x" + "44" * 20], "solana": ["4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"]}
        proposal = self.functions.call("/v1/admin/settings/recipients", "PUT", moved, self.person("first"))
        self.ids["proposal_id"] = proposal.body["proposalId"]
        self.functions.call("/v1/admin/ip-classes/AS64501", "PUT", OVERRIDE, self.admin)
        self.earn(device["deviceId"])
        self.open_session()
        self.list_peers()
        incident = Incident(f"watchdog#{self.name}", "k", "a relay is away", now_ms())
        self.functions.dynamo.run(open_incident(PREFIX + "guard", incident))
        self.ids["incident_id"] = incident.incident_id
        self.ids["pool_id"] = pak["id"]
        self.ids["lease_id"] = self._made(f"/v1/private-pool/{pak['id']}/leases", RESERVED, self.reseller)[
            "id"
        ]
        return self

    def earn(self, device_id: str) -> None:
        """A day on which the device earned 100 USDC, as the roll-up writes it."""
        day = {"pk": f"dev#{device_id}", "sk": "day#2026-11-20", "up_bytes": 0, "down_bytes": 0}
        self.functions.dynamo.run(put(PREFIX + "usage", day | {"earned_femto": 100 * 10**15}))

    def open_session(self) -> None:
        """A named session of the key."""
        redis, pak_id = self.functions.redis, PakId(self.ids["pak_id"])
        redis.run(list_endpoint(modem(f"m-{self.name}", "us")))
        route = parse_username(f"{self.ids['account_id']}-mbl-us-sid-a")
        got = redis.run(acquire(route, Pool.MBL, pak_id, GatewayId("g"), now_ms()))
        assert isinstance(got, Acquired)

    def list_peers(self) -> None:
        """Peers that are on a relay: two that may be reserved, and three times as many for everybody."""
        redis = self.functions.redis
        for number in range(8):
            name = f"p{number}-{self.name}"
            redis.run(list_endpoint(peer(name, ip_type=IpType.RESIDENTIAL)))
            redis.run(put_presence(presence(name)))

    def headers(self, path: str) -> dict[str, str]:
        """Whoever uses a route."""
        if path.startswith(
            ("/v1/peer/agents/register", "/v1/peer/register", "/v1/auth/sign-in", "/peer/device")
        ):
            return {}
        if path == "/v1/auth/password":
            return self.signed_in
        if path.startswith(("/v1/admin/credits/", "/v1/admin/proposals/")):
            return self.person("second")
        if path.startswith("/v1/admin/resellers/") and path.endswith("/credits"):
            return self.person("first")
        if path.startswith("/v1/admin/"):
            return self.admin
        return self.supplier if path.startswith(("/v1/peer/", "/v1/farmer/")) else self.reseller

    def person(self, name: str) -> dict[str, str]:
        """A signed-in person of the admin's account, who has been there for long."""
        return self.functions.person(f"{self.name}-{name}@example.org")

    def body(self, method: str, path: str) -> Any:
        """What a write sends, right in every field. KeyError for a route that nobody described."""
        key = self.supplier.get("x-api-key", "")
        bodies: dict[tuple[str, str], Any] = {
            ("POST", "/v1/peer/agents/register"): {"name": f"{self.name}-other", "apiKey": key},
            ("POST", "/v1/peer/register"): {"deviceId": f"{self.name}-sdk", "apiKey": key},
            ("POST", "/v1/peer/token/{device_id}/refresh"): {"refreshToken": self.refresh_token},
            ("POST", "/v1/peer/agents/{device_id}/refresh"): {"refreshToken": self.refresh_token},
            ("PATCH", "/v1/peer/my-devices/{device_id}/listing"): {"listed": False},
            ("POST", "/v1/peer/consent"): {"termsVersion": "2026-11"},
            ("DELETE", "/v1/peer/consent"): None,
            ("POST", "/v1/peer/agents/{device_id}/consent"): CONSENT,
            ("DELETE", "/v1/peer/agents/{device_id}/consent"): None,
            ("POST", "/v1/peer/my-devices/{device_id}/consent"): CONSENT,
            ("DELETE", "/v1/peer/my-devices/{device_id}/consent"): None,
            ("POST", "/peer/device"): {"id": self.ids.get("device_id", ""), "key": key},
            ("PUT", "/v1/peer/agents/{device_id}/wallet"): {"walletAddress": "0x" + "33" * 20},
            ("POST", "/v1/peer/agents/{device_id}/withdraw"): {},
            ("POST", "/v1/peer/my-devices/list-all"): {"listed": False},
            ("POST", "/v1/peer/my-devices/revoke-all"): {},
            ("POST", "/v1/peer/my-devices/{device_id}/revoke"): {},
            ("PATCH", "/v1/peer/my-preferences"): {"autoList": False},
            ("PUT", "/v1/admin/ip-classes/{subject}"): OVERRIDE,
            ("DELETE", "/v1/admin/ip-classes/{subject}"): None,
            ("POST", "/v1/farmer/modems"): {
                "name": "m", "host": "192.0.2.1", "port": 3128, "username": "u", "password": "p",
            },
            ("DELETE", "/v1/gateway/pool/my-sessions"): None,
            ("DELETE", "/v1/gateway/pool/my-sessions/{session_key}"): None,
            ("POST", "/v1/admin/resellers/{account_id}/credits"): {"trafficGB": 2, "reason": "wire"},
            ("POST", "/v1/admin/credits/{ident}/approve"): {},
            ("POST", "/v1/admin/credits/{ident}/reject"): {},
            ("POST", "/v1/admin/proposals/{proposal_id}/approve"): {},
            ("POST", "/v1/admin/proposals/{proposal_id}/reject"): {},
            ("POST", "/v1/account/api-keys"): {"scopes": ["resell"]},
            ("POST", "/v1/account/api-keys/{key_id}/rotate"): {},
            ("DELETE", "/v1/account/api-keys/{key_id}"): None,
            ("POST", "/v1/auth/sign-in"): {"email": self.email, "password": PASSWORD},
            ("POST", "/v1/auth/password"): {"password": PASSWORD, "newPassword": PASSWORD + "!"},
            ("POST", "/v1/admin/accounts/{account_id}/people"): {
                "email": f"second-{self.email}", "password": PASSWORD,
            },
            ("POST", "/v1/reseller/pool-keys"): {"label": "more", "trafficCapGB": 1},
            ("PATCH", "/v1/reseller/pool-keys/{pak_id}"): {"label": "renamed"},
            ("DELETE", "/v1/reseller/pool-keys/{pak_id}"): None,
            ("POST", "/v1/reseller/pool-keys/{pak_id}/topup"): {"addTrafficGB": 1},
            ("POST", "/v1/reseller/pool-keys/{pak_id}/regenerate"): {},
            ("POST", "/v1/reseller/pool-keys/{pak_id}/reveal"): {},
            ("POST", "/v1/private-pool/{pool_id}/leases"): RESERVED,
            ("POST", "/v1/private-pool/leases/{lease_id}/rotate"): None,
            ("POST", "/v1/private-pool/leases/{lease_id}/extend"): {"idleTtlSec": 600},
            ("PATCH", "/v1/private-pool/leases/{lease_id}/rotation-mode"): {"mode": "auto10"},
            ("DELETE", "/v1/private-pool/leases/{lease_id}"): None,
            ("POST", "/v1/admin/accounts"): {"accountId": f"psx_{self.name}new", "kind": "customer"},
            ("POST", "/v1/admin/accounts/{account_id}/api-keys"): {"scopes": ["resell"]},
            ("PUT", "/v1/admin/settings/{name}"): {"mobile": 1, "residential": 1, "datacenter": 1, "unknown": 1},
            ("POST", "/v1/admin/switch"): {"stopped": False, "reason": "test"},
            ("POST", "/v1/admin/incidents/{incident_id}/close"): {"reason": "test"},
        }  # fmt: skip
        return bodies[method, path]

    def call(
        self,
        method: str,
        path: str,
        ids: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """A route as its owner uses it, or with other ids or as somebody else."""
        target = path.format(**(ids or self.ids)) + QUERIES.get((method, path), "")
        body = self.body(method, path) if method in WRITES else None
        given = self.headers(path) if headers is None else headers
        return self.functions.call(target, method, body, given, source=f"127.20.9.{hash(path) % 200 + 1}")


QUERIES: Final = {
    ("GET", "/v1/gateway/pool/stock/carriers"): "?country=us",
    ("GET", "/v1/reseller/balance/quote"): "?trafficGB=1",
}


def stored() -> list[dict[str, Any]]:
    """Every row of every table, as moto holds it: reading all through its API costs ten times what a route does."""
    return [
        {"table": name, **item.to_json()["Attributes"]}
        for name, table in moto_backend().tables.items()
        for item in table.all_items()
    ]


def rows_about(tenant: Tenant) -> list[str]:
    """Every row that names a tenant or something of theirs."""
    names = (f"psx_{tenant.name}", tenant.ids["pak_id"], tenant.ids["device_id"], tenant.ids["ident"])
    texts = (json.dumps(row, sort_keys=True, default=str) for row in stored())
    return sorted(text for text in texts if any(name in text for name in names))
