"""Stock x402 clients buy from the sale over HTTP, with no code of ours in them: real functions, stores and chain."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from local.goods import put_goods
from local.network import LocalNetwork
from tests.support.stock_clients import SOURCES, node_folder, python_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]
CLIENT_BOUND_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sale() -> AsyncIterator[LocalNetwork]:
    """The functions with an open sale; no exits behind it."""
    network = LocalNetwork()
    try:
        await network.start_stores_and_chains()
        await network.start_cloud()
        report = await network.cloud.fire("validate_sale")
        assert report["exact"] is True, report
        put_goods(network.redis)
        yield network
    finally:
        await network.close()


def command(client: str) -> list[str]:
    if client == "buy.py":
        return [str(python_path()), str(SOURCES / client)]
    return [str(shutil.which("node")), str(node_folder() / client)]


async def run(client: str, url: str, key: str) -> dict[str, Any]:
    """What a client printed: status, settlement header and body."""
    arguments = await asyncio.to_thread(command, client)
    process = await asyncio.create_subprocess_exec(
        *arguments,
        url,
        cwd=Path(arguments[1]).parent,
        env={"PATH": os.environ["PATH"], "EVM_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), CLIENT_BOUND_S)
    assert process.returncode == 0, err.decode()
    told: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
    return told


@pytest.mark.parametrize("client", ["fetch_v2.mjs", "buy.py", "fetch_v1.mjs"])
async def test_a_stock_client_buys(sale: LocalNetwork, client: str) -> None:
    wallet = await sale.evm.wallet(1_000_000)
    told = await run(client, f"{sale.api_url}/v1/x402/pool?traffic=0.1", "0x" + wallet.key.hex())
    assert told["status"] == 200, told
    assert told["body"]["proxy"]["password"].startswith("pak_")
    assert told["body"]["credit"]["allocatedGB"] == 0.1
    settled = json.loads(base64.b64decode(told["settled"]))
    assert (settled["success"], settled["payer"]) == (True, wallet.address.lower())
    receipt = await asyncio.to_thread(
        sale.evm.call, "eth_getTransactionReceipt", told["body"]["payment"]["txHash"]
    )
    assert receipt["transactionHash"] == settled["transaction"]
    assert receipt["from"] == sale.gas_wallet.address.lower()
