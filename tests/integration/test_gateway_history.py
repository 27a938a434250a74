"""What gateways write into keys' histories: uses, failures, and the end of a key's time, once over all gateways."""

import asyncio
from typing import Any

import pytest

from shared.access import table as access
from shared.access.model import Account, AccountKind, DisabledReason
from shared.guard.table import account_log, entries
from shared.kernel.ids import AccountId, PakId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo, until
from tests.support.gateway import StartsGateway
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
KEY = PakId("pak1")
TOLD_WITHIN_S = 5.0


def actions(dynamo: SyncDynamo, stream: str = f"pak#{KEY}") -> list[str]:
    rows = dynamo.run(entries(PREFIX + "audit", stream, 100, forward=True)).rows
    return [entry.event.action for entry in rows]


async def told(dynamo: SyncDynamo, wanted: list[str], stream: str = f"pak#{KEY}") -> None:
    def found() -> bool:
        return actions(dynamo, stream) == wanted

    await until(found, TOLD_WITHIN_S)


async def test_a_use_and_a_failure_are_told_once_with_where_they_came_from(
    plane: Plane, dynoxide: SyncDynamo, gateway_process: StartsGateway
) -> None:
    dynoxide.run(access.put_account(PREFIX + "access", Account(ACCOUNT, AccountKind.RESELLER, now_ms())))
    await plane.add_peer("p1")
    port = await plane.target(echo)
    gateways = [gateway_process(port, name) for name in ("gw-a", "gw-b")]
    await asyncio.gather(*(gateway.start() for gateway in gateways))
    for gateway in gateways * 2:
        (await gateway.connect(port))[1].close()
    await told(dynoxide, ["gateway_auth_success"])
    for gateway in gateways * 2:
        _, writer, line = await gateway.ask(port, "pak_" + "0" * 24)
        assert " 407 " in line
        writer.close()
    await told(dynoxide, ["gateway_auth_failure"], f"auth#{ACCOUNT}")
    log: Any = dynoxide.run(account_log(PREFIX + "audit", ACCOUNT, 10)).rows
    assert [entry.event.action for _, entry in log] == ["gateway_auth_failure", "gateway_auth_success"]
    assert {entry.event.ip for _, entry in log} == {"127.0.0.1"}
    assert all(len(entry.event.request_id) > 8 for _, entry in log)
    assert log[0][1].event.metadata["reason"] == "E_AUTH_INVALID"
    assert SECRET not in str(log)
    assert "pak_" not in str(log)


async def test_a_made_up_account_gets_no_log(
    plane: Plane, dynoxide: SyncDynamo, gateway_process: StartsGateway
) -> None:
    port = await plane.target(echo)
    gateway = gateway_process(port)
    await gateway.start()
    assert dynoxide.run(access.get_account(PREFIX + "access", AccountId(ACCOUNT))) is None
    _, writer, line = await gateway.ask(port, "pak_" + "0" * 24)
    assert " 407 " in line
    writer.close()
    await asyncio.sleep(0.5)
    assert actions(dynoxide, f"auth#{ACCOUNT}") == []
    assert dynoxide.run(account_log(PREFIX + "audit", ACCOUNT, 10)).rows == ()


async def test_a_key_whose_time_is_over_is_cut_and_suspended_once_over_all_gateways(
    plane: Plane, dynoxide: SyncDynamo, gateway_process: StartsGateway
) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    gateways = [gateway_process(port, name) for name in ("gw-a", "gw-b")]
    await asyncio.gather(*(gateway.start() for gateway in gateways))
    ends = now_ms() + 2_500
    dynoxide.run(access.change(PREFIX + "access", KEY, {"expires_at_ms": ends}, now_ms()))
    streams = [await gateway.connect(port) for gateway in gateways]
    for reader, writer in streams:
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
    for reader, writer in streams:
        with pytest.raises(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert ends <= now_ms() < ends + 2_000
    await told(dynoxide, ["gateway_auth_success", "auto_suspended_expired"])
    pak = dynoxide.run(access.get_pak(PREFIX + "access", KEY))
    assert pak is not None
    assert (pak.enabled, pak.disabled_reason) == (False, DisabledReason.EXPIRED)
    _, writer, line = await gateways[0].ask(port)
    assert " 407 " in line
    writer.close()
    await told(dynoxide, ["gateway_auth_success", "auto_suspended_expired", "gateway_auth_failure"])
