"""Transfers by signed authorization: what is signed, what the contract is called with, and what is wrong with one.

The domain is that of native USDC on Base (FiatTokenV2: name "USD Coin", version "2"). Contract wallets (ERC-1271) are not
served on this rail: their signature is not 65 bytes. Source: EIP-3009, EIP-712.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from shared.chain.model import Authorization, InvalidReason

DOMAIN_NAME: Final = "USD Coin"
DOMAIN_VERSION: Final = "2"
LIFE_MIN_S: Final = 8
"""An authorization must outlive the next blocks: one that expires before ours is mined would burn gas for nothing."""
LIFE_MAX_S: Final = 3_600
"""No longer than a quote: what we refused or gave up is soon nothing that anybody could still send. Stock clients sign for
the `maxTimeoutSeconds` that they are told, which are five minutes."""
TRANSFER_SELECTOR: Final = "0xe3ee160e"
STATE_SELECTOR: Final = "0xe94a0102"
BALANCE_SELECTOR: Final = "0x70a08231"
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_WORD: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE: Final = re.compile(r"0x[0-9a-fA-F]{130}")
_UINT256_MAX: Final = 2**256 - 1
_NUMBER_MAX_CHARS: Final = 78


def read_authorization(payload: dict[str, Any]) -> Authorization | None:
    """The `payload` of an x402 `exact` payment; None when a part is missing or malformed."""
    signed, signature = payload.get("authorization"), payload.get("signature")
    if not isinstance(signed, dict) or not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        return None
    payer, to, nonce = (signed.get(name) for name in ("from", "to", "nonce"))
    numbers = [_uint(signed.get(name)) for name in ("value", "validAfter", "validBefore")]
    if not (_matches(_ADDRESS, payer) and _matches(_ADDRESS, to) and _matches(_WORD, nonce)):
        return None
    value, after, before = numbers
    if value is None or after is None or before is None:
        return None
    return Authorization(
        str(payer).lower(), str(to).lower(), value, after, before, str(nonce).lower(), signature.lower()
    )


def _matches(shape: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and shape.fullmatch(value) is not None


def _uint(value: object) -> int | None:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdecimal() and len(text) <= _NUMBER_MAX_CHARS):
        return None
    return int(text) if int(text) <= _UINT256_MAX else None


def terms_fault(
    authorization: Authorization, *, recipients: Sequence[str], due_micro: int, now_s: int
) -> InvalidReason | None:
    """Why we would not send it, the cheapest reasons first; nothing is asked of the chain."""
    ours = {r.lower() for r in recipients}
    if authorization.recipient not in ours or authorization.payer in ours:
        return InvalidReason.AUTH_RECIPIENT
    if authorization.amount_micro < due_micro:
        return InvalidReason.AUTH_AMOUNT
    if authorization.valid_after_s >= now_s:
        return InvalidReason.AUTH_NOT_YET
    if authorization.valid_before_s < now_s + LIFE_MIN_S:
        return InvalidReason.AUTH_EXPIRED
    if authorization.valid_before_s > now_s + LIFE_MAX_S:
        return InvalidReason.AUTH_TOO_LONG
    return None


def typed_data(authorization: Authorization, chain_id: int, contract: str) -> dict[str, Any]:
    """What the payer signed, as EIP-712 typed data."""
    domain = [
        ("name", "string"),
        ("version", "string"),
        ("chainId", "uint256"),
        ("verifyingContract", "address"),
    ]
    fields = [
        ("from", "address"),
        ("to", "address"),
        ("value", "uint256"),
        ("validAfter", "uint256"),
        ("validBefore", "uint256"),
        ("nonce", "bytes32"),
    ]
    return {
        "types": {
            "EIP712Domain": [{"name": n, "type": t} for n, t in domain],
            "TransferWithAuthorization": [{"name": n, "type": t} for n, t in fields],
        },
        "primaryType": "TransferWithAuthorization",
        "domain": {
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": chain_id,
            "verifyingContract": contract,
        },
        "message": {
            "from": authorization.payer,
            "to": authorization.recipient,
            "value": authorization.amount_micro,
            "validAfter": authorization.valid_after_s,
            "validBefore": authorization.valid_before_s,
            "nonce": bytes.fromhex(authorization.nonce[2:]),
        },
    }


def transfer_calldata(authorization: Authorization) -> str:
    """The call that moves the money: `transferWithAuthorization` with v, r and s."""
    r, s, v = authorization.signature[2:66], authorization.signature[66:130], authorization.signature[130:132]
    recovery = int(v, 16)
    words = [
        authorization.payer[2:].rjust(64, "0"),
        authorization.recipient[2:].rjust(64, "0"),
        word(authorization.amount_micro),
        word(authorization.valid_after_s),
        word(authorization.valid_before_s),
        authorization.nonce[2:],
        word(recovery + 27 if recovery < 27 else recovery),
        r,
        s,
    ]
    return TRANSFER_SELECTOR + "".join(words)


def state_calldata(authorization: Authorization) -> str:
    """The call that tells whether the nonce was used or canceled."""
    return STATE_SELECTOR + authorization.payer[2:].rjust(64, "0") + authorization.nonce[2:]


def balance_calldata(address: str) -> str:
    """The call that tells a balance."""
    return BALANCE_SELECTOR + address[2:].lower().rjust(64, "0")


def word(number: int) -> str:
    """A number as 32 bytes of hex."""
    return number.to_bytes(32, "big").hex()
