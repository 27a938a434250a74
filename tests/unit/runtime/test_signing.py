"""Which signatures are believed: exactly the one that the key's holder made, and each time within its time only."""

import base64
import json
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.runtime.signing import CLOCK_LEEWAY_S, ISSUER, BadToken, key_id, read

AUDIENCE = "relay"
EXPIRES_WITHIN_S = 30.0
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519's base point (RFC 8032, section 5.1)."""
SMALL_ORDER_KEYS = (
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "00" * 32,
    "00" * 31 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)
"""Points of order 1, 2, 4, 4, 8 and 8: of the first, zeros are a signature of anything."""


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def pem_of(key: Ed25519PublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def unsigned(key: Ed25519PublicKey, expires_s: float, number: int = 0) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "d", "exp": int(expires_s), "number": number}
    parts = ({"alg": "EdDSA", "kid": key_id(key)}, claims)
    return ".".join(base64url(json.dumps(part).encode()) for part in parts)


def signed(private: Ed25519PrivateKey, expires_s: float) -> tuple[str, bytes]:
    """What is signed, and the signature."""
    text = unsigned(private.public_key(), expires_s)
    return text, private.sign(text.encode())


def faults(token: str, public: str, audience: str = AUDIENCE) -> bool | None:
    """None for a token that is believed, otherwise whether it has only expired."""
    try:
        read(token, public, audience)
    except BadToken as bad:
        return bad.expired
    return None


def test_a_signature_has_one_form() -> None:
    """S + L signs the same by arithmetic: whoever took it could be shown a token anew under another name."""
    private = Ed25519PrivateKey.generate()
    public = pem_of(private.public_key())
    text, good = signed(private, time.time() + 60)
    assert faults(f"{text}.{base64url(good)}", public) is None
    scalar = int.from_bytes(good[32:], "little")
    for times in range(1, 16):
        if scalar + times * GROUP_ORDER < 1 << 256:
            other = good[:32] + (scalar + times * GROUP_ORDER).to_bytes(32, "little")
            assert faults(f"{text}.{base64url(other)}", public) is False


@pytest.mark.parametrize("cut", [-64, -63, -33, -32, -1, 1, 20])
def test_a_signature_has_one_length(cut: int) -> None:
    """Not even where signature and text, one behind the other, are the same bytes again."""
    private = Ed25519PrivateKey.generate()
    text, good = signed(private, time.time() + 60)
    whole = good + text.encode()
    moved, left = whole[: 64 + cut], whole[64 + cut :].decode("latin-1")
    assert faults(f"{left}.{base64url(moved)}", pem_of(private.public_key())) is False


@pytest.mark.parametrize("raw", SMALL_ORDER_KEYS)
@pytest.mark.parametrize("point", SMALL_ORDER_KEYS)
def test_a_key_that_anybody_can_sign_for_is_not_believed(raw: str, point: str) -> None:
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw))
    signature = bytes.fromhex(point) + bytes(32)
    for number in range(8):  # an equation that holds for one text in eight would be met
        text = unsigned(key, time.time() + 60, number)
        assert faults(f"{text}.{base64url(signature)}", pem_of(key)) is False


def test_a_token_that_was_believed_before_still_has_to_be_meant_and_in_time() -> None:
    private = Ed25519PrivateKey.generate()
    public = pem_of(private.public_key())
    text, good = signed(private, time.time() - CLOCK_LEEWAY_S + 2)
    token = f"{text}.{base64url(good)}"
    assert faults(token, public) is not False
    assert faults(token, public, "owner") is False
    assert faults(token, pem_of(Ed25519PrivateKey.generate().public_key())) is False
    deadline = time.monotonic() + EXPIRES_WITHIN_S
    while faults(token, public) is None:
        assert time.monotonic() < deadline, "believed for ever"
        time.sleep(0.05)
    assert faults(token, public) is True


def test_a_token_that_was_refused_is_refused_again() -> None:
    private, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    text, _ = signed(private, time.time() + 60)
    forged = f"{text}.{base64url(stranger.sign(text.encode()))}"
    public = pem_of(private.public_key())
    assert [faults(forged, public) for _ in range(3)] == [False] * 3
