"""Enrolment's own cost: registrations through the real handler, and addresses classified, each beside its floor."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import maxminddb

from benchmarks.row import OURS, Goal, Reading, Row, compare
from benchmarks.stores import dynamo_server, redis_server
from local import lab
from local.api_gateway import http_event
from local.bootstrap import bootstrap
from local.http_server import HttpRequest
from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.clock import new_id
from shared.runtime.dynamo import SyncDynamo
from shared.supply import table as devices
from shared.supply.model import Device, Kind, Origin
from shared.supply.origin import OriginReader

ROUNDS: Final = 5
REGISTRATIONS_PER_ROUND: Final = 100
LOOKUPS_PER_ROUND: Final = 100_000
PREFIX: Final = "psx-bench-"
STORE_ALONE: Final = "same_transaction_alone"
READER_ALONE: Final = "maxminddb_alone"
CALLERS: Final = 4
FLEET: Final = 5_000
FLEET_WITHIN_S: Final = 60
_NUMBERS: Final = itertools.count()


@contextlib.contextmanager
def _stores() -> Iterator[tuple[str, SyncDynamo]]:
    """(API key, executor): empty stores, and an environment in which the API function finds them."""
    with (
        redis_server() as redis_url,
        dynamo_server("bench") as (dynamo_url, dynamo),
        tempfile.TemporaryDirectory() as folder,
    ):
        secrets, files = lab.fresh_secrets(), lab.write_files(Path(folder))
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
                "PSX_MASTER_KEY": secrets.master_key,
                "PSX_SEALING_KEY": secrets.sealing_key,
                "PSX_JWT_PRIVATE_KEY": secrets.jwt_private,
                "PSX_JWT_PUBLIC_KEY": secrets.jwt_public,
                "PSX_RELAYS": lab.relays_setting({"eu": 1, "us": 2}),
                "PSX_ASN_MMDB": str(files.asn_mmdb),
                "PSX_COUNTRY_MMDB": str(files.country_mmdb),
                "PSX_ASN_CLASSES": str(files.asn_classes),
                "AWS_ENDPOINT_URL_DYNAMODB": dynamo_url,
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
                "AWS_DEFAULT_REGION": "eu-central-1",
            }
        )
        logging.disable(logging.INFO)  # a line per request would drown the table
        yield bootstrap(dynamo, PREFIX, 0).supplier, dynamo


def registrations() -> Row:
    """New devices a second through the Lambda handler; the peer is the one transaction that they cannot do without."""
    with _stores() as (api_key, dynamo):
        ours: list[Reading] = []
        alone: list[Reading] = []
        for _ in range(ROUNDS):
            ours.append(_register_round(api_key))
            alone.append(_create_round(dynamo))
    return compare(
        "registrations", "a second", {OURS: ours, STORE_ALONE: alone}, [Goal(STORE_ALONE, 0.1), Goal("", 25)]
    )


def fleet() -> Row:
    """A fleet of one account comes up: callers in processes of their own, as the cloud would have them.

    Every device registers once, from one of a thousand addresses; any answer but 200 fails the row.
    """
    spawn, share = multiprocessing.get_context("spawn"), FLEET // CALLERS
    warm = [(FLEET + n, FLEET + n + 1) for n in range(CALLERS)]
    shares = [(n * share, (n + 1) * share) for n in range(CALLERS)]
    with _stores() as (api_key, _), ProcessPoolExecutor(CALLERS, spawn) as callers:
        keys = [api_key] * CALLERS
        list(callers.map(_register, keys, warm))
        began = time.perf_counter()
        cpu_s = sum(callers.map(_register, keys, shares))
        took = time.perf_counter() - began
    ours = [Reading(FLEET / took, cpu_s / FLEET * 1e6)]
    return compare("fleet_of_5000", "a second", {OURS: ours}, [Goal("", FLEET / FLEET_WITHIN_S)])


def _register_round(api_key: str) -> Reading:
    numbers = tuple(itertools.islice(_NUMBERS, REGISTRATIONS_PER_ROUND))
    began = time.perf_counter()
    cpu_s = _register(api_key, (numbers[0], numbers[-1] + 1))
    took = time.perf_counter() - began
    return Reading(REGISTRATIONS_PER_ROUND / took, cpu_s / REGISTRATIONS_PER_ROUND * 1e6)


def _register(api_key: str, numbers: tuple[int, int]) -> float:
    """Register devices, one after another; answers the CPU seconds of this process."""
    logging.disable(logging.INFO)
    from functions.api.handler import handler  # noqa: PLC0415 - with the settings of `_stores`

    cpu = time.process_time()
    for number in range(*numbers):
        body = {
            "name": f"bench-{number}",
            "type": "bench",
            "apiKey": api_key,
            "consent": {"termsVersion": "2026-11", "method": "flag"},
        }
        headers = (("host", "api.example"), ("content-type", "application/json"))
        source = f"127.{10 + number % 4}.1.{number // 4 % 250 + 1}"
        path = "/v1/peer/agents/register"
        request = HttpRequest("POST", path, headers, json.dumps(body).encode(), source)
        answer: Any = handler(http_event(request), None)  # type: ignore[arg-type]  # no context is needed
        if answer["statusCode"] != 200:
            raise RuntimeError(f"registration answered {answer['statusCode']}: {answer['body']}")
    return time.process_time() - cpu


def _create_round(dynamo: SyncDynamo) -> Reading:
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(REGISTRATIONS_PER_ROUND):
        ident = DeviceId(f"agent_{new_id(16)}")
        device = Device(
            ident, AccountId("psx_bench"), ident, Kind.AGENT, Origin(), "", "eu", number, shard=number % 16
        )
        if dynamo.run(devices.create(f"{PREFIX}devices", device)) is not None:
            raise RuntimeError("the account is full")
    took = time.perf_counter() - began
    return Reading(
        REGISTRATIONS_PER_ROUND / took, (time.process_time() - cpu) / REGISTRATIONS_PER_ROUND * 1e6
    )


def classification() -> Row:
    """Addresses a second, to country, ASN and class; the peer asks the two files and makes nothing of the answers."""
    with tempfile.TemporaryDirectory() as folder:
        files = lab.write_files(Path(folder))
        reader = OriginReader(files.asn_mmdb, files.country_mmdb)
        asn, country = (maxminddb.open_database(f) for f in (files.asn_mmdb, files.country_mmdb))
        dice = random.Random(7)
        found = [dice.choice(lab.NETWORKS).host(dice.randrange(1, 255)) for _ in range(LOOKUPS_PER_ROUND)]
        ours, alone = [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for address in found:
                reader.lookup(address)
            ours.append(Reading(LOOKUPS_PER_ROUND / (time.perf_counter() - began)))
            began = time.perf_counter()
            for address in found:
                asn.get(address)
                country.get(address)
            alone.append(Reading(LOOKUPS_PER_ROUND / (time.perf_counter() - began)))
        for opened in (reader, asn, country):
            opened.close()
    return compare("ip_classification", "a second", {OURS: ours, READER_ALONE: alone}, [Goal("", 50_000)])
