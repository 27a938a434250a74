"""The EVM chain of the lab: anvil as chain 8453, a USDC-like token at Base's real USDC address, and wallets that pay."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from typing import Any, Final

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3

from local.paths import CACHE, ROOT
from shared.chain.eip3009 import typed_data
from shared.chain.model import Authorization

CHAIN_ID: Final = 8453
USDC: Final = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
FAKE_TOKEN: Final = "0xfA4E000000000000000000000000000000000001"  # noqa: S105 - an address
GAS_BALANCE_WEI: Final = 10**18
WALLET_MICRO: Final = 10_000_000
_SOURCES: Final = ROOT / "local" / "contracts"


def contract_code(name: str) -> str:
    """Runtime bytecode of a contract of the lab, compiled once per source."""
    source = (_SOURCES / f"{name}.vy").read_text("utf-8")
    cached = CACHE / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.hex"
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

    def call(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call. Raises RuntimeError when the node says no."""
        answer = self._web3.provider.make_request(method, list(params))  # type: ignore[arg-type]  # anvil's own methods
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def prepare(self) -> None:
        """Put the token at USDC's address, and the same code at another one as the fake."""
        await asyncio.to_thread(self.place_tokens)

    def place_tokens(self) -> None:
        """`prepare`, blocking."""
        code = contract_code("usdc")
        for address in (USDC, FAKE_TOKEN):
            self.call("anvil_setCode", address, code)
        self.call("evm_mine")  # a view at the genesis block sees a clock that has not begun

    async def wallet(self, usdc_micro: int) -> LocalAccount:
        """A new wallet with gas and tokens, real and fake."""
        return await asyncio.to_thread(self.new_wallet, usdc_micro)

    def new_wallet(self, usdc_micro: int = WALLET_MICRO) -> LocalAccount:
        """`wallet`, blocking."""
        account: LocalAccount = Account.create()
        self.call("anvil_setBalance", account.address, hex(GAS_BALANCE_WEI))
        for token in (USDC, FAKE_TOKEN):
            self.set_balance(token, account.address, usdc_micro)
        return account

    def set_balance(self, token: str, address: str, usdc_micro: int) -> None:
        """Write a balance into the token's storage."""
        slot = keccak(bytes(32) + bytes(12) + bytes.fromhex(address[2:]))
        value = "0x" + usdc_micro.to_bytes(32, "big").hex()
        self.call("anvil_setStorageAt", token, "0x" + slot.hex(), value)

    async def give_gas(self, address: str) -> None:
        """Enough to pay for many transactions."""
        await asyncio.to_thread(self.call, "anvil_setBalance", address, hex(GAS_BALANCE_WEI))

    async def pay(self, wallet: LocalAccount, recipient: str, amount_micro: int, token: str = USDC) -> str:
        """Transfer tokens and wait for the receipt; answers the transaction hash."""
        return await asyncio.to_thread(self._pay, wallet, recipient, amount_micro, token)

    def _pay(self, wallet: LocalAccount, recipient: str, amount_micro: int, token: str) -> str:
        data = "0xa9059cbb" + recipient[2:].lower().rjust(64, "0") + amount_micro.to_bytes(32, "big").hex()
        return self.send(wallet, token, data)

    def send(self, wallet: LocalAccount, to: str, data: str) -> str:
        """Call a contract and wait for the receipt; answers the transaction hash. Raises RuntimeError when it reverts."""
        signed = wallet.sign_transaction(
            {
                "to": Web3.to_checksum_address(to),
                "data": HexStr(data),
                "value": 0,
                "gas": 200_000,
                "maxFeePerGas": 2_000_000_000,
                "maxPriorityFeePerGas": 1,
                "nonce": self._web3.eth.get_transaction_count(wallet.address),
                "chainId": CHAIN_ID,
            }
        )
        sent = self._web3.eth.send_raw_transaction(signed.raw_transaction)
        receipt = self._web3.eth.wait_for_transaction_receipt(sent, timeout=10, poll_latency=0.02)
        if receipt["status"] != 1:
            raise RuntimeError("the transaction was reverted")
        return "0x" + bytes(sent).hex()


def sign_authorization(
    wallet: LocalAccount,
    recipient: str,
    amount_micro: int,
    *,
    valid_after_s: int = 0,
    valid_before_s: int | None = None,
    nonce: bytes | None = None,
    token: str = USDC,
    chain_id: int = CHAIN_ID,
) -> dict[str, Any]:
    """The payload of an `exact` payment, as any x402 client makes it (EIP-3009)."""
    before = valid_before_s if valid_before_s is not None else int(time.time()) + 300
    unsigned = Authorization(
        wallet.address.lower(),
        recipient.lower(),
        amount_micro,
        valid_after_s,
        before,
        "0x" + (nonce or secrets.token_bytes(32)).hex(),
        "0x" + "00" * 65,
    )
    signed = wallet.sign_message(encode_typed_data(full_message=typed_data(unsigned, chain_id, token)))
    return {
        "signature": "0x" + bytes(signed.signature).hex(),
        "authorization": {
            "from": unsigned.payer,
            "to": unsigned.recipient,
            "value": str(amount_micro),
            "validAfter": str(valid_after_s),
            "validBefore": str(before),
            "nonce": unsigned.nonce,
        },
    }


def new_account() -> LocalAccount:
    """A wallet with nothing in it."""
    account: LocalAccount = Account.create()
    return account


def new_address() -> str:
    """An address to be paid at."""
    return str(Account.create().address)
