"""Sessions over two real gateways: what they carried is told, and closing one cuts its tunnels everywhere in a second."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from local import lab
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.kernel.codes import Pool
from shared.pool.sessions import leave_word
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from tests.support.dataplane import ACCOUNT, Plane, echo, until
from tests.support.functions import Functions
from tests.support.gateway import GatewayProcess, StartsGateway
from tests.support.permissions import as_node
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
SESSIONS = "/v1/gateway/pool/my-sessions"
CUT_WITHIN_S = 4.0
"""Promised is a second; the API, its stores and other tests share this machine."""
TOLD_WITHIN_S = 10.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bed:
    """Two gateways, and the API on the same stores."""

    def __init__(
        self, functions: Functions, headers: dict[str, str], gateways: list[GatewayProcess], port: int
    ):
        self.functions = functions
        self.headers = headers
        self.gateways = gateways
        self.port = port

    async def open(self, gateway: int, sid: str | None) -> Streams:
        """A tunnel that is seen to carry bytes."""
        name = f"{ACCOUNT}-peer-us" + (f"-sid-{sid}-rot-sticky" if sid else "")
        reader, writer = await self.gateways[gateway].connect(self.port, username=name)
        writer.write(b"x" * 1000)
        assert await reader.readexactly(1000) == b"x" * 1000
        return reader, writer

    async def reopened(self, gateway: int, sid: str) -> Streams:
        """A tunnel that begins after a closing and stays. One that begins before its gateway has heard of it does not."""
        async with asyncio.timeout(CUT_WITHIN_S):
            while True:
                with contextlib.suppress(ConnectionError, EOFError):
                    streams = await self.open(gateway, sid)
                    if not await is_cut(streams, 0.3):
                        return streams
                    streams[1].close()

    async def api(self, path: str, method: str = "GET") -> Any:
        """An answer of the API, asked off the loop."""
        reply = await asyncio.to_thread(self.functions.call, path, method, None, self.headers)
        assert reply.status == 200, reply
        return reply.body


async def is_cut(streams: Streams, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await streams[0].read(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest_asyncio.fixture
async def bed(
    plane: Plane,
    dynoxide: SyncDynamo,
    valkey_url: str,
    lab_files: lab.LabFiles,
    gateway_process: StartsGateway,
) -> AsyncIterator[Bed]:
    functions = Functions(dynoxide, valkey_url, lab_files)
    text = new_api_key()
    dynoxide.run(access.put_account(PREFIX + "access", Account(ACCOUNT, AccountKind.RESELLER, now_ms())))
    key = ApiKey(token_hash(text), ACCOUNT, frozenset({Scope.RESELL}), now_ms())
    dynoxide.run(access.put_api_key(PREFIX + "access", key))
    await plane.add_peer("p1")
    port = await plane.target(echo)
    gateways = [gateway_process(port, name) for name in ("gw-a", "gw-b")]
    await asyncio.gather(*(gateway.start() for gateway in gateways))
    yield Bed(functions, {"x-api-key": text}, gateways, port)
    functions.close()


async def test_bytes_and_requests_of_a_session_are_the_sum_over_all_gateways(bed: Bed) -> None:
    streams = [await bed.open(0, "a"), await bed.open(1, "a")]

    async def told() -> dict[str, Any]:
        return dict((await bed.api(SESSIONS))["sessions"][0])

    deadline = time.monotonic() + TOLD_WITHIN_S
    while (shown := await told())["requestCount"] < 2:
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.2)
    assert (shown["bytesOut"], shown["bytesIn"], shown["rotation"]) == (2000, 2000, "sticky")
    streams[0][1].write(b"y" * 500)
    await streams[0][0].readexactly(500)
    streams[0][1].close()
    deadline = time.monotonic() + TOLD_WITHIN_S
    while (shown := await told())["bytesOut"] < 2500:
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.2)
    assert (shown["bytesOut"], shown["bytesIn"], shown["requestCount"]) == (2500, 2500, 2)
    streams[1][1].close()


async def test_closing_a_session_cuts_its_tunnels_at_every_gateway_and_no_others(bed: Bed) -> None:
    mine = [await bed.open(0, "a"), await bed.open(1, "a")]
    others = [await bed.open(0, "b"), await bed.open(1, None)]
    listed = (await bed.api(SESSIONS))["sessions"]
    (key,) = (s["sessionKey"] for s in listed if s["sessionId"] == "a")
    closing = asyncio.create_task(bed.api(f"{SESSIONS}/{key}", "DELETE"))
    assert all(await asyncio.gather(*(is_cut(s, CUT_WITHIN_S) for s in mine)))
    await closing
    assert not any(await asyncio.gather(*(is_cut(s, 0.3) for s in others)))
    assert [s["sessionId"] for s in (await bed.api(SESSIONS))["sessions"]] == ["b"]
    again = await bed.reopened(0, "a")
    for _, writer in (*mine, *others, again):
        writer.close()


@pytest.mark.parametrize("query", ["", "?pakId=pak1"])
async def test_closing_all_cuts_everything_named_or_not(bed: Bed, query: str) -> None:
    mine = [await bed.open(0, "a"), await bed.open(1, "b"), await bed.open(1, None)]
    closing = asyncio.create_task(bed.api(SESSIONS + query, "DELETE"))
    assert all(await asyncio.gather(*(is_cut(s, CUT_WITHIN_S) for s in mine)))
    assert await closing == {"closed": 2}
    again = await bed.reopened(0, "a")
    for _, writer in (*mine, again):
        writer.close()


async def test_a_gateway_that_missed_the_push_finds_the_word_of_it(plane: Plane) -> None:
    from gateway_node.sessions import SessionKeeper

    keeper = SessionKeeper(plane.redis, now_ms)
    plane.pipeline.tunnels.sessions = keeper
    await plane.add_peer("p1")
    port = await plane.target(echo)
    streams = await plane.tunnel(port, username=f"{ACCOUNT}-peer-us-sid-a")
    other = await plane.tunnel(port, username=f"{ACCOUNT}-peer-us-sid-b")
    name = "session:peer:pak1:a"
    await plane.redis.run(leave_word(Pool.PEER, name, now_ms()))
    with as_node("gateway"):
        follower = asyncio.create_task(keeper.follow())
    plane.tasks.append(follower)
    assert await is_cut(streams, 2)
    assert not await is_cut(other, 0.3)
    later = await plane.tunnel(port, username=f"{ACCOUNT}-peer-us-sid-a")
    assert not await is_cut(later, 0.3)
    await until(lambda: len(plane.meter.all_tunnels()) == 2)
    for _, writer in (streams, other, later):
        writer.close()
