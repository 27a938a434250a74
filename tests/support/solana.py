"""A real Solana runtime for tests, with USDC at its mint; wallets, and transactions of any shape."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.transaction import Transaction, VersionedTransaction

from local.paths import ROOT
from local.solana import ATA_PROGRAM, DECIMALS, LAMPORTS, TOKEN_PROGRAM, USDC_MINT, SolanaChain

TOKEN_2022: Final = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
MEMO_PROGRAM: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
SYSTEM: Final = Pubkey.from_string("11111111111111111111111111111111")
LOOKUP_PROGRAM: Final = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")
USDC: Final = Pubkey.from_string(USDC_MINT)
CONFIRM_BOUND_S: Final = 20.0
SLOT_MS: Final = 100
"""A quarter of Solana's: tests wait for confirmations most of their time."""
U64_MAX: Final = 2**64 - 1


class Surfnet(SolanaChain):
    """The chain of one test."""

    def call(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call."""
        return self._call(method, *params)

    def place(self, address: Pubkey, owner: Pubkey, data: bytes = b"") -> None:
        """Write an account."""
        found = {"lamports": LAMPORTS, "owner": str(owner), "executable": False, "data": data.hex()}
        self.call("surfnet_setAccount", str(address), found)

    def place_mint(self, mint: Pubkey = USDC, program: Pubkey = TOKEN_PROGRAM) -> None:
        """Write a mint of six decimals."""
        data = struct.pack("<I32sQBBI32s", 0, bytes(32), 10**15, DECIMALS, 1, 0, bytes(32))
        self.place(mint, program, data)

    def place_tokens(
        self,
        owner: Pubkey,
        amount: int,
        mint: Pubkey = USDC,
        at: Pubkey | None = None,
        program: Pubkey = TOKEN_PROGRAM,
    ) -> Pubkey:
        """Write a token account: the associated one, or one at any other address; answers where it is."""
        where = at or account_of(owner, mint, program)
        head = bytes(mint) + bytes(owner) + struct.pack("<Q", amount)
        rest = struct.pack("<I32sBI8sQI32s", 0, bytes(32), 1, 0, bytes(8), 0, 0, bytes(32))
        self.place(where, program, head + rest)
        return where

    def new_wallet(self, amount: int = 10_000_000) -> Keypair:
        """A wallet with lamports and USDC."""
        wallet = Keypair()
        self.place(wallet.pubkey(), SYSTEM)
        self.place_tokens(wallet.pubkey(), amount)
        return wallet

    def send(
        self,
        instructions: Sequence[Instruction],
        *signers: Keypair,
        legacy: bool = False,
        tables: Sequence[AddressLookupTableAccount] = (),
        wait: bool = True,
    ) -> str:
        """Send a transaction, which may fail on the chain, and wait until it is confirmed; answers its signature."""
        latest = Hash.from_string(self.call("getLatestBlockhash")["value"]["blockhash"])
        payer = signers[0].pubkey()
        made: Transaction | VersionedTransaction
        if legacy:
            made = Transaction(
                list(signers), Message.new_with_blockhash(list(instructions), payer, latest), latest
            )
        else:
            message = MessageV0.try_compile(payer, list(instructions), list(tables), latest)
            made = VersionedTransaction(message, list(signers))
        raw = base64.b64encode(bytes(made)).decode()
        self.call("sendTransaction", raw, {"encoding": "base64", "skipPreflight": True})
        signature = str(made.signatures[0])
        deadline = time.monotonic() + CONFIRM_BOUND_S
        while wait:
            found = self.call("getSignatureStatuses", [signature])["value"][0]
            if found and found.get("confirmationStatus") in {"confirmed", "finalized"}:
                break
            assert time.monotonic() < deadline, "never confirmed"
            time.sleep(0.05)
        return signature


@pytest.fixture
def surfnet() -> Iterator[Surfnet]:
    """A fresh chain with USDC."""
    command = ["node", str(ROOT / "local" / "solana_node.cjs"), str(SLOT_MS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT / "local"
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            chain = Surfnet(json.loads(process.stdout.readline())["rpcUrl"])
            chain.place_mint()
            yield chain
        finally:
            process.stdin.close()
            process.wait(10)


def account_of(owner: Pubkey, mint: Pubkey = USDC, program: Pubkey = TOKEN_PROGRAM) -> Pubkey:
    """The associated token account under a token program."""
    return Pubkey.find_program_address([bytes(owner), bytes(program), bytes(mint)], ATA_PROGRAM)[0]


def transfer(
    source: Pubkey,
    target: Pubkey,
    authority: Pubkey,
    amount: int,
    *,
    mint: Pubkey = USDC,
    program: Pubkey = TOKEN_PROGRAM,
    references: Sequence[Pubkey] = (),
) -> Instruction:
    """TransferChecked between token accounts, with reference keys behind as Solana Pay puts them."""
    accounts = [
        AccountMeta(source, is_signer=False, is_writable=True),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(target, is_signer=False, is_writable=True),
        AccountMeta(authority, is_signer=True, is_writable=False),
        *(AccountMeta(key, is_signer=False, is_writable=False) for key in references),
    ]
    return Instruction(program, struct.pack("<BQB", 12, amount, DECIMALS), accounts)


def open_account(payer: Pubkey, owner: Pubkey) -> Instruction:
    """Open an owner's associated token account."""
    accounts = [
        AccountMeta(payer, is_signer=True, is_writable=True),
        AccountMeta(account_of(owner), is_signer=False, is_writable=True),
        AccountMeta(owner, is_signer=False, is_writable=False),
        AccountMeta(USDC, is_signer=False, is_writable=False),
        AccountMeta(SYSTEM, is_signer=False, is_writable=False),
        AccountMeta(TOKEN_PROGRAM, is_signer=False, is_writable=False),
    ]
    return Instruction(ATA_PROGRAM, bytes([0]), accounts)


def hand_over(account: Pubkey, owner: Pubkey, to: Pubkey) -> Instruction:
    """SetAuthority: make a token account somebody else's."""
    accounts = [
        AccountMeta(account, is_signer=False, is_writable=True),
        AccountMeta(owner, is_signer=True, is_writable=False),
    ]
    return Instruction(TOKEN_PROGRAM, bytes([6, 2, 1]) + bytes(to), accounts)


def approve(account: Pubkey, delegate: Pubkey, owner: Pubkey, amount: int) -> Instruction:
    """Let a delegate move tokens."""
    accounts = [
        AccountMeta(account, is_signer=False, is_writable=True),
        AccountMeta(delegate, is_signer=False, is_writable=False),
        AccountMeta(owner, is_signer=True, is_writable=False),
    ]
    return Instruction(TOKEN_PROGRAM, struct.pack("<BQ", 4, amount), accounts)


def memo(text: str, signer: Pubkey) -> Instruction:
    """A signed memo."""
    return Instruction(MEMO_PROGRAM, text.encode(), [AccountMeta(signer, is_signer=True, is_writable=False)])


def lookup_table(chain: Surfnet, *addresses: Pubkey) -> AddressLookupTableAccount:
    """A table of addresses that v0 transactions load from."""
    where = Keypair().pubkey()
    head = struct.pack("<IQQBB32sH", 1, U64_MAX, 0, 0, 1, bytes(Keypair().pubkey()), 0)
    chain.place(where, LOOKUP_PROGRAM, head + b"".join(bytes(a) for a in addresses))
    return AddressLookupTableAccount(where, list(addresses))
