"""Buys with the stock `x402` 2.x client of PyPI: python buy.py URL. The wallet's key is in EVM_KEY."""

import asyncio
import json
import os
import sys

from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.exact import ExactEvmScheme


async def main() -> None:
    """One request; the client pays by itself."""
    client = x402Client()
    client.register("eip155:*", ExactEvmScheme(Account.from_key(os.environ["EVM_KEY"])))
    async with x402HttpxClient(client, timeout=40) as http:
        answer = await http.get(sys.argv[1])
    settled = answer.headers.get("payment-response")
    print(json.dumps({"status": answer.status_code, "settled": settled, "body": answer.json()}))


asyncio.run(main())
