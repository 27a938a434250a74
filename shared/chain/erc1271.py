"""Asking a contract wallet (or an EIP-7702 account) whether a signature is its owner's. Source: EIP-1271."""

from typing import Final

MAGIC: Final = "0x1626ba7e"
WALLET_GAS: Final = 500_000
"""A wallet that needs more to say yes is not asked further: its answer runs on a node that we pay for."""
_WORD_CHARS: Final = 64


def signature_calldata(digest: str, signature: str) -> str:
    """`isValidSignature(bytes32,bytes)`; both in hex with 0x."""
    raw = signature.removeprefix("0x")
    padded = raw + "0" * (-len(raw) % _WORD_CHARS)
    return f"{MAGIC}{digest.removeprefix('0x')}{64:064x}{len(raw) // 2:064x}{padded}"


def is_accepted(answer: str) -> bool:
    """Whether the wallet answered with the magic value, and nothing else."""
    return answer.lower() == MAGIC + "0" * (_WORD_CHARS - 8)
