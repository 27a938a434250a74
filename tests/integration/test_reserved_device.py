"""A reserved device from end to end: the API, a real relay, gateway and peer on the same stores."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway_node.sessions import SessionKeeper
from local import lab
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from tests.support.dataplane import ACCOUNT, Plane, echo, until
from tests.support.functions import Functions
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
POOL = "/v1/private-pool/pak1/leases"
ANSWERED_WITHIN_S = 20.0


class Bed:
    """The API beside a data plane."""

    def __init__(self, plane: Plane, functions: Functions, api_key: str) -> None:
        self.plane = plane
        self._functions = functions
        self._headers = {"x-api-key": api_key}

    async def call(self, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
        """An answer of the API, asked off the loop."""
        reply = await asyncio.to_thread(self._functions.call, path, method, body, self._headers)
        return {"status": reply.status, **reply.body}

    async def reserve(self, **more: Any) -> tuple[dict[str, Any], str]:
        """A lease and its path."""
        lease = await self.call(POOL, "POST", {"country": "us", "ipType": "mobile", **more})
        assert lease["status"] == "active", lease
        return lease, f"/v1/private-pool/leases/{lease['id']}"

    async def rotation(self, path: str) -> dict[str, Any]:
        """How the rotation of a lease went, when its device has said."""
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            while (found := (await self.call(path))["rotation"])["state"] == "asked":
                await asyncio.sleep(0.05)
        return dict(found)


@pytest_asyncio.fixture
async def bed(
    plane: Plane, dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> AsyncIterator[Bed]:
    functions = Functions(dynoxide, valkey_url, lab_files)
    functions.held_at_most(100)
    text = new_api_key()
    dynoxide.run(access.put_account(PREFIX + "access", Account(ACCOUNT, AccountKind.RESELLER, now_ms())))
    key = ApiKey(token_hash(text), ACCOUNT, frozenset({Scope.RESELL}), now_ms())
    dynoxide.run(access.put_api_key(PREFIX + "access", key))
    keeper = SessionKeeper(plane.redis, now_ms)
    plane.pipeline.tunnels.sessions = keeper
    plane.tasks.append(asyncio.create_task(keeper.follow()))
    yield Bed(plane, functions, text)
    functions.close()


async def test_a_device_is_reserved_used_rotated_and_released(bed: Bed) -> None:
    plane, turned = bed.plane, asyncio.Event()

    async def turn() -> None:
        turned.set()

    await plane.add_peer("phone", rotate=turn)
    lease, path = await bed.reserve()
    assert lease["endpointId"] == "phone"
    username, port = lease["proxy"]["username"], await plane.target(echo)
    _, writer, head = await plane.connect(port, username=f"{ACCOUNT}-peer-us")
    assert " 502 " in head, "nobody else is routed to it"
    writer.close()
    reader, writer = await plane.tunnel(port, username=username)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"

    before = set(plane.sockets_of("phone"))
    asked = await bed.call(f"{path}/rotate", "POST")
    assert asked["rotation"]["state"] == "asked"
    told = await bed.rotation(path)
    assert (told["state"], told["error"], told["addressChanged"]) == ("done", None, False)
    assert turned.is_set()
    assert not before & set(plane.sockets_of("phone")), "it dialled again from where it is now"
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after", "a tunnel of v2 is carried on"

    assert (await bed.call(path, "DELETE"))["released"] is True
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b"", "its tunnel is cut"
    _, refused, head = await plane.connect(port, username=username)
    assert " 502 " in head
    _, free, head = await plane.connect(port, username=f"{ACCOUNT}-peer-us")
    assert " 200 " in head, "it is free for others"
    for one in (writer, refused, free):
        one.close()


async def test_a_peer_that_cannot_rotate_says_so_and_a_stopped_owner_wins(bed: Bed) -> None:
    plane = bed.plane
    await plane.add_peer("desk", protocol="binary-v1")
    lease, path = await bed.reserve(failover="strict")
    await bed.call(f"{path}/rotate", "POST")
    told = await bed.rotation(path)
    assert (told["state"], told["error"]) == ("refused", "not_supported")
    peer, task = plane.peers[0]
    peer.stop()
    await task
    await until(lambda: not plane.sockets_of("desk"))
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        while (await bed.call(path))["status"] == "active":
            await asyncio.sleep(0.05)
    _, writer, head = await plane.connect(await plane.target(echo), username=lease["proxy"]["username"])
    assert " 502 " in head
    writer.close()
