"""A gateway that is killed with SIGKILL in mid-transfer: nothing that was counted is lost, nothing is billed twice."""

import asyncio
import signal

import pytest

from shared.kernel.ids import PakId
from shared.metering.live import read_used
from shared.metering.table import pending_batches
from shared.runtime.dynamo import SyncDynamo
from tests.support.dataplane import Plane, until
from tests.support.gateway import Download, StartsGateway, pour
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
TUNNELS = 3
BUFFER_MAX_BYTES = (512 + 256) * 1024
"""A customer's write buffer with one read on top: what may have left since the last look, and is not counted."""


@pytest.mark.parametrize("slow", [False, True], ids=["fast customer", "slow customer"])
@pytest.mark.parametrize("lives", [1, 3])
async def test_a_killed_gateway_bills_what_it_delivered_but_for_one_buffer(
    plane: Plane, dynoxide: SyncDynamo, gateway_process: StartsGateway, slow: bool, lives: int
) -> None:
    await plane.add_peer("p1")
    port = await plane.target(pour)
    gateway = gateway_process(port)
    delivered = 0
    for _ in range(lives):
        await gateway.start()
        downloads = [Download(await gateway.connect(port), slow=slow) for _ in range(TUNNELS)]
        before = delivered
        await until(lambda found=downloads: all(d.received > 1_500_000 for d in found), 20)  # type: ignore[misc]
        await gateway.end(signal.SIGKILL)
        await asyncio.gather(*(d.task for d in downloads))
        delivered = before + sum(d.received for d in downloads)
    await gateway.start()
    await gateway.end(signal.SIGTERM)
    batches = dynoxide.run(pending_batches(PREFIX + "usage", 100)).rows
    billed = sum(line.total_bytes for batch in batches for line in batch.lines)
    assert len({(b.gateway_id, b.sequence) for b in batches}) == len(batches)
    assert billed <= delivered
    assert delivered - billed <= lives * TUNNELS * BUFFER_MAX_BYTES
    assert await plane.redis.run(read_used(PakId("pak1"))) == billed
