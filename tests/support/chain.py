"""A real EVM node for tests, with the token at USDC's address; and x402 payments as clients write them."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.evm import CHAIN_ID, USDC, EvmChain
from local.paths import ANVIL
from tests.support.stores import await_port, free_port


class Anvil(EvmChain):
    """The node of one test."""

    def balance_of(self, address: str) -> int:
        """micro-USDC of an address."""
        data = "0x70a08231" + address[2:].lower().rjust(64, "0")
        return int(self.call("eth_call", {"to": USDC, "data": data}, "latest"), 16)


@pytest.fixture
def anvil(tmp_path: Path) -> Iterator[Anvil]:
    """A fresh chain 8453 whose every transaction is a block."""
    port = free_port()
    command = [str(ANVIL), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID)]
    with (tmp_path / "anvil.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        await_port(process, port)
        chain = Anvil(f"http://127.0.0.1:{port}")
        chain.place_tokens()
        yield chain
    finally:
        process.terminate()
        process.wait(5)


def header(payload: dict[str, Any], accepted: dict[str, Any] | None = None) -> dict[str, str]:
    """A signed transfer in the header of an x402 v2 client (with what it accepted) or of a v1 client."""
    if accepted is None:
        v1 = {"x402Version": 1, "scheme": "exact", "network": "base", "payload": payload}
        return {"x-payment": encoded(v1)}
    return {"payment-signature": encoded({"x402Version": 2, "accepted": accepted, "payload": payload})}


def encoded(value: Any) -> str:
    """JSON as headers carry it."""
    return base64.b64encode(json.dumps(value).encode()).decode()
