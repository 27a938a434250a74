"""The chains of this function, opened when the first payment needs them: a 402 never waits for an SDK to load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from shared.chain.model import Depth, Network, ReadFailed, Reading, UnknownReason
from shared.runtime.settings import secret_bytes
from shared.sale.model import Payment, Statement
from shared.sale.rules import proof_text, proof_typed_data

if TYPE_CHECKING:
    from functions.x402.wiring import SaleSettings
    from shared.chain.nodes import Nodes
    from shared.chain.reader import EvmReader, SolanaReader
    from shared.chain.settler import EvmSettler

GAS_KEY_BYTES: Final = 32


class Chains:
    """Judges payments on either network."""

    def __init__(self, settings: SaleSettings, recipients: Callable[[str], Sequence[str]]) -> None:
        self._settings = settings
        self._recipients = recipients

    @functools.cached_property
    def _evm_nodes(self) -> Nodes[Any]:
        from shared.chain.reader import evm_nodes  # noqa: PLC0415 - see the module's docstring

        return evm_nodes(self._settings.evm_rpc_urls.split(","))

    @functools.cached_property
    def _solana_nodes(self) -> Nodes[str]:
        from shared.chain.nodes import Nodes  # noqa: PLC0415 - see the module's docstring

        return Nodes(self._settings.solana_rpc_urls.split(","))

    @property
    def _evm(self) -> EvmReader:
        from shared.chain.reader import EvmReader  # noqa: PLC0415 - see the module's docstring

        s = self._settings
        return EvmReader(self._evm_nodes, s.evm_chain_id, s.evm_asset, self._recipients(Network.BASE))

    @property
    def _solana(self) -> SolanaReader:
        from shared.chain.reader import SolanaReader  # noqa: PLC0415 - see the module's docstring

        s, owners = self._settings, self._recipients(Network.SOLANA)
        return SolanaReader(self._solana_nodes, s.solana_asset, owners, s.solana_genesis)

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

    def judge(self, payment: Payment, depths: Sequence[Depth], tag: str = "") -> Reading:
        """What a payment's hash stands for, and whether its payer put the tag into it."""
        reader = self._evm if payment.network == Network.BASE else self._solana
        return reader.judge(payment.tx_hash, depths, tag)

    def proves(self, statement: Statement, proof: str, payer: str, quorum: int) -> bool:
        """Whether `proof` is the payer's signature of a statement. Raises ReadFailed."""
        from shared.chain import proofs  # noqa: PLC0415 - see the module's docstring

        text = proof_text(statement)
        if statement.network != Network.BASE:
            return proofs.is_solana_payers(payer, text, proof)
        typed = proof_typed_data(statement, self._settings.evm_chain_id)
        return proofs.is_evm_payers(self._evm, payer, text, typed, proof, quorum)

    def faults(self, quorum: Callable[[str], int]) -> list[str]:
        """What keeps this function from taking money; empty when nothing does. `quorum`: nodes needed, by network."""
        evm = self._evm.faults(quorum(Network.BASE))
        return [*evm, *self._solana.faults(quorum(Network.SOLANA))]

    def exact_faults(self) -> list[str]:
        """What keeps us from offering `exact`; the other rails do not depend on it."""
        try:
            return self.settler().faults()
        except ReadFailed as failed:
            return [f"exact: {failed.reason.value}"]
