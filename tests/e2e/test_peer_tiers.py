"""The flag of the peer tiers on the whole network: it turns on when keys stay within their IP type, and not otherwise."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from local import lab
from local.bootstrap import PRICES
from local.client import Answer, call, curl
from local.evm import USDC
from local.network import LocalNetwork
from local.stores import TESTER_MICRO
from shared.chain.eip3009 import balance_calldata
from shared.runtime.redis import command
from tests.support.network import put_on_sale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.asyncio(loop_scope="module")]
FLAG = "/v1/x402/admin/peer-tiers"
BUY = "/v1/x402/pool?traffic=0.1&tier=residential"
SETTINGS_KEPT_S = 5.5
TIER = {
    "price_micro_per_gb": 2_000_000,
    "min_bytes": 100_000_000,
    "max_bytes": 10**12,
    "quality": "homes",
    "ip_type": "residential",
}


class Lab:
    """A network with phones and homes on sale, and its admin."""

    def __init__(self, net: LocalNetwork) -> None:
        self.net = net

    async def admin(self, path: str, method: str, body: Any) -> Answer:
        return await call(self.net.api_url + path, method, {"X-API-Key": self.net.keys.admin}, body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def psx() -> AsyncIterator[Lab]:
    async with LocalNetwork() as net:
        await put_on_sale(net, 4)
        await net.cloud.fire("validate_sale")
        yield Lab(net)


async def turned(psx: Lab, on: bool) -> dict[str, Any]:
    """The flag as it stands when the job has run."""
    assert (await psx.admin(FLAG, "POST", {"on": on})).status == 202
    await psx.net.cloud.fire("test_peer_tiers")
    found: dict[str, Any] = (await psx.admin(FLAG, "GET", None)).body
    return found


async def held_by_tester(psx: Lab) -> int:
    call_of = {"to": USDC, "data": balance_calldata(psx.net.tester_wallet.address)}
    return int(await asyncio.to_thread(psx.net.evm.call, "eth_call", call_of, "latest"), 16)


async def off_and_unpriced(psx: Lab) -> None:
    refused = await call(psx.net.api_url + BUY)
    assert (refused.status, refused.body["message"]) == (400, "tier: allowed is mbl")
    unpriced = await turned(psx, True)
    assert (unpriced["on"], unpriced["faults"]) == (False, ["prices: no tier of peers is priced"])
    assert (await call(psx.net.api_url + FLAG, "POST", {}, {"on": True})).status == 401


async def refused_when_a_key_leaves_its_type(psx: Lab) -> None:
    prices = {**PRICES, "tiers": {**PRICES["tiers"], "residential": TIER}}
    assert (await psx.admin("/v1/admin/settings/prices", "PUT", prices)).status == 200
    await asyncio.sleep(SETTINGS_KEPT_S)
    redis = psx.net.redis
    devices = redis.run(command("SMEMBERS", "{peer}:listed:any", parse=lambda a: [d.decode() for d in a]))
    homes = []
    for device in devices:
        key = f"{{peer}}:live:{device}"
        if redis.run(command("HGET", key, "ip_type", parse=lambda a: a)) == b"residential":
            homes.append(key)
            redis.run(command("HSET", key, "ip_type", "mobile", parse=int))
    assert len(homes) == 2
    refused = await turned(psx, True)
    assert (refused["on"], "left through mobile" in str(refused["faults"])) == (False, True), refused
    assert await held_by_tester(psx) == TESTER_MICRO - 200_000  # the key was bought
    for key in homes:
        redis.run(command("HSET", key, "ip_type", "residential", parse=int))
    assert (await call(psx.net.api_url + BUY)).status == 400


async def sold_and_held_to_its_type(psx: Lab) -> None:
    tested = await turned(psx, True)
    assert (tested["on"], tested["tested"], tested["faults"]) == (True, ["residential"], []), tested
    again = await psx.net.cloud.fire("test_peer_tiers")
    assert again == {"wanted": True, "on": True, "due": False}
    assert await held_by_tester(psx) == TESTER_MICRO - 200_000  # and used again
    await asyncio.sleep(SETTINGS_KEPT_S)
    sheet = (await call(psx.net.api_url + "/v1/x402/pool/pricing")).body
    assert [t["tier"] for t in sheet["tiers"]] == ["mbl", "residential"]
    quoted = await call(psx.net.api_url + BUY)
    rail = quoted.body["paymentRequirement"]["accepts"][0]
    assert rail["maxAmountRequired"] == "200000"
    wallet = await psx.net.evm.wallet(1_000_000)
    paid = await psx.net.evm.pay(wallet, rail["payTo"], 200_000)
    bought = (await call(psx.net.api_url + BUY, headers={"Payment-Signature": paid})).body
    assert bought["proxy"]["allowed"]["ipTypes"] == ["residential"]
    name, secret = bought["proxy"]["username"], bought["proxy"]["password"]
    assert name.startswith("psx_x402pool-peer-any-iptype-residential")
    homes = {plan.address for plan in lab.PEERS[:4] if plan.name.startswith("home")}
    for username in (name, "psx_x402pool-mbl-us", "psx_x402pool-any-any-iptype-mobile-failover-any"):
        proxy = f"http://{username}:{secret}@127.0.0.1:{psx.net.ports.http}"
        answer = await curl(proxy, f"{psx.net.target_url}/ip", str(psx.net.files.ca))
        assert json.loads(answer.body)["ip"] in homes, username
    off = await turned(psx, False)
    assert (off["wanted"], off["on"], off["tested"]) == (False, False, [])
    await asyncio.sleep(SETTINGS_KEPT_S)
    assert (await call(psx.net.api_url + BUY)).status == 400


async def test_the_flag_turns_on_only_while_keys_stay_within_their_type(psx: Lab) -> None:
    await off_and_unpriced(psx)
    await refused_when_a_key_leaves_its_type(psx)
    await sold_and_held_to_its_type(psx)
