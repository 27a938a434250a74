"""A wallet that buys from us: signs a transfer (EIP-3009) as any x402 client does. For the self-test of the peer tiers."""

from dataclasses import replace

from shared.chain.eip3009 import typed_data
from shared.chain.model import Authorization

_UNSIGNED = "0x" + "00" * 65


def sign_transfer(
    key: bytes, *, chain_id: int, contract: str, recipient: str, amount_micro: int, nonce: str, before_s: int
) -> Authorization:
    """A signed transfer to `recipient`. The same arguments give the same one, so that a repeat can pay only once."""
    from eth_account import Account  # noqa: PLC0415 - loaded with the chain
    from eth_account.messages import encode_typed_data  # noqa: PLC0415

    wallet = Account.from_key(key)
    unsigned = Authorization(
        wallet.address.lower(), recipient.lower(), amount_micro, 0, before_s, nonce, _UNSIGNED
    )
    signable = encode_typed_data(full_message=typed_data(unsigned, chain_id, contract))
    signature = bytes(wallet.sign_message(signable).signature).hex()
    return replace(unsigned, signature="0x" + signature)
