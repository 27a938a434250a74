"""`python -m local.buy API_URL EVM_NODE_URL`: buy 0.1 GB as an agent does. The wallet's key is in EVM_KEY."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from local.client import Answer, call
from local.evm import EvmChain

PATH: Final = "/v1/x402/pool?traffic=0.1&country=us"
TRIES_MAX: Final = 10
WAIT_S: Final = 1.0


async def buy(api: str, node: str, wallet: LocalAccount, path: str = PATH) -> dict[str, Any]:
    """402, payment, credentials. Raises SystemExit with the API's words when it sells nothing."""
    quoted = await call(api + path)
    if quoted.status != 402:
        raise SystemExit(f"psx: {_words(quoted)}")
    rail = next(a for a in quoted.body["paymentRequirement"]["accepts"] if a["network"] == "base")
    paid = await EvmChain(node).pay(wallet, rail["payTo"], int(rail["maxAmountRequired"]))
    for _ in range(TRIES_MAX):
        answer = await call(api + path, headers={"Payment-Signature": paid})
        if answer.status == 200:
            bought: dict[str, Any] = answer.body
            return bought
        if answer.status != 503:
            break
        await asyncio.sleep(WAIT_S)
    raise SystemExit(f"psx: paid with {paid}, but: {_words(answer)}")


def _words(answer: Answer) -> str:
    return f"{answer.status} {answer.body.get('message', answer.body)}"


def main() -> int:
    """Buy, and print proxy and credit."""
    if len(sys.argv) != 3 or not os.environ.get("EVM_KEY"):
        sys.stderr.write("psx: usage: EVM_KEY=0x… python -m local.buy API_URL EVM_NODE_URL\n")
        return 2
    wallet: LocalAccount = Account.from_key(os.environ["EVM_KEY"])
    bought = asyncio.run(buy(sys.argv[1], sys.argv[2], wallet))
    sys.stdout.write(json.dumps({"proxy": bought["proxy"], "credit": bought["credit"]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
