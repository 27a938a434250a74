"""The users of the cache on real servers: what each must not do is refused, from its own hands and within a script."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from local.cache_users import access_list, access_strings
from shared.access.live import first_in
from shared.grading.live import count_conduct, report_fault
from shared.grading.model import Fared
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId, RelayId
from shared.metering import live as metering
from shared.pool import live
from shared.pool.model import Endpoint, Presence
from shared.pool.numbers import derive
from shared.pool.numbers import run as run_steps
from shared.pool.ports import PortWish, hold_port, let_go, tend_holds
from shared.pool.presence import (
    MOVE_PEERS,
    REVOKE_DEVICE,
    beat_relay,
    put_presence,
    read_presence,
    renew_presence,
)
from shared.pool.rotation import Outcome, RotationState, ask_rotation, tell_rotated
from shared.pool.sessions import CLOSED, close_session, closings, leave_word, publish_closed
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, SyncRedis
from shared.supply.live import put_regions
from tests.support.cache_use import PASSWORDS, REFUSED
from tests.support.permissions import as_function, as_node

pytestmark = pytest.mark.slow

WISH = PortWish(Pool.MBL, None, "", "", private=False)
NODES = ("relay", "gateway", "prober")
FUNCTIONS = ("api", "x402", "jobs")
SOLD = ["HSET {peer}:ep:d country us", "SADD {peer}:listed:any d", "SADD {mbl}:listed:us d"]
ROUTED = ["HSET {peer}:sess:pak1:s endpoint d", "SADD {peer}:free:any d", "HSET {peer}:lease:g d|p 1"]
COUNTED = ["HSET {meter}:used pak1 0", "HSET {meter}:cap pak1 9", "HGET {meter}:used pak1"]
QUOTED = ["GET quote:q", "SET quote:q 1"]
HELD = ["HSET {peer}:reserved:l endpoint_id d"]
REVOKED = ["SET {peer}:revoked:d 0", "DEL {peer}:revoked:d", "SET {peer}:revoked-account:a 9"]
TOLD = ["SET supply:regions {}", "SET {live}:rollup 1", "DEL {peer}:closed:key:pak1"]
ORDERS = [f"PUBLISH {channel} x" for channel in (live.REVOKE_PAK, REVOKE_DEVICE, MOVE_PEERS, CLOSED)]
PRESENT = ["HSET {peer}:live:d relay_id r", "SET {peer}:relay:r life"]
OPERATED = [
    "FLUSHALL",
    "KEYS *",
    "CONFIG GET *",
    "ACL LIST",
    "CLIENT LIST",
    "SCRIPT FLUSH",
    "MONITOR",
    "SHUTDOWN NOSAVE",
]
FORBIDDEN = {
    "relay": [*SOLD, *ROUTED, *COUNTED, *QUOTED, *HELD, *REVOKED, *TOLD, *ORDERS, "SUBSCRIBE closed"],
    "gateway": [*SOLD, *QUOTED, *REVOKED, "SET supply:regions {}", *PRESENT, ORDERS[1], ORDERS[2]],
    "prober": [*SOLD, *ROUTED, *COUNTED, *QUOTED, *HELD, *REVOKED, *TOLD, *ORDERS, *PRESENT],
    "api": [*QUOTED, "HSET {peer}:lease:g d|p 1", *PRESENT],
    "x402": [*ROUTED, *REVOKED, "SET supply:regions {}", *PRESENT, *ORDERS[1:]],
    "jobs": [*ROUTED[:1], *QUOTED, *REVOKED, *PRESENT, *ORDERS[1:3]],
}


@pytest.fixture
def users(valkey_url: str) -> Iterator[dict[str, Any]]:
    """A client of each user on one empty server."""
    clients: dict[str, Any] = {
        user: redis.Redis.from_url(valkey_url, username=user, password=password)
        for user, password in PASSWORDS.items()
    }
    yield clients
    for client in clients.values():
        client.close()


def test_there_is_a_user_for_each_program_and_kind_of_function() -> None:
    assert set(access_strings()) == {*NODES, *FUNCTIONS} == set(FORBIDDEN)


@pytest.mark.parametrize("user", FORBIDDEN)
def test_a_user_is_refused_what_is_not_its_own(users: dict[str, Any], user: str) -> None:
    done = []
    for text in [*FORBIDDEN[user], *OPERATED]:
        try:
            users[user].execute_command(*text.split())
            done.append(text)
        except redis.exceptions.NoPermissionError:
            pass
    assert done == []


@pytest.mark.parametrize("text", [*SOLD, *ROUTED, *COUNTED, *REVOKED])
def test_a_script_of_a_stolen_relay_may_do_no_more_than_the_relay(users: dict[str, Any], text: str) -> None:
    words = ", ".join(f"'{word}'" for word in text.split())
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|NOPERM"):
        users["relay"].eval(f"return redis.call({words})", 0)
    with pytest.raises(redis.exceptions.NoPermissionError):
        users["relay"].eval("return 1", 1, text.split()[1])


def test_a_server_of_ours_lets_nobody_in_without_a_name() -> None:
    lines = access_list(PASSWORDS, ("operator", "secret")).splitlines()
    assert "user default off" in lines
    assert not any(password in line for line in lines for password in (*PASSWORDS.values(), "secret"))


async def test_executors_log_in_and_a_refusal_says_what_it_is(any_valkey_url: str) -> None:
    login = ("gateway", PASSWORDS["gateway"])
    sync, nodes = SyncRedis(any_valkey_url, login), AsyncRedis(any_valkey_url, login)
    allowed = metering.open_meter(PakId("pak1"), 5, None)
    assert (sync.run(allowed).used_bytes, (await nodes.run(allowed)).used_bytes) == (5, 5)
    assert await nodes.run(read_presence(DeviceId("d"))) is None
    assert sync.run(read_presence(DeviceId("d"))) is None
    assert sync.run(live.gateways(Pool.PEER)) == frozenset()
    refused = live.unlist_endpoint(Pool.PEER, EndpointId("d"))
    with pytest.raises(StoreUnavailable, match=f"^{REFUSED}$"):
        sync.run(refused)
    with pytest.raises(StoreUnavailable, match=f"^{REFUSED}$"):
        await nodes.run(refused)
    messages = nodes.messages(live.REVOKE_PAK)
    assert await anext(messages) == ("", "")
    await messages.aclose()  # type: ignore[attr-defined]
    sync.close()
    await nodes.close()


async def test_a_wrong_password_is_unavailable_and_is_not_said(valkey_url: str) -> None:
    login = ("relay", "hunter2")
    sync, nodes = SyncRedis(valkey_url, login), AsyncRedis(valkey_url, login)
    beat = beat_relay(RelayId("r"), "life")
    with pytest.raises(StoreUnavailable) as told:
        sync.run(beat)
    with pytest.raises(StoreUnavailable) as told_nodes:
        await nodes.run(beat)
    assert not any("hunter2" in str(found.value) for found in (told, told_nodes))
    sync.close()
    await nodes.close()


async def test_what_programs_do_beside_what_other_tests_drive_is_allowed(valkey_url: str) -> None:
    nodes = AsyncRedis(valkey_url)
    gateway = GatewayId("g")
    device = Presence(
        device_id=DeviceId("d-1"), account_id=AccountId("a"), relay_id=RelayId("r"), mesh_host="127.0.0.1", mesh_port=1,
        protocol="binary-v2", ip="192.0.2.1", country=Country("us"), ip_type=IpType.MOBILE, asn=1, isp="Lab",
        connected_at_ms=1,
    )  # fmt: skip
    with as_node("relay"):
        assert await nodes.run(put_presence(device)) == (0, 0)
        assert await nodes.run(renew_presence([device.device_id], device.relay_id)) == [True]
        assert not await nodes.run(tell_rotated(device.device_id, "r1", Outcome(RotationState.DONE, 1)))
    with as_node("gateway"):
        for call in (*live.beat(Pool.PEER, gateway), live.publish_revoke_pak(PakId("pak1"))):
            await nodes.run(call)
        assert await nodes.run(report_fault(device.device_id, doubtful=True))
        assert await nodes.run(count_conduct([Fared(device.device_id, "c0", 5, 0)])) == 0
        assert await nodes.run(live.gateways(Pool.PEER)) == {gateway}
        assert await nodes.run(live.leftover(Pool.PEER, gateway)) == ()
        assert await nodes.run(first_in("pak1:told", 60))
        assert not await nodes.run(close_session(Pool.PEER, AccountId("a"), PakId("pak1"), "s", 1))
        assert await nodes.run(closings(Pool.PEER, ["key:pak1"])) == {}
    await nodes.close()
    functions = SyncRedis(valkey_url)
    functions.run(live.list_endpoint(Endpoint(
        EndpointId("d-1"), Pool.PEER, AccountId("a"), Country("us"), "lab", 1, "Lab", IpType.MOBILE, SpeedTier.FAST,
    )))  # fmt: skip
    with as_function("x402"):
        assert functions.run(live.listed_ids(Pool.PEER)) == {"d-1"}
        assert functions.run(read_presence(device.device_id)) == device
    with as_function("live-numbers"):
        assert run_steps(functions, derive()).stock["peer"] == {"us": 1}
    with as_function("keep-leases"):
        assert functions.run(tend_holds(Pool.PEER, ["l"], 1)) == [None]
        for call in ask_rotation(device.device_id, "r1", 1):
            functions.run(call)
        functions.run(leave_word(Pool.PEER, "session:peer:pak1:s", 1))
        functions.run(publish_closed("session:peer:pak1:s"))
        assert not functions.run(let_go(Pool.PEER, "l"))
        assert functions.run(hold_port(WISH, "l", AccountId("a"), PakId("pak1"), 2, 1)) is None
    with as_function("list-exits"):
        functions.run(put_regions({}))
    functions.close()
