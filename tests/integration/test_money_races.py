"""Top-ups and flushes at once, a secret that changes in mid-transfer, clocks that disagree: exact sums, prompt cuts."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from pydantic import SecretStr

from functions.sealing import envelope
from local import lab
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.kernel.money import BYTES_PER_GB
from shared.metering.live import flush, read_used
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.table import put_batch, usage_days
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.settlement.service import Tables, roll_up
from tests.support.dataplane import ACCOUNT, Plane, until
from tests.support.functions import PREFIX, Functions
from tests.support.gateway import Download, StartsGateway, pour

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
KEYS = "/v1/reseller/pool-keys"
AT_ONCE = 50
RATES = dict.fromkeys(("mobile", "residential", "datacenter", "unknown"), 1_000_000)
TABLES = Tables(*(PREFIX + name for name in ("usage", "access", "ledger", "devices")))


@pytest.fixture
def functions(dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynoxide, valkey_url, lab_files)
    yield made
    made.close()


def batch(pak_id: str, gateway: int, sequence: int, at_ms: int | None = None) -> FlushBatch:
    key = LineKey(
        PakId(pak_id), AccountId("psx_reseller1"), DeviceId(f"d{gateway}"), AccountId("psx_s"), Country("us"), Pool.MBL,
        IpType.MOBILE,
    )  # fmt: skip
    return FlushBatch(
        GatewayId(f"g{gateway}"), sequence, at_ms or now_ms(), (UsageLine(key, 1000 + gateway, 7),)
    )


def until_written(functions: Functions, path: str, headers: dict[str, str]) -> None:
    """A client that repeats under its key until it knows."""
    while True:
        reply = functions.call(path, "POST", {"addTrafficGB": 0.001}, headers)
        if reply.status == 200:
            return
        assert reply.status in {409, 429, 503}, reply


def test_fifty_top_ups_and_fifty_flushes_at_once_add_up_exactly(
    dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> None:
    containers = [Functions(dynoxide, valkey_url, lab_files) for _ in range(4)]
    for one in containers[1:]:
        one.api_wiring, one.sale_wiring = containers[0].api_wiring, containers[0].sale_wiring
    me = {"x-api-key": containers[-1].keys.reseller}
    pak_id = containers[0].call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me).body["id"]
    for one in containers:  # a container serves one request at a time, and builds its models with the first
        assert one.call(f"{KEYS}/{pak_id}/topup", "POST", {}, me).status == 400
    redis = SyncRedis(valkey_url)

    def top_up(number: int) -> None:
        keyed = me | {"idempotency-key": f"top-up-{number:04d}"}
        until_written(containers[number % 4], f"{KEYS}/{pak_id}/topup", keyed)

    def flushed(number: int) -> None:
        one = batch(pak_id, number % 8, number // 8)
        total = {PakId(pak_id): one.lines[0].total_bytes}
        for _ in range(2):  # every flush is sent twice: an answer that got lost
            while True:
                try:
                    dynoxide.run(put_batch(TABLES.usage, one))
                    break
                except StoreUnavailable:
                    time.sleep(0.05)
        redis.run(flush(GatewayId(f"one-{number}"), 0, total))
        redis.run(flush(GatewayId(f"one-{number}"), 0, total))

    def rolled(_: int) -> None:
        try:
            roll_up(dynoxide, TABLES, RATES, now_ms())
        except StoreUnavailable:
            time.sleep(0.05)  # two runs met on a row; the next one goes on

    with ThreadPoolExecutor(12) as threads:
        work = [threads.submit(top_up, n) for n in range(AT_ONCE)]
        work += [threads.submit(flushed, n) for n in range(AT_ONCE)]
        work += [threads.submit(rolled, n) for n in range(6)]
        for job in work:
            job.result()
    while roll_up(dynoxide, TABLES, RATES, now_ms()).applied:
        pass
    expected = sum(1000 + number % 8 + 7 for number in range(AT_ONCE))
    pak = dynoxide.run(access.get_pak(TABLES.access, PakId(pak_id)))
    assert pak is not None
    assert (pak.cap_bytes, pak.used_bytes) == (BYTES_PER_GB + AT_ONCE * 1_000_000, expected)
    days = dynoxide.run(usage_days(TABLES.usage, f"pak#{pak_id}", "2000-01-01", 10)).rows
    assert sum(up + down for _, up, down in days) == expected
    assert redis.run(read_used(PakId(pak_id))) == expected
    history = containers[0].call(f"{KEYS}/{pak_id}/audit?action=topup", headers=me).body
    assert len(history) == AT_ONCE
    redis.close()
    for one in containers:
        one.close()


@pytest.mark.parametrize("skew_ms", [-3 * 86_400_000, -120_000, 120_000, 3 * 86_400_000])
def test_a_gateway_whose_clock_is_wrong_loses_and_doubles_nothing(functions: Functions, skew_ms: int) -> None:
    me = {"x-api-key": functions.keys.reseller}
    pak_id = functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": 1}, me).body["id"]
    for sequence, at_ms in enumerate((now_ms(), now_ms() + skew_ms, now_ms())):
        for _ in range(2):
            functions.dynamo.run(put_batch(TABLES.usage, batch(pak_id, 1, sequence, at_ms)))
            roll_up(functions.dynamo, TABLES, RATES, now_ms())
    pak = functions.dynamo.run(access.get_pak(TABLES.access, PakId(pak_id)))
    assert pak is not None
    assert pak.used_bytes == 3 * 1008
    days = functions.dynamo.run(usage_days(TABLES.usage, f"pak#{pak_id}", "2000-01-01", 10)).rows
    assert sum(up + down for _, up, down in days) == 3 * 1008


async def test_a_new_secret_cuts_the_old_ones_transfer_within_a_second(
    plane: Plane,
    dynoxide: SyncDynamo,
    valkey_url: str,
    lab_files: lab.LabFiles,
    gateway_process: StartsGateway,
) -> None:
    functions = Functions(dynoxide, valkey_url, lab_files)
    # The gateway process finds secrets under the plane's pepper.
    update = {"secret_pepper": SecretStr("00" * 32)}
    settings = functions.api_wiring.settings.model_copy(update=update)
    functions.api_wiring = replace(functions.api_wiring, settings=settings, box=envelope(settings))
    text = new_api_key()
    dynoxide.run(access.put_account(TABLES.access, Account(ACCOUNT, AccountKind.RESELLER, now_ms())))
    dynoxide.run(
        access.put_api_key(
            TABLES.access, ApiKey(token_hash(text), ACCOUNT, frozenset({Scope.RESELL}), now_ms())
        )
    )
    me = {"x-api-key": text}
    made = await asyncio.to_thread(functions.call, KEYS, "POST", {"label": "k", "trafficCapGB": 100}, me)
    await plane.add_peer("p1")
    port = await plane.target(pour)
    gateways = [gateway_process(port, name) for name in ("gw-a", "gw-b")]
    await asyncio.gather(*(gateway.start() for gateway in gateways))
    downloads = [Download(await g.connect(port, made.body["key"]), slow=True) for g in gateways]
    await until(lambda: all(d.received > 500_000 for d in downloads), 20)
    path = f"{KEYS}/{made.body['id']}/regenerate"
    fresh = await asyncio.to_thread(functions.call, path, "POST", {}, me)
    answered = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*(d.task for d in downloads)), 1.0)
    assert time.monotonic() - answered < 1.0
    for gateway in gateways:
        _, writer, line = await gateway.ask(port, made.body["key"])
        assert " 407 " in line
        writer.close()
        again = Download(await gateway.connect(port, fresh.body["key"]), slow=False)
        await until(lambda d=again: d.received > 100_000, 10)  # type: ignore[misc]
        again.task.cancel()
        again._writer.close()
    functions.close()
