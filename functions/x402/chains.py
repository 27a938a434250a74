"""The chains of this function, opened when the first payment needs them: a 402 never waits for an SDK to load."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from shared.chain.model import Network, ReadFailed, Verdict
from shared.sale.model import Payment
from shared.sale.rules import proof_text

if TYPE_CHECKING:
    from functions.x402.wiring import SaleSettings
    from shared.chain.reader import EvmReader, SolanaReader


class Chains:
    """Judges payments on either network."""

    def __init__(self, settings: SaleSettings) -> None:
        self._settings = settings

    @functools.cached_property
    def _evm(self) -> EvmReader:
        from shared.chain.reader import EvmReader  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        urls = s.evm_rpc_urls.split(",")
        return EvmReader(urls, s.evm_chain_id, s.evm_asset, s.evm_recipient, s.evm_confirmations)

    @functools.cached_property
    def _solana(self) -> SolanaReader:
        from shared.chain.reader import SolanaReader  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        return SolanaReader(s.solana_rpc_urls.split(","), s.solana_asset, s.solana_recipient)

    def judge(self, payment: Payment) -> Verdict:
        """The verdict on a payment."""
        reader = self._evm if payment.network == Network.BASE else self._solana
        return reader.judge(payment.tx_hash)

    def proves(self, payment: Payment, payer: str) -> bool:
        """Whether `proof` is the payer's signature of this payment: EIP-191 on EVM, Ed25519 on Solana."""
        text = proof_text(payment.network, payment.tx_hash)
        try:
            if payment.network == Network.BASE:
                return _evm_signer(text, payment.proof).lower() == payer.lower()
            return _solana_signed(text, payment.proof, payer)
        except (ValueError, TypeError, IndexError):
            return False

    def faults(self) -> list[str]:
        """What keeps this function from taking money; empty when nothing does."""
        found = []
        for name, reader in (("evm", self._evm), ("solana", self._solana)):
            try:
                found += reader.faults()
            except ReadFailed as failed:
                found.append(f"{name}: {failed.reason.value}")
        return found


def _evm_signer(text: str, proof: str) -> str:
    from eth_account import Account  # noqa: PLC0415 - loaded with the chain
    from eth_account.messages import encode_defunct  # noqa: PLC0415
    from eth_keys.exceptions import BadSignature  # noqa: PLC0415

    try:
        return str(
            Account.recover_message(
                encode_defunct(text=text), signature=bytes.fromhex(proof.removeprefix("0x"))
            )
        )
    except BadSignature:
        return ""


def _solana_signed(text: str, proof: str, payer: str) -> bool:
    from solders.pubkey import Pubkey  # noqa: PLC0415 - loaded with the chain
    from solders.signature import Signature  # noqa: PLC0415

    signature = Signature.from_string(proof)
    return signature.verify(Pubkey.from_string(payer), text.encode())
