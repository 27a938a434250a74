"""The sale's own time: the 402 answer, verifying and minting beside what the chain node takes, and a cold start."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from eth_account import Account

from benchmarks.row import OURS, Row
from benchmarks.stores import dynamo_server, redis_server
from functions.x402.wiring import SaleSettings, wire
from local import lab
from local.api_gateway import http_event
from local.bootstrap import HOUSE, PRICES, bootstrap
from local.evm import USDC, EvmChain, sign_authorization
from local.goods import put_goods
from local.http_server import HttpRequest
from local.paths import ANVIL
from local.supervisor import free_port
from shared.chain.eip3009 import read_authorization
from shared.chain.model import SHALLOW
from shared.guard.table import write_setting
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import load
from shared.sale.model import Bought, Offer, Order, Payment, Prices, Refused, Terms
from shared.sale.rules import read_prices, read_terms
from shared.sale.service import Counter, pool_order

ROUNDS: Final = 5
CALLS_PER_ROUND: Final = 100
GOAL_MS: Final = 5.0
COLD_STARTS: Final = 7
COLD_GOAL_S: Final = 1.5
MINTS: Final = 60
MINT_GOAL_MS: Final = 15.0
BUYERS: Final = 200
BUYERS_AT_ONCE: Final = 40
INSTANCES: Final = 4
PREFIX: Final = "psx-bench-"
RECIPIENT: Final = "0x" + "11" * 20
_BUYERS: Final = itertools.count()


def measure() -> Row:
    """Median of the rounds' medians; the peer is the same app's 404, which does everything but the sale."""
    with redis_server() as redis_url, dynamo_server("bench") as (dynamo_url, dynamo):
        os.environ.update(_environment(redis_url, dynamo_url))
        bootstrap(dynamo, PREFIX, 0)
        logging.disable(logging.INFO)  # a line per request would drown the table
        _open(dynamo)
        ours, floor = [], []
        for _ in range(ROUNDS):
            ours.append(_round("/v1/x402/pool?traffic=0.1", 402))
            floor.append(_round("/v1/x402/nothing", 404))
    median, base = statistics.median(ours), statistics.median(floor)
    noise = f"{min(ours):.2f}-{max(ours):.2f} ms"
    return Row(
        "sale_402", "ms p50", round(median, 2), {"same_app_404": round(base, 2)}, round(median / base, 2),
        f"<= {GOAL_MS:.0f} ms", median <= GOAL_MS, [], noise,
    )  # fmt: skip


def _environment(redis_url: str, dynamo_url: str) -> dict[str, str]:
    secrets = lab.fresh_secrets()
    return {
        "PSX_STAGE": "local",
        "PSX_TABLE_PREFIX": PREFIX,
        "PSX_REDIS_URL": redis_url,
        "PSX_API_BASE_URL": "https://api.example",
        "PSX_GATEWAY_HOST": "gw.example",
        "PSX_GATEWAY_HTTP_PORT": "7000",
        "PSX_GATEWAY_SOCKS_PORT": "7001",
        "PSX_SECRET_PEPPER": secrets.pepper,
        "PSX_MASTER_KEY": secrets.master_key,
        "PSX_QUOTE_SECRET": secrets.quote_secret,
        "PSX_HOUSE_ACCOUNT": HOUSE,
        "PSX_EVM_RPC_URLS": "http://127.0.0.1:9",
        "PSX_EVM_RECIPIENT": "0x" + "11" * 20,
        "PSX_SOLANA_RPC_URLS": "http://127.0.0.1:9",
        "PSX_SOLANA_RECIPIENT": "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T",
        "AWS_ENDPOINT_URL_DYNAMODB": dynamo_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }


def _open(dynamo: SyncDynamo) -> None:
    from functions.x402.validate import validated_rails  # noqa: PLC0415 - with the settings above

    settings = load(SaleSettings)
    redis = SyncRedis(settings.redis_url)
    rails = validated_rails(wire(settings, dynamo, redis).rails)
    found = {"ok": True, "rails": rails, "at_ms": now_ms()}
    dynamo.run(write_setting(f"{PREFIX}guard", "sale", found, 0))
    put_goods(redis)
    redis.close()


def _round(target: str, status: int) -> float:
    from functions.x402.handler import handler  # noqa: PLC0415 - with the settings above

    spent = []
    for _ in range(CALLS_PER_ROUND):
        # Every call is another buyer: one address may ask ten times a minute.
        number = next(_BUYERS)
        source = f"127.20.{number // 250}.{number % 250 + 1}"
        event = http_event(HttpRequest("GET", target, (("host", "api.example"),), b"", source))
        began = time.perf_counter()
        answer: Any = handler(event, None)
        spent.append((time.perf_counter() - began) * 1000)
        if answer["statusCode"] != status:
            raise RuntimeError(f"{target} answered {answer['statusCode']}")
    return statistics.median(spent)


_FIRST_402: Final = """
import logging
logging.disable(logging.INFO)
from functions.x402.handler import handler
from local.api_gateway import http_event
from local.http_server import HttpRequest
ask = HttpRequest("GET", "/v1/x402/pool?traffic=0.1", (("host", "api.example"),), b"", "127.20.0.1")
assert handler(http_event(ask), None)["statusCode"] == 402
import sys
assert not {"web3", "solders", "solana", "eth_account"} & sys.modules.keys(), "a 402 needs no chain"
"""
COLD_PARTS: Final = {
    "interpreter": "pass",
    "web_framework": "import fastapi, mangum",
    "with_stores": "import fastapi, mangum, boto3, redis, cryptography.hazmat.primitives.ciphers.aead",
    "handler": "import functions.x402.handler",
}


def measure_cold() -> Row:
    """A fresh process until its first 402 is answered, from real stores; beside it, how far each part of it comes alone."""
    with redis_server() as redis_url, dynamo_server("bench") as (dynamo_url, dynamo):
        environment = {**os.environ, **_environment(redis_url, dynamo_url)}
        os.environ.update(environment)
        bootstrap(dynamo, PREFIX, 0)
        _open(dynamo)
        programs = {**COLD_PARTS, OURS: _FIRST_402}
        spent: dict[str, list[float]] = {name: [] for name in programs}
        cpu: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(COLD_STARTS):
            for name, program in programs.items():
                wall_s, cpu_s = _process_s(program, environment)
                spent[name].append(wall_s)
                cpu[name].append(cpu_s)
    ours, parts = spent.pop(OURS), {n: round(statistics.median(s), 2) for n, s in spent.items()}
    median = statistics.median(ours)
    return Row(
        "sale_cold_start", "s", round(median, 2), {**parts}, round(median / parts["with_stores"], 2),
        f"<= {COLD_GOAL_S} s", median <= COLD_GOAL_S, [], f"{min(ours):.2f}-{max(ours):.2f} s",
        cpu={name: round(statistics.median(found), 2) for name, found in cpu.items()},
    )  # fmt: skip


def _process_s(program: str, environment: dict[str, str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a process: the second does not depend on what else the machine does."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - began, used


def measure_buyers() -> list[Row]:
    """200 buyers at once, each with a payment of their own, through four instances; on both rails of Base."""
    return [_buyers("hash"), _buyers("exact")]


def _buyers(rail: str) -> Row:
    with redis_server() as redis_url, dynamo_server("bench") as (dynamo_url, dynamo), evm_node() as chain:
        logging.disable(logging.INFO)
        gas = Account.create()
        chain.call("anvil_setBalance", gas.address, hex(10**18))
        secrets = lab.fresh_secrets()
        counters, prices, order = [], None, None
        for _ in range(INSTANCES):
            counter, prices, order = _counter(redis_url, dynamo_url, dynamo, chain, secrets, gas.key.hex())
            counters.append(counter)
        if prices is None or order is None:
            raise RuntimeError("no instances")
        counters[0].quote(order, "127.20.0.1")
        payments = [_payment(chain, rail) for _ in range(BUYERS)]
        began = time.perf_counter()
        with ThreadPoolExecutor(BUYERS_AT_ONCE) as pool:
            asked = [
                pool.submit(counters[n % INSTANCES].buy, [Offer(order, prices)], payment, "127.20.0.1")
                for n, payment in enumerate(payments)
            ]
            bought = [a.result() for a in asked]
        spent = time.perf_counter() - began
    served = {b.secret for b in bought if isinstance(b, Bought) and not b.repeated}
    return Row(
        f"sale_buyers_{rail}", f"s for {BUYERS}", round(spent, 2), {}, None,
        f"{BUYERS} served, none twice", len(served) == BUYERS, [], f"{len(served)} served",
    )  # fmt: skip


def _payment(chain: EvmChain, rail: str) -> Payment:
    wallet = chain.new_wallet(400_000)
    if rail == "hash":
        data = "0xa9059cbb" + RECIPIENT[2:].rjust(64, "0") + (400_000).to_bytes(32, "big").hex()
        return Payment("base", chain.send(wallet, USDC, data))
    authorization = read_authorization(sign_authorization(wallet, RECIPIENT, 400_000))
    return Payment("base", "", authorization=authorization)


def measure_mint() -> Row:
    """Verify and mint of a payment by hash, less the same questions asked of the node alone."""
    with redis_server() as redis_url, dynamo_server("bench") as (dynamo_url, dynamo), evm_node() as chain:
        counter, prices, order = _counter(redis_url, dynamo_url, dynamo, chain, lab.fresh_secrets())
        logging.disable(logging.INFO)
        wallet, ours, node = chain.new_wallet(400_000 * (MINTS + 1)), [], []
        data = "0xa9059cbb" + RECIPIENT[2:].rjust(64, "0") + (400_000).to_bytes(32, "big").hex()
        for number in range(MINTS + 1):
            counter.quote(order, "127.20.0.1")
            payment = Payment("base", chain.send(wallet, USDC, data))
            began = time.perf_counter()
            counter.chain().judge(payment, SHALLOW)
            asked = time.perf_counter()
            bought = counter.buy([Offer(order, prices)], payment, "127.20.0.1")
            if isinstance(bought, Refused):
                raise RuntimeError(bought.detail)
            if number:  # the first one loads the chain SDK
                node.append((asked - began) * 1000)
                ours.append((time.perf_counter() - asked) * 1000)
    median, base = statistics.median(ours), statistics.median(node)
    return Row(
        "sale_mint", "ms p50", round(median, 2), {"chain_alone": round(base, 2)}, round(median / base, 2),
        f"<= chain + {MINT_GOAL_MS:.0f} ms", median <= base + MINT_GOAL_MS, [], f"{min(ours):.1f}-{max(ours):.1f} ms",
    )  # fmt: skip


@contextlib.contextmanager
def evm_node() -> Iterator[EvmChain]:
    """anvil with USDC on it."""
    port = free_port()
    command = [str(ANVIL), "--host", "127.0.0.1", "--port", str(port), "--chain-id", "8453", "--silent"]
    process = subprocess.Popen(command)
    chain = EvmChain(f"http://127.0.0.1:{port}")
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                chain.place_tokens()
                break
            time.sleep(0.05)
        yield chain
    finally:
        process.terminate()
        process.wait(5)


def _counter(
    redis_url: str,
    dynamo_url: str,
    dynamo: SyncDynamo,
    chain: EvmChain,
    secrets: lab.LabSecrets,
    gas_key: str = "",
) -> tuple[Counter, Prices, Order]:
    bootstrap(dynamo, PREFIX, 0)
    fields: dict[str, Any] = {
        "stage": "local",
        "table_prefix": PREFIX,
        "redis_url": redis_url,
        "api_base_url": "https://api.example",
        "gateway_host": "gw.example",
        "gateway_http_port": 7000,
        "gateway_socks_port": 7001,
        "secret_pepper": secrets.pepper,
        "master_key": secrets.master_key,
        "quote_secret": secrets.quote_secret,
        "house_account": HOUSE,
        "evm_rpc_urls": chain.url,
        "evm_recipient": RECIPIENT,
        "solana_rpc_urls": "http://127.0.0.1:9",
        "solana_recipient": "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T",
        "clock_error_ms": 60_000,
        "gas_key": gas_key,
    }
    settings = SaleSettings(**fields)
    wired = wire(settings, dynamo, SyncRedis(redis_url))
    put_goods(wired.redis)
    validated = {"ok": True, "exact": bool(gas_key), "at_ms": now_ms()}
    dynamo.run(write_setting(f"{PREFIX}guard", "sale", validated, 0))
    prices = read_prices(PRICES)
    terms = read_terms({"traffic": "0.1"}, prices) if prices else None
    if prices is None or not isinstance(terms, Terms):
        raise RuntimeError("the lab's prices cannot be read")
    return wired.counter, prices, pool_order(terms, prices)
