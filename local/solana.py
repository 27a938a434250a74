"""The Solana chain of the lab: Surfpool with USDC at its real mint; wallets that pay by real SPL transfers."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import urllib.request
from typing import Any, Final

from solana.rpc.async_api import AsyncClient
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

USDC_MINT: Final = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
TOKEN_PROGRAM: Final = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
ATA_PROGRAM: Final = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
LAMPORTS: Final = 10**9
DECIMALS: Final = 6
CONFIRM_TIMEOUT_S: Final = 15.0
CONFIRM_POLL_S: Final = 0.1
_TRANSFER_CHECKED: Final = 12


class SolanaChain:
    """Talks to Surfpool."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _call(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            parsed = json.loads(answer.read())
        if "error" in parsed:
            raise RuntimeError(f"{method}: {parsed['error']}")
        return parsed["result"]

    def genesis(self) -> str:
        """What names this chain."""
        return str(self._call("getGenesisHash"))

    async def prepare(self, recipient: str, *other_mints: str) -> None:
        """Put USDC (and any other mint) on the chain, and open the recipient's token accounts."""
        for mint in (USDC_MINT, *other_mints):
            data = struct.pack("<I32sQBBI32s", 0, bytes(32), 10**15, DECIMALS, 1, 0, bytes(32))
            account = {
                "lamports": LAMPORTS,
                "owner": str(TOKEN_PROGRAM),
                "executable": False,
                "data": data.hex(),
            }
            await asyncio.to_thread(self._call, "surfnet_setAccount", mint, account)
            await self._tokens(recipient, mint, 0)

    async def _tokens(self, owner: str, mint: str, amount: int) -> None:
        await asyncio.to_thread(
            self._call, "surfnet_setTokenAccount", owner, mint, {"amount": amount}, str(TOKEN_PROGRAM)
        )

    async def wallet(self, amount_micro: int, *other_mints: str) -> Keypair:
        """A new wallet with lamports and tokens."""
        keypair = Keypair()
        owner = str(keypair.pubkey())
        account = {
            "lamports": LAMPORTS,
            "owner": "11111111111111111111111111111111",
            "executable": False,
            "data": "",
        }
        await asyncio.to_thread(self._call, "surfnet_setAccount", owner, account)
        for mint in (USDC_MINT, *other_mints):
            await self._tokens(owner, mint, amount_micro)
        return keypair

    async def pay(self, wallet: Keypair, recipient: str, amount_micro: int, mint: str = USDC_MINT) -> str:
        """Transfer tokens and wait until the chain has confirmed it; answers the signature."""
        async with AsyncClient(self.url) as client:
            latest = (await client.get_latest_blockhash()).value.blockhash
            transaction = _transfer(
                wallet, Pubkey.from_string(recipient), Pubkey.from_string(mint), amount_micro, latest
            )
            signature = str(transaction.signatures[0])
            raw = base64.b64encode(bytes(transaction)).decode()
            await asyncio.to_thread(self._call, "sendTransaction", raw, {"encoding": "base64"})
        await self._confirmed(signature)
        return signature

    async def _confirmed(self, signature: str) -> None:
        async with asyncio.timeout(CONFIRM_TIMEOUT_S):
            while True:
                status = (await asyncio.to_thread(self._call, "getSignatureStatuses", [signature]))["value"][
                    0
                ]
                if status is not None and status.get("err") is not None:
                    raise RuntimeError(f"the transfer failed: {status['err']}")
                if status is not None and status.get("confirmationStatus") in {"confirmed", "finalized"}:
                    return
                await asyncio.sleep(CONFIRM_POLL_S)


def token_account(owner: Pubkey, mint: Pubkey) -> Pubkey:
    """The associated token account."""
    return Pubkey.find_program_address([bytes(owner), bytes(TOKEN_PROGRAM), bytes(mint)], ATA_PROGRAM)[0]


def _transfer(
    wallet: Keypair, recipient: Pubkey, mint: Pubkey, amount: int, latest: Hash
) -> VersionedTransaction:
    payer = wallet.pubkey()
    accounts = [
        AccountMeta(token_account(payer, mint), is_signer=False, is_writable=True),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(token_account(recipient, mint), is_signer=False, is_writable=True),
        AccountMeta(payer, is_signer=True, is_writable=False),
    ]
    data = struct.pack("<BQB", _TRANSFER_CHECKED, amount, DECIMALS)
    message = MessageV0.try_compile(payer, [Instruction(TOKEN_PROGRAM, data, accounts)], [], latest)
    return VersionedTransaction(message, [wallet])


def new_address() -> str:
    """An address to be paid at."""
    return str(Keypair().pubkey())


def new_mint() -> str:
    """The address of a mint that is not USDC."""
    return str(Keypair().pubkey())
