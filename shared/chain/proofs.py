"""Whether a signature is the payer's: EIP-191 or EIP-712 on EVM, by key or by contract wallet; Ed25519 on Solana.

Source: EIP-191, EIP-712, EIP-1271, Solana off-chain `signMessage`. The SDKs are loaded when a signature is first checked.
"""

from collections.abc import Mapping
from typing import Any

from shared.chain.reader import EvmReader


def is_evm_payers(
    reader: EvmReader, payer: str, text: str, typed: Mapping[str, Any], signature: str, quorum: int
) -> bool:
    """Whether the payer signed the text or the typed data. Raises ReadFailed when a wallet's contract cannot be asked."""
    from eth_account import Account  # noqa: PLC0415 - loaded with the chain
    from eth_account.messages import encode_defunct, encode_typed_data  # noqa: PLC0415
    from eth_keys.exceptions import BadSignature  # noqa: PLC0415
    from eth_utils.crypto import keccak  # noqa: PLC0415
    from eth_utils.exceptions import ValidationError  # noqa: PLC0415

    try:
        raw = bytes.fromhex(signature.removeprefix("0x"))
    except ValueError:
        return False
    messages = (encode_defunct(text=text), encode_typed_data(full_message=dict(typed)))
    for message in messages:
        try:
            if len(raw) == 65 and str(Account.recover_message(message, signature=raw)).lower() == payer:
                return True
        except (BadSignature, ValidationError, ValueError):
            pass
    digests = [keccak(b"\x19" + m.version + m.header + m.body).hex() for m in messages]
    return reader.accepts_signature(payer, digests, raw.hex(), quorum)


def is_solana_payers(payer: str, text: str, signature: str) -> bool:
    """Whether the payer's key signed the text."""
    from solders.pubkey import Pubkey  # noqa: PLC0415 - loaded with the chain
    from solders.signature import Signature  # noqa: PLC0415

    try:
        return Signature.from_string(signature).verify(Pubkey.from_string(payer), text.encode())
    except ValueError:
        return False
