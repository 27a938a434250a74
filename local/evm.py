"""The EVM chain of the lab: anvil as chain 8453, a USDC-like token at Base's real USDC address, and wallets that pay."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3

from local.paths import CACHE, ROOT

CHAIN_ID: Final = 8453
USDC: Final = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
FAKE_TOKEN: Final = "0xfA4E000000000000000000000000000000000001"  # noqa: S105 - an address
GAS_BALANCE_WEI: Final = 10**18
_SOURCE: Final = ROOT / "local" / "contracts" / "usdc.vy"


def token_code() -> str:
    """Runtime bytecode of the token, compiled once per source."""
    source = _SOURCE.read_text("utf-8")
    cached = CACHE / f"usdc-{hashlib.sha256(source.encode()).hexdigest()[:16]}.hex"
    if not cached.exists():
        from vyper.compiler import compile_code  # noqa: PLC0415 - a slow import that only the first run needs

        code = compile_code(source, output_formats=["bytecode_runtime"])["bytecode_runtime"]
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(".part")
        part.write_text(code)
        part.replace(cached)
    return cached.read_text()


class EvmChain:
    """Talks to anvil; blocking calls run in threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._web3 = Web3(HTTPProvider(url, request_kwargs={"timeout": 10}))

    def _call(self, method: str, *params: Any) -> Any:
        answer = self._web3.provider.make_request(method, list(params))  # type: ignore[arg-type]  # anvil's own methods
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def prepare(self) -> None:
        """Put the token at USDC's address, and the same code at another one as the fake."""
        code = await asyncio.to_thread(token_code)
        for address in (USDC, FAKE_TOKEN):
            await asyncio.to_thread(self._call, "anvil_setCode", address, code)

    async def wallet(self, usdc_micro: int) -> LocalAccount:
        """A new wallet with gas and tokens, real and fake."""
        account: LocalAccount = Account.create()
        await asyncio.to_thread(self._call, "anvil_setBalance", account.address, hex(GAS_BALANCE_WEI))
        for token in (USDC, FAKE_TOKEN):
            slot = keccak(bytes(32) + bytes(12) + bytes.fromhex(account.address[2:]))
            value = "0x" + usdc_micro.to_bytes(32, "big").hex()
            await asyncio.to_thread(self._call, "anvil_setStorageAt", token, "0x" + slot.hex(), value)
        return account

    async def pay(self, wallet: LocalAccount, recipient: str, amount_micro: int, token: str = USDC) -> str:
        """Transfer tokens and wait for the receipt; answers the transaction hash."""
        return await asyncio.to_thread(self._pay, wallet, recipient, amount_micro, token)

    def _pay(self, wallet: LocalAccount, recipient: str, amount_micro: int, token: str) -> str:
        data = "0xa9059cbb" + recipient[2:].lower().rjust(64, "0") + amount_micro.to_bytes(32, "big").hex()
        signed = wallet.sign_transaction(
            {
                "to": Web3.to_checksum_address(token),
                "data": HexStr(data),
                "value": 0,
                "gas": 100_000,
                "maxFeePerGas": 2_000_000_000,
                "maxPriorityFeePerGas": 1,
                "nonce": self._web3.eth.get_transaction_count(wallet.address),
                "chainId": CHAIN_ID,
            }
        )
        sent = self._web3.eth.send_raw_transaction(signed.raw_transaction)
        receipt = self._web3.eth.wait_for_transaction_receipt(sent, timeout=10, poll_latency=0.02)
        if receipt["status"] != 1:
            raise RuntimeError("the transfer was reverted")
        return "0x" + bytes(sent).hex()


def new_address() -> str:
    """An address to be paid at."""
    return str(Account.create().address)
