"""A network on this machine with a few exits on sale, and a reseller's keys."""

import asyncio
from typing import Any, Final

from local import lab
from local.client import call
from local.network import LocalNetwork

LISTED_TIMEOUT_S: Final = 40


async def put_on_sale(net: LocalNetwork, peers: int, *, modems: bool = False) -> None:
    """Let so many peers, and the modems, enrol, and wait until all of them are listed."""
    await asyncio.gather(*(net.start_peer(plan) for plan in lab.PEERS[:peers]))
    farm = net.modem_registrations() if modems else []
    for body in farm:
        await call(net.api_url + "/v1/farmer/modems", "POST", {"X-API-Key": net.keys.supplier}, body)
    async with asyncio.timeout(LISTED_TIMEOUT_S):
        while (await net.cloud.fire("list_exits"))["listed"] < peers + len(farm):
            await asyncio.sleep(0.25)


async def reseller_key(net: LocalNetwork, label: str) -> dict[str, Any]:
    """A key of the reseller for a GB."""
    headers, body = {"X-API-Key": net.keys.reseller}, {"label": label, "trafficCapGB": 1}
    made: dict[str, Any] = (await call(net.api_url + "/v1/reseller/pool-keys", "POST", headers, body)).body
    return made
