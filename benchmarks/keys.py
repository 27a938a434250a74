"""Keys: what a flush costs, how long a password takes to become a key, requests through Mangum, long lists.

Each figure stands beside the bare thing in the same run: the same additions without caps, the same reads without a cache,
the same app's 404, the same query without the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.row import OURS, Goal, Reading, Row, compare
from benchmarks.stores import dynamo_server, redis_server
from functions.api.handler import create_app
from functions.api.wiring import ApiSettings, Wiring, wire
from functions.http import lambda_handler
from gateway_node.auth import Authenticator
from local import lab
from local.api_gateway import http_event
from local.bootstrap import RESELLER, bootstrap
from local.http_server import HttpRequest
from shared.access import table as access
from shared.access.live import Limit, count_calls
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox, new_pak_secret, token_hash
from shared.kernel.ids import AccountId, GatewayId, PakId
from shared.kernel.money import BYTES_PER_GB
from shared.metering.live import flushes, open_meter
from shared.metering.model import Ask
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import AsyncDynamo, SyncDynamo
from shared.runtime.redis import SyncRedis

ROUNDS: Final = 5
KEYS: Final = 1_000
MANY_KEYS: Final = 10_000
GATEWAYS: Final = 8
LOOKUPS: Final = 500
REQUESTS: Final = 200
PAGE: Final = 1_000
PREFIX: Final = "psx-bench-"
PLAIN: Final = "plain HINCRBY"
BARE: Final = "bare reads"
BARE_CALLS: Final = "its store calls alone"
FLUSH_EVERY_S: Final = 5.0


def flush_cost() -> Row:
    """One flush of 1,000 keys with caps and leases, beside 1,000 bare additions in one pipeline."""
    with redis_server() as url:
        rounds: dict[str, list[Reading]] = {OURS: [], PLAIN: []}
        redis = SyncRedis(url)
        _open(redis, KEYS)
        for number in range(ROUNDS):
            rounds[OURS].append(Reading(_flush_ms(redis, "g", number, KEYS)))
            rounds[PLAIN].append(Reading(_plain_ms(url, KEYS)))
        redis.close()
    return compare("keys_flush_1k", "ms", rounds, [Goal(PLAIN, 8.0, at_most=True)])


def flush_many() -> Row:
    """8 gateways flush 10,000 keys each: the seconds that Redis is busy of the 5 s between two flushes."""
    with redis_server() as url:
        redis = SyncRedis(url)
        _open(redis, MANY_KEYS)
        rounds: dict[str, list[Reading]] = {OURS: [], PLAIN: []}
        for number in range(3):
            spent = sum(_flush_ms(redis, f"g{gateway}", number, MANY_KEYS) for gateway in range(GATEWAYS))
            rounds[OURS].append(Reading(spent / 1000))
            rounds[PLAIN].append(Reading(sum(_plain_ms(url, MANY_KEYS) for _ in range(GATEWAYS)) / 1000))
        redis.close()
    return compare("keys_flush_8x10k", "s", rounds, [Goal("", FLUSH_EVERY_S, at_most=True)])


def _open(redis: SyncRedis, count: int) -> None:
    for number in range(count):
        redis.run(open_meter(PakId(f"{number:024x}"), 0, 1000 * BYTES_PER_GB))


def _flush_ms(redis: SyncRedis, gateway: str, sequence: int, count: int) -> float:
    totals = {PakId(f"{number:024x}"): 1_000_000 for number in range(count)}
    asks = {pak_id: Ask(0, 16_000_000) for pak_id in totals}
    began = time.perf_counter()
    for call in flushes(GatewayId(gateway), sequence, totals, asks):
        redis.run(call)
    return (time.perf_counter() - began) * 1000


def _plain_ms(url: str, count: int) -> float:
    import redis  # noqa: PLC0415 - only the peer uses the client itself

    client = redis.Redis.from_url(url)
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        pipeline.hincrby("plain", f"{number:024x}", 1_000_000)
    began = time.perf_counter()
    pipeline.execute()
    spent = (time.perf_counter() - began) * 1000
    client.close()
    return spent


# Passwords


def auth_lookup() -> list[Row]:
    """A password that is known already, and one that is not, in a gateway's own code."""
    with dynamo_server("bench") as (url, dynamo), _aws(url):
        return asyncio.run(_lookups(dynamo))


async def _lookups(dynamo: SyncDynamo) -> list[Row]:
    box = SecretBox(bytes(32), bytes(32))
    secrets = [new_pak_secret() for _ in range(LOOKUPS)]
    for number, secret in enumerate(secrets):
        dynamo.run(access.mint(f"{PREFIX}access", _pak(box, number, secret)))

    async def met(_: Pak) -> None:
        return None

    hot: dict[str, list[Reading]] = {OURS: []}
    hot99: dict[str, list[Reading]] = {OURS: []}
    cold: dict[str, list[Reading]] = {OURS: [], BARE: []}
    cold99: dict[str, list[Reading]] = {OURS: [], BARE: []}
    async with AsyncDynamo() as store:
        for _ in range(3):
            loop = asyncio.get_running_loop()
            auth = Authenticator(store, f"{PREFIX}access", box, loop.time, lambda: 0, met)
            for figures, tails, scale in ((cold, cold99, 1e3), (hot, hot99, 1e6)):
                times = []
                for secret in secrets:
                    began = time.perf_counter()
                    await auth.authenticate(AccountId(RESELLER), secret, "192.0.2.1")
                    times.append((time.perf_counter() - began) * scale)
                figures[OURS].append(Reading(statistics.median(times)))
                tails[OURS].append(Reading(statistics.quantiles(times, n=100)[98]))
            times = []
            for number, secret in enumerate(secrets):
                began = time.perf_counter()
                await store.run(access.find_secret(f"{PREFIX}access", box.hash(secret)))
                await store.run(access.get_pak(f"{PREFIX}access", PakId(f"{number:024x}")))
                times.append((time.perf_counter() - began) * 1e3)
            cold[BARE].append(Reading(statistics.median(times)))
            cold99[BARE].append(Reading(statistics.quantiles(times, n=100)[98]))
    return [
        compare("keys_auth_hot_p50", "us", hot, [Goal("", 50.0, at_most=True)]),
        compare("keys_auth_hot_p99", "us", hot99, [Goal("", 500.0, at_most=True)]),
        compare("keys_auth_cold_p50", "ms", cold, [Goal(BARE, 1.2, at_most=True)]),
        compare("keys_auth_cold_p99", "ms", cold99, [Goal(BARE, 1.5, at_most=True)]),
    ]


def _pak(box: SecretBox, number: int, secret: str) -> Pak:
    pak_id = PakId(f"{number:024x}")
    return Pak(
        pak_id, AccountId(RESELLER), "bench", box.hash(secret), "sealed", BYTES_PER_GB, 0, True, None, None,
        Quality.STANDARD, True, number, number,
    )  # fmt: skip


# The API


class _Api:
    """The API function on real stores, called as the cloud calls it."""

    def __init__(self, wired: Wiring, key: str) -> None:
        self._handler = lambda_handler(create_app(lambda: wired))
        self._wired, self._key = wired, key

    def get(self, target: str) -> Any:
        """One request through Mangum."""
        headers = (("host", "api.example"), ("x-api-key", self._key))
        event = http_event(HttpRequest("GET", target, headers, b"", "192.0.2.1"))
        return self._handler(event, None)  # type: ignore[arg-type]  # no context is needed

    def per_second(self, target: str, status: int) -> float:
        """Requests in a row, one at a time, as a container serves them."""
        began = time.perf_counter()
        for _ in range(REQUESTS):
            if self.get(target)["statusCode"] != status:
                raise RuntimeError(f"{target} does not answer {status}")
        return REQUESTS / (time.perf_counter() - began)

    def bare_per_second(self) -> float:
        """What reading one key asks of the stores, asked by nobody: two counts of limits, the API key, the key."""
        dynamo, redis, table = self._wired.dynamo, self._wired.redis, f"{PREFIX}access"
        began = time.perf_counter()
        for _ in range(REQUESTS):
            for who in ("ip:192.0.2.1", "key:bench"):
                redis.run(count_calls([Limit("bench", 10**9, 60)], who, now_ms()))
            dynamo.run(access.find_api_key(table, token_hash(self._key)))
            dynamo.run(access.get_pak(table, PakId(f"{0:024x}")))
        return REQUESTS / (time.perf_counter() - began)


@contextlib.contextmanager
def _api(keys: int) -> Iterator[tuple[_Api, SyncDynamo]]:
    logging.disable(logging.INFO)
    asyncio.set_event_loop(asyncio.new_event_loop())
    with (
        redis_server() as redis_url,
        dynamo_server("bench") as (url, dynamo),
        _aws(url),
        tempfile.TemporaryDirectory() as folder,
    ):
        files, secrets = lab.write_files(Path(folder)), lab.fresh_secrets()
        fields: dict[str, Any] = {
            "stage": "local", "table_prefix": PREFIX, "redis_url": redis_url, "api_base_url": "https://api.example",
            "gateway_host": "gw.example", "gateway_http_port": 7000, "gateway_socks_port": 7001,
            "secret_pepper": secrets.pepper, "sealing_key": secrets.sealing_key, "master_key": secrets.master_key,
            "jwt_private_key": secrets.jwt_private, "jwt_public_key": secrets.jwt_public,
            "relays": lab.relays_setting({"eu": 1, "us": 2}), "asn_mmdb": files.asn_mmdb,
            "country_mmdb": files.country_mmdb, "asn_classes": files.asn_classes,
            "calls_per_minute_address": 10**9, "calls_per_minute_key": 10**9,
        }  # fmt: skip
        box = SecretBox(bytes(32), bytes(32))
        made = bootstrap(dynamo, PREFIX, 0)
        for number in range(keys):
            dynamo.run(access.mint(f"{PREFIX}access", _pak(box, number, new_pak_secret())))
        redis = SyncRedis(redis_url)
        wired = wire(ApiSettings(**fields), dynamo, redis)
        try:
            yield _Api(wired, made.reseller), dynamo
        finally:
            wired.origins.close()
            redis.close()
            asyncio.get_event_loop().close()
            asyncio.set_event_loop(None)
            logging.disable(logging.NOTSET)


def api_requests() -> Row:
    """Reading one key through Mangum, beside what that asks of the stores, and beside the same app's 404."""
    with _api(1) as (api, _):
        api.per_second("/none", 404)
        rounds: dict[str, list[Reading]] = {OURS: [], BARE_CALLS: [], "the app's 404": []}
        for _ in range(ROUNDS):
            rounds[OURS].append(Reading(api.per_second(f"/v1/reseller/pool-keys/{0:024x}", 200)))
            rounds[BARE_CALLS].append(Reading(api.bare_per_second()))
            rounds["the app's 404"].append(Reading(api.per_second("/none", 404)))
    return compare("keys_api_requests", "1/s", rounds, [Goal(BARE_CALLS, 0.7)])


def list_keys() -> Row:
    """All of 10,000 keys, page after page, beside the same queries without the API."""
    with _api(MANY_KEYS) as (api, dynamo):
        rounds: dict[str, list[Reading]] = {OURS: [], "bare queries": []}
        for _ in range(3):
            began, found, cursor = time.perf_counter(), 0, ""
            while True:
                answer = api.get(f"/v1/reseller/pool-keys?limit={PAGE}{cursor}")
                found += len(json.loads(answer["body"]))
                if "x-next-cursor" not in answer["headers"]:
                    break
                cursor = f"&cursor={answer['headers']['x-next-cursor']}"
            if found != MANY_KEYS:
                raise RuntimeError(f"{found} keys were listed")
            rounds[OURS].append(Reading(time.perf_counter() - began))
            rounds["bare queries"].append(Reading(_bare_list_s(dynamo)))
    return compare("keys_list_10k", "s", rounds, [Goal("bare queries", 2.0, at_most=True)])


def _bare_list_s(dynamo: SyncDynamo) -> float:
    began, start = time.perf_counter(), None
    while True:
        page = dynamo.run(access.list_paks(f"{PREFIX}access", AccountId(RESELLER), PAGE, start))
        start = page.next_key
        if start is None:
            return time.perf_counter() - began


@contextlib.contextmanager
def _aws(url: str) -> Iterator[None]:
    given = {
        "AWS_ENDPOINT_URL_DYNAMODB": url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    before = {name: os.environ.get(name) for name in (*given, "AWS_CA_BUNDLE")}
    os.environ.update(given)
    os.environ.pop("AWS_CA_BUNDLE", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
