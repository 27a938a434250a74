"""Real prober processes on one queue: one is killed in the middle of a probe, and another one finishes its work."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway_node.prober.target import TargetService
from local import lab
from local.modem import Modem as Farm
from shared.access.secrets import SecretBox
from shared.grading import table as grades
from shared.grading.live import ask_probe, next_probe
from shared.kernel.ids import DeviceId
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis, command
from shared.supply import table as devices
from tests.contract.test_listing import modem
from tests.support.dataplane import until
from tests.support.gateway import ROOT
from tests.support.lab import pem_keys
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
PRIVATE, PUBLIC = pem_keys()
ASKING = "probers and targets know it"
LEASES = "{probe}:leases"
START_MAX_S = 30.0


class Exit:
    """A modem that holds its connections until it is told to work."""

    def __init__(self) -> None:
        self.works = asyncio.Event()
        self.held = 0
        self._farm = Farm("user", "word", "127.0.0.1")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.held += 1
        await self.works.wait()
        await self._farm.serve(reader, writer)


@asynccontextmanager
async def prober(env: dict[str, str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A prober of its own process; whatever the test comes to, it is gone."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway_node.prober", env=env, cwd=ROOT, stdout=out, stderr=out
        )
    try:
        said = functools.partial(log.read_text, "utf-8")
        await until(lambda: process.returncode is not None or "prober ready" in said(), START_MAX_S)
        assert process.returncode is None, said()[-2000:]
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def environment(
    stores: tuple[str, str], files: lab.LabFiles, targets: list[dict[str, object]]
) -> dict[str, str]:
    dynamo_url, redis_url = stores
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL_DYNAMODB": dynamo_url,
        "AWS_ACCESS_KEY_ID": "t",
        "AWS_SECRET_ACCESS_KEY": "t",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "PSX_STAGE": "local",
        "PSX_TABLE_PREFIX": PREFIX,
        "PSX_REDIS_URL": redis_url,
        "PSX_MESH_TOKEN": "m" * 40,
        "PSX_SECRET_PEPPER": "00" * 32,
        "PSX_SEALING_KEY": "00" * 32,
        "PSX_ASN_MMDB": str(files.asn_mmdb),
        "PSX_COUNTRY_MMDB": str(files.country_mmdb),
        "PSX_ASN_CLASSES": str(files.asn_classes),
        "PSX_PROBE_TARGETS": json.dumps(targets),
        "PSX_PROBE_TARGET_KEYS": PUBLIC,
        "PSX_PROBE_ASKING_KEY": ASKING,
        "PSX_PROBE_CA_FILE": str(files.ca),
    }


@asynccontextmanager
async def target(place: str, files: lab.LabFiles) -> AsyncIterator[dict[str, object]]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.target_cert)
    service = TargetService(place, PRIVATE, ASKING, lambda: int(time.time()))
    servers = [await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=how) for how in (tls, None)]
    port, plain = (server.sockets[0].getsockname()[1] for server in servers)
    yield {
        "place": place,
        "name": lab.TARGET_NAME,
        "address": "127.0.0.1",
        "port": port,
        "plainPort": plain,
    }
    for server in servers:
        server.close()


async def test_a_killed_probers_work_is_done_by_another_one(
    dynoxide: SyncDynamo, dynoxide_url: str, valkey_url: str, lab_files: lab.LabFiles, tmp_path: Path
) -> None:
    redis, exit_ = SyncRedis(valkey_url), Exit()
    farm = await asyncio.start_server(exit_.serve, "127.0.0.1", 0)
    device_id = DeviceId("m1")
    sealed = SecretBox(bytes(32), bytes(32)).seal("user:word", f"modem#{device_id}")
    where = {"modem_host": "127.0.0.1", "modem_port": farm.sockets[0].getsockname()[1], "sealed": sealed}
    await asyncio.to_thread(dynoxide.run, devices.create(PREFIX + "devices", modem("m1", **where)))

    def grade() -> Callable[[], object]:
        asked = grades.get_grade(PREFIX + "grades", device_id)
        return lambda: dynoxide.run(asked)

    async with target("eu", lab_files) as eu, target("us", lab_files) as us:
        env = environment((dynoxide_url, valkey_url), lab_files, [eu, us])
        redis.run(ask_probe(device_id))
        async with prober(env, tmp_path / "first.log") as first:
            await until(lambda: exit_.held == 1, START_MAX_S)
            first.send_signal(signal.SIGKILL)
            await first.wait()
        exit_.works.set()
        assert grade()() is None, "it died before it wrote anything"
        async with prober(env, tmp_path / "second.log"):
            assert redis.run(command("ZCARD", LEASES, parse=int)) == 1, (
                "nobody touches it while its lease lasts"
            )
            redis.run(command("ZADD", LEASES, 1, device_id, parse=int))  # its minute is over
            await until(grade(), START_MAX_S)
            await until(lambda: redis.run(command("ZCARD", LEASES, parse=int)) == 0)
    found = dynoxide.run(grades.get_grade(PREFIX + "grades", device_id))
    assert found is not None
    assert (found.passes, found.failures, found.version) == (1, 0, 1)
    assert redis.run(next_probe(device_id)) is not None
    farm.close()
    redis.close()
