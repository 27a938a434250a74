"""`./psx up`: the network stays up, lists its exits, and says how to use it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Final

from local import lab
from local.client import call
from local.network import LocalNetwork, Ports
from local.paths import ROOT

WATCH_S: Final = 1.0
SETTLE_TIMEOUT_S: Final = 40
WALLET_MICRO: Final = 100_000_000


async def run_up(ports: Ports) -> int:
    """Serve until Ctrl-C or SIGTERM; raises PartFailed when a part ends by itself."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    _say("starting (a few seconds) …")
    async with LocalNetwork(ports) as net:
        await net.cloud.fire("validate_sale")
        net.cloud.start_clock()
        await asyncio.gather(*(net.start_peer(plan) for plan in lab.PEERS))
        for body in net.modem_registrations():
            await call(net.api_url + "/v1/farmer/modems", "POST", {"X-API-Key": net.keys.supplier}, body)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_exits_listed(net, stopping), SETTLE_TIMEOUT_S)
        if not stopping.is_set():
            await _tell(net)
        while not stopping.is_set():
            net.supervisor.check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WATCH_S)
        _say("stopping …")
    return 0


async def _exits_listed(net: LocalNetwork, stopping: asyncio.Event) -> None:
    """Wait until the modems are on sale."""
    while not stopping.is_set():
        await net.cloud.fire("list_exits")
        stock = (await call(net.api_url + "/v1/gateway/pool/stock")).body
        if stock["totals"]["mbl"] == len(lab.MODEMS):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), WATCH_S)


async def _tell(net: LocalNetwork) -> None:
    wallet = await net.evm.wallet(WALLET_MICRO)
    reseller = {"X-API-Key": net.keys.reseller}
    body = {"label": "up", "trafficCapGB": 1}
    key = (await call(net.api_url + "/v1/reseller/pool-keys", "POST", reseller, body)).body["key"]
    _say(f"""
API              {net.api_url}
HTTP proxy       127.0.0.1:{net.ports.http}
SOCKS5 proxy     127.0.0.1:{net.ports.socks}
target site      {net.target_url}/ip   (CA: {net.files.ca})
EVM node         {net.evm.url}   chain id 8453, USDC at its Base address, recipient {net.evm_recipient}
Solana node      {net.solana.url}   recipient {net.solana_recipient}
EVM wallet       {wallet.address}   100 USDC (worth nothing outside this machine)
reseller's key   psx_reseller1 : {key}
admin API key    {net.keys.admin}

buy    (cd {ROOT} && EVM_KEY={"0x" + bytes(wallet.key).hex()} {sys.executable} -m local.buy {net.api_url} {net.evm.url})
curl   curl --cacert {net.files.ca} -x http://psx_reseller1-peer-de:{key}@127.0.0.1:{net.ports.http} {net.target_url}/ip
watch  watch -n1 curl -s {net.api_url}/v1/gateway/pool/stock

Ctrl-C ends all of it.""")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
