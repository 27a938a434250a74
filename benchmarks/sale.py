"""The 402 answer: milliseconds from API Gateway's event to the function's answer, in process."""

from __future__ import annotations

import logging
import os
import statistics
import time
from typing import Any, Final

from benchmarks.row import Row
from benchmarks.stores import dynamo_server, redis_server
from local import lab
from local.api_gateway import http_event
from local.bootstrap import HOUSE
from local.http_server import HttpRequest
from shared.guard.table import write_setting

ROUNDS: Final = 5
CALLS_PER_ROUND: Final = 100
GOAL_MS: Final = 5.0
PREFIX: Final = "psx-bench-"


def measure() -> Row:
    """Median of the rounds' medians; the peer is the same app's 404, which does everything but the sale."""
    with redis_server() as redis_url, dynamo_server("bench") as (dynamo_url, dynamo):
        secrets = lab.fresh_secrets()
        os.environ.update(
            {
                "PSX_STAGE": "local",
                "PSX_TABLE_PREFIX": PREFIX,
                "PSX_REDIS_URL": redis_url,
                "PSX_API_BASE_URL": "https://api.example",
                "PSX_GATEWAY_HOST": "gw.example",
                "PSX_GATEWAY_HTTP_PORT": "7000",
                "PSX_GATEWAY_SOCKS_PORT": "7001",
                "PSX_SECRET_PEPPER": secrets.pepper,
                "PSX_SEALING_KEY": secrets.sealing_key,
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
        )
        from local.bootstrap import bootstrap  # noqa: PLC0415 - with the settings above

        bootstrap(dynamo, PREFIX, 0)
        logging.disable(logging.INFO)  # a line per request would drown the table
        dynamo.run(write_setting(f"{PREFIX}guard", "sale", {"ok": True}, 0))
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


def _round(target: str, status: int) -> float:
    from functions.x402.handler import handler  # noqa: PLC0415 - with the settings above

    event = http_event(HttpRequest("GET", target, (("host", "api.example"),), b"", "127.20.0.1"))
    spent = []
    for _ in range(CALLS_PER_ROUND):
        began = time.perf_counter()
        answer: Any = handler(event, None)
        spent.append((time.perf_counter() - began) * 1000)
        if answer["statusCode"] != status:
            raise RuntimeError(f"{target} answered {answer['statusCode']}")
    return statistics.median(spent)
