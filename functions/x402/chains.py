"""The chains of this function, opened when the first payment needs them: a 402 never waits for an SDK to load."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from shared.chain.model import Depth, Network, ReadFailed, UnknownReason, Verdict
from shared.runtime.settings import secret_bytes
from shared.sale.model import Payment
from shared.sale.rules import proof_text

if TYPE_CHECKING:
    from functions.x402.wiring import SaleSettings
    from shared.chain.nodes import Nodes
    from shared.chain.reader import EvmReader, SolanaReader
    from shared.chain.settler import EvmSettler

GAS_KEY_BYTES: Final = 32


class Chains:
    """Judges payments on either network."""

    def __init__(self, settings: SaleSettings) -> None:
        self._settings = settings

    @functools.cached_property
    def _evm_nodes(self) -> Nodes[Any]:
        from shared.chain.reader import evm_nodes  # noqa: PLC0415 - see the module's docstring

        return evm_nodes(self._settings.evm_rpc_urls.split(","))

    @functools.cached_property
    def _evm(self) -> EvmReader:
        from shared.chain.reader import EvmReader  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        return EvmReader(self._evm_nodes, s.evm_chain_id, s.evm_asset, s.evm_recipient)

    @functools.cached_property
    def _solana(self) -> SolanaReader:
        from shared.chain.reader import SolanaReader  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        return SolanaReader(s.solana_rpc_urls.split(","), s.solana_asset, s.solana_recipient)

    @functools.cached_property
    def _settler(self) -> EvmSettler:
        from shared.chain.settler import EvmSettler  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        key = secret_bytes(s.gas_key, GAS_KEY_BYTES)
        return EvmSettler(self._evm_nodes, s.evm_chain_id, s.evm_asset, key)

    def settler(self) -> EvmSettler:
        """The gas wallet. Raises ReadFailed when there is none."""
        if not self._settings.gas_key.get_secret_value():
            raise ReadFailed(UnknownReason.RAIL_CLOSED)
        return self._settler

    def judge(self, payment: Payment, depths: Sequence[Depth]) -> Verdict:
        """The verdict on a payment."""
        reader = self._evm if payment.network == Network.BASE else self._solana
        return reader.judge(payment.tx_hash, depths)

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

    def exact_faults(self) -> list[str]:
        """What keeps us from offering `exact`; the other rails do not depend on it."""
        try:
            return self.settler().faults()
        except ReadFailed as failed:
            return [f"exact: {failed.reason.value}"]


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
