"""Lambda functions called as the cloud calls them: real event JSON into the real apps, on moto and a real Redis."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import pytest
from mangum import Mangum
from pydantic import SecretStr

from functions.api.handler import create_app as create_api
from functions.api.wiring import ApiSettings
from functions.api.wiring import Wiring as ApiWiring
from functions.api.wiring import wire as wire_api
from functions.http import lambda_handler
from functions.x402.app import create_app as create_sale
from functions.x402.serve_owed import serve_owed as serve_owed_job
from functions.x402.validate import validate_sale as validate_sale_job
from functions.x402.validate import validated_rails
from functions.x402.wiring import SaleSettings
from functions.x402.wiring import Wiring as SaleWiring
from functions.x402.wiring import wire as wire_sale
from local import lab
from local.api_gateway import http_event
from local.bootstrap import ADMIN, HOUSE, Keys, bootstrap
from local.goods import put_goods
from local.http_server import HttpRequest
from shared.access.people import NOBODY, Person, issue, person_item
from shared.chain.model import Depth, Reading, Unknown, UnknownReason
from shared.guard.table import write_setting
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo, transact
from shared.runtime.redis import SyncRedis
from shared.sale.model import Payment, Statement
from tests.support.permissions import as_function, call_as

PREFIX = "psx-test-"
RECIPIENT = "0x" + "11" * 20
SOLANA_RECIPIENT = "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"


@dataclass(frozen=True)
class Reply:
    """An answer with its JSON body."""

    status: int
    headers: Mapping[str, str]
    body: Any


class FakeChain:
    """Verdicts that a test decides; everything else has not been seen yet."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Reading] = {}
        self.asked = 0

    def judge(self, payment: Payment, depths: Sequence[Depth], tag: str = "") -> Reading:
        """The verdict that the test put there."""
        self.asked += 1
        return self.verdicts.get(payment.tx_hash, Unknown(UnknownReason.NOT_FOUND))

    def proves(self, statement: Statement, proof: str, payer: str, quorum: int) -> bool:
        """A proof is the payer's name."""
        return proof == payer


class Functions:
    """Both HTTP functions, wired for a test."""

    def __init__(
        self,
        dynamo: SyncDynamo,
        redis_url: str,
        files: lab.LabFiles,
        evm_url: str = "",
        gas_key: str = "",
        evm_recipient: str = RECIPIENT,
        solana_url: str = "",
        solana_recipient: str = SOLANA_RECIPIENT,
        begun: tuple[lab.LabSecrets, Keys] | None = None,
    ) -> None:
        """`begun`: the secrets and the first keys of stores that are furnished already."""
        # Mangum runs on its thread's event loop; the test's own thread belongs to the test runner's.
        self._thread = ThreadPoolExecutor(1, initializer=_begin, initargs=(self,))
        self.dynamo = dynamo
        self.redis = SyncRedis(redis_url)
        self.secrets = secrets = begun[0] if begun else lab.fresh_secrets()
        self.keys: Keys = begun[1] if begun else bootstrap(dynamo, PREFIX, now_ms())
        self.chain = FakeChain()
        common: dict[str, Any] = {
            "stage": "local",
            "table_prefix": PREFIX,
            "redis_url": redis_url,
            "api_base_url": "https://api.example",
            "gateway_host": "gw.example",
            "gateway_http_port": 7000,
            "gateway_socks_port": 7001,
            "secret_pepper": secrets.pepper,
            "sealing_key": secrets.sealing_key,
            "master_key": secrets.master_key,
        }
        api = ApiSettings(
            **common,
            jwt_private_key=SecretStr(secrets.jwt_private),
            jwt_public_key=SecretStr(secrets.jwt_public),
            relays=lab.relays_setting({"eu": 1, "us": 2}),
            asn_mmdb=files.asn_mmdb,
            country_mmdb=files.country_mmdb,
            asn_classes=files.asn_classes,
        )
        sale = SaleSettings(
            **common,
            quote_secret=SecretStr(secrets.quote_secret),
            house_account=HOUSE,
            evm_rpc_urls=evm_url or "http://127.0.0.1:9",
            evm_recipient=evm_recipient,
            gas_key=SecretStr(gas_key),
            clock_error_ms=2000,
            solana_rpc_urls=solana_url or "http://127.0.0.1:9",
            solana_recipient=solana_recipient,
        )
        self.api_wiring: ApiWiring = wire_api(api, dynamo, self.redis)
        wired = wire_sale(sale, dynamo, self.redis)
        faked = (
            wired
            if evm_url or solana_url
            else replace(wired, counter=replace(wired.counter, chain=lambda: self.chain))
        )
        self.sale_wiring: SaleWiring = faked

    def validated_at(self, at_ms: int) -> None:
        """The sale was looked at then, and was fine: it closes when that is too long ago."""
        live = self.sale_wiring.live
        found = {**live.get("sale"), "at_ms": at_ms}
        self.dynamo.run(write_setting(f"{PREFIX}guard", "sale", found, at_ms))
        for reader in (live, self.api_wiring.live):
            reader._kept.clear()

    def close(self) -> None:
        """Give connections and files back, and the loop that Mangum runs on."""
        self._thread.submit(_close_loop).result()
        self._thread.shutdown()
        self.redis.close()
        self.api_wiring.origins.close()

    def deliver(self, event: dict[str, Any]) -> Any:
        """One event through the function that API Gateway would choose; the answer as the function gave it."""
        sale = str(event["rawPath"]).startswith("/v1/x402/")
        # Whoever makes a handler gets an event loop for it: made here, it is the one that is closed.
        name, app = ("x402", _sale) if sale else ("api", _api)
        return self._thread.submit(lambda: call_as(name, app(), event, None)).result()

    def open(self, *, exact: bool = False, stocked: bool = True) -> None:
        """Let money routes open as the validation would; `stocked`: with something on sale of everything that is sold."""
        rails = validated_rails(self.sale_wiring.rails)
        found = {"ok": True, "exact": exact, "rails": rails, "at_ms": now_ms()}
        self.dynamo.run(write_setting(f"{PREFIX}guard", "sale", found, 0))
        if stocked:
            put_goods(self.redis)

    def held_at_most(self, share_percent: int) -> None:
        """How much of a country's devices may be held alone: 100 where a test has few of them, and no word on the share."""
        setting = {"per_account": 20, "rotations_per_hour": 12, "share_percent": share_percent}
        self.dynamo.run(write_setting(f"{PREFIX}guard", "leases", setting, 0))
        for reader in (self.sale_wiring.live, self.api_wiring.live):
            reader._kept.clear()

    def person(self, email: str, account: AccountId = ADMIN, created_at_ms: int = 0) -> dict[str, str]:
        """A signed-in person of an account, of the admin's if no other one is named."""
        found = Person(email, account, NOBODY, 0, created_at_ms)
        self.dynamo.run(transact([person_item(PREFIX + "access", found)]))
        private = self.api_wiring.settings.jwt_private_key.get_secret_value()
        return {"authorization": f"Bearer {issue(found, private, now_ms())}"}

    def call(
        self,
        target: str,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        source: str = "127.20.0.1",
    ) -> Reply:
        """One request through the function that API Gateway would choose."""
        raw = b"" if body is None else json.dumps(body).encode()
        found = {"host": "api.example", "content-type": "application/json", **(headers or {})}
        event = http_event(HttpRequest(method, target, tuple(found.items()), raw, source))
        answer = self.deliver(event)
        try:
            parsed = json.loads(answer["body"])
        except ValueError:
            parsed = answer["body"]
        return Reply(answer["statusCode"], answer["headers"], parsed)


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    """Both HTTP functions on empty stores."""
    made = Functions(dynamo, valkey_url, lab_files)
    yield made
    made.close()


@pytest.fixture
def open_sale(functions: Functions) -> None:
    """Everything is on sale from the beginning."""
    functions.open()


_serving: ContextVar[Functions] = ContextVar("serving")
"""Whose wiring a request finds: the apps themselves take a second to build, so that a test process has one of each."""


@functools.cache
def _api() -> Mangum:
    return lambda_handler(create_api(lambda: _serving.get().api_wiring))


@functools.cache
def _sale() -> Mangum:
    return lambda_handler(create_sale(lambda: _serving.get().sale_wiring))


def _begin(functions: Functions) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    _serving.set(functions)


def serve_owed(wiring: SaleWiring) -> dict[str, Any]:
    """The job, under the role of the function that runs it."""
    with as_function("x402"):
        return serve_owed_job(wiring)


def validate_sale(wiring: SaleWiring) -> dict[str, Any]:
    """The job, under the role of the function that runs it."""
    with as_function("x402"):
        return validate_sale_job(wiring)


def _close_loop() -> None:
    asyncio.get_event_loop().close()
    asyncio.set_event_loop(None)
