"""The gateway against strangers, in the whole network: refusals, keep-alive after a 407, bans, revocation."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from local import lab
from local.client import call, curl
from local.network import LocalNetwork
from shared.runtime.redis import command
from tests.support.network import LISTED_TIMEOUT_S, put_on_sale, reseller_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]
REVOKED_WITHIN_S = 1.0
WITHDRAWN_WITHIN_S = 5.0


class Lab:
    """A network with a few exits on sale, and a reseller's key."""

    def __init__(self, net: LocalNetwork, record: dict[str, Any]) -> None:
        self.net = net
        self.key = record["key"]
        self.key_id = record["id"]
        self.target = f"{lab.TARGET_NAME}:{net.ports.target}"

    def connect(self, target: str = "", username: str = "psx_reseller1-any-any", password: str = "") -> bytes:
        """A CONNECT with credentials."""
        given = base64.b64encode(f"{username}:{password or self.key}".encode()).decode()
        return (
            f"CONNECT {target or self.target} HTTP/1.1\r\nProxy-Authorization: Basic {given}\r\n\r\n".encode()
        )

    async def answer(self, *requests: bytes, source: str = "127.0.0.1") -> str:
        """The answer that the last of several requests on one connection gets."""
        local = (source, 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.net.ports.http, local_addr=local)
        head = b""
        try:
            async with asyncio.timeout(10):
                for request in requests:
                    writer.write(request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(
                        (h for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), b":0"
                    )
                    head += await reader.readexactly(int(length.split(b":")[1]))
        finally:
            writer.transport.abort()
        return head.decode()

    def proxy(self, username: str = "psx_reseller1-any-any") -> str:
        """The proxy URL for curl."""
        return f"http://{username}:{self.key}@127.0.0.1:{self.net.ports.http}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def psx() -> AsyncIterator[Lab]:
    async with LocalNetwork() as net:
        await put_on_sale(net, 3, modems=True)
        yield Lab(net, await reseller_key(net, "e2e"))


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("127.0.0.1:6379", 403, "E_SSRF_BLOCKED"),
        ("169.254.169.254:80", 403, "E_SSRF_BLOCKED"),
        ("10.0.0.1:443", 403, "E_SSRF_BLOCKED"),
        ("[::1]:443", 403, "E_SSRF_BLOCKED"),
        ("[::ffff:127.0.0.1]:80", 403, "E_SSRF_BLOCKED"),
        ("[64:ff9b::7f00:1]:80", 403, "E_SSRF_BLOCKED"),
        ("localhost:80", 403, "E_SSRF_BLOCKED"),
        ("127.1:80", 403, "E_SSRF_BLOCKED"),
        ("0177.0.0.1:80", 403, "E_SSRF_BLOCKED"),
        ("2130706433:80", 403, "E_SSRF_BLOCKED"),
        ("1.1.1.1:25", 403, "E_PORT_BLOCKED"),
    ],
)
async def test_targets_that_are_nobodys_business_are_refused(
    psx: Lab, target: str, status: int, code: str
) -> None:
    told = await psx.answer(psx.connect(target))
    assert told.startswith(f"HTTP/1.1 {status} ")
    assert f"{code}: " in told
    assert "X-Request-ID: " in told


async def test_a_407_keeps_the_connection_usable(psx: Lab) -> None:
    first = await psx.answer(f"CONNECT {psx.target} HTTP/1.0\r\n\r\n".encode())
    assert first.startswith("HTTP/1.1 407 ")
    both = await psx.answer(f"CONNECT {psx.target} HTTP/1.0\r\n\r\n".encode(), psx.connect())
    assert both.startswith("HTTP/1.1 200 ")


async def test_corrections_are_told_with_the_answer(psx: Lab) -> None:
    told = await psx.answer(psx.connect(username="psx_reseller1-xx-us-ttl-1"))
    assert told.startswith("HTTP/1.1 200 ")
    assert "X-PSX-Corrections: pool=any, ttl=60" in told


async def test_no_stock_names_an_alternative(psx: Lab) -> None:
    told = await psx.answer(psx.connect(username="psx_reseller1-mbl-jp"))
    assert "502" in told.split("\r\n")[0]
    assert "E_NO_STOCK_COUNTRY: nothing online matches JP; nearest alternative: US" in told


async def test_a_key_of_another_account_is_wrong(psx: Lab) -> None:
    told = await psx.answer(psx.connect(username="psx_x402pool-mbl-us"))
    assert "E_AUTH_INVALID" in told


async def test_failed_attempts_are_banned_and_a_valid_key_is_not(psx: Lab) -> None:
    assert (await psx.answer(psx.connect())).startswith("HTTP/1.1 200 ")
    source = lab.THIEF_ADDRESS
    told = [await psx.answer(psx.connect(password=f"wrong{n}"), source=source) for n in range(12)]
    assert "E_AUTH_INVALID" in told[0]
    assert "E_RATE_LIMITED_AUTH" in told[-1]
    assert (await psx.answer(psx.connect(), source=source)).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /relative HTTP/1.1\r\n\r\n",
        b"GET http://u@a.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT nonsense HTTP/1.1\r\n\r\n",
        b"BROKEN\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nX: " + b"a" * 20_000,
    ],
)
async def test_what_is_no_proxy_request_is_a_400(psx: Lab, request_: bytes) -> None:
    assert (await psx.answer(request_)).startswith("HTTP/1.1 400 ")


async def test_connections_at_once_are_spread_and_given_back(psx: Lab) -> None:
    ca = str(psx.net.files.ca)
    url = f"{psx.net.target_url}/bytes/300000"
    fetched = await asyncio.gather(*(curl(psx.proxy(), url, ca, keep_body=False) for _ in range(12)))
    assert [f.size for f in fetched] == [300_000] * 12
    async with asyncio.timeout(5):
        while psx.net.redis.run(command("KEYS", "*:lease:*", parse=list)):
            await asyncio.sleep(0.05)


async def test_a_deleted_key_loses_its_open_tunnels_within_a_second(psx: Lab) -> None:
    headers = {"X-API-Key": psx.net.keys.reseller}
    body = {"label": "short", "trafficCapGB": 1}
    made = (await call(psx.net.api_url + "/v1/reseller/pool-keys", "POST", headers, body)).body
    proxy = f"http://psx_reseller1-mbl-us:{made['key']}@127.0.0.1:{psx.net.ports.http}"
    ca = str(psx.net.files.ca)
    transfer = asyncio.create_task(curl(proxy, f"{psx.net.target_url}/slow/60000000", ca, keep_body=False))
    control = f"http://127.0.0.1:{psx.net.ports.target_control}/connections"
    async with asyncio.timeout(10):
        while not any(
            c["path"].startswith("/slow") and c["sent_bytes"] > 100_000 for c in (await call(control)).body
        ):
            await asyncio.sleep(0.05)
    await call(f"{psx.net.api_url}/v1/reseller/pool-keys/{made['id']}", "DELETE", headers)
    began = time.monotonic()
    cut = await transfer
    assert time.monotonic() - began < REVOKED_WITHIN_S
    assert cut.exit_code != 0
    again = await curl(proxy, psx.net.target_url + "/ip", ca)
    assert again.connect_status == 407


async def test_a_withdrawal_ends_a_devices_tunnels_within_seconds_and_the_device_with_them(psx: Lab) -> None:
    net, headers = psx.net, {"X-API-Key": psx.net.keys.supplier}
    part = await net.start_peer(lab.PEERS[6])  # the only one in Brazil
    async with asyncio.timeout(LISTED_TIMEOUT_S):
        while (await net.cloud.fire("list_exits"))["listed"] < 7:
            await asyncio.sleep(0.25)
    proxy, ca = psx.proxy("psx_reseller1-peer-br"), str(net.files.ca)
    transfer = asyncio.create_task(curl(proxy, f"{net.target_url}/slow/50000000", ca, keep_body=False))
    control = f"http://127.0.0.1:{net.ports.target_control}/connections"
    async with asyncio.timeout(10):
        while not any(
            c["path"] == "/slow/50000000" and c["sent_bytes"] > 100_000 for c in (await call(control)).body
        ):
            await asyncio.sleep(0.05)
    owned = (await call(f"{net.api_url}/v1/peer/my-devices", "GET", headers)).body["devices"]
    (device,) = [d for d in owned if d["name"] == lab.PEERS[6].name]
    part.expected_end = True
    began = time.monotonic()
    await call(f"{net.api_url}/v1/peer/my-devices/{device['deviceId']}/consent", "DELETE", headers)
    cut = await transfer
    assert time.monotonic() - began < WITHDRAWN_WITHIN_S
    assert cut.exit_code != 0
    async with asyncio.timeout(WITHDRAWN_WITHIN_S):
        assert await part.process.wait() == 2, "it does not agree again by itself"
    assert (await curl(proxy, net.target_url + "/ip", ca)).connect_status == 502
