"""What a device is follows from its address; who it is follows from tokens that rotate."""

import base64
import hmac
import json
import time
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.signing import ISSUER, check_public_keys, key_id
from shared.supply.model import Device, Kind, Origin, parse_regions
from shared.supply.origin import OriginReader
from shared.supply.places import COUNTRIES, Place, distance_km
from shared.supply.rules import assign_region, looks_random, slug
from shared.supply.tokens import AUDIENCE, Claims, TokenFault, issue, verify
from tests.support.lab import pem_keys

REGIONS = parse_regions(
    {
        "eu": {"url": "wss://eu.example/", "countries": ["DE"]},
        "us": {"url": "wss://us.example/", "countries": ["*"]},
    }
)
OWNER = AccountId("psx_s")


@pytest.mark.parametrize(
    ("address", "country", "ip_type", "asn"),
    [
        ("127.10.1.5", "us", IpType.MOBILE, 64601),
        ("127.11.2.5", "de", IpType.RESIDENTIAL, 64612),
        ("127.12.1.5", "nl", IpType.DATACENTER, 64621),
        ("127.99.0.1", "zz", IpType.UNKNOWN, 0),
        ("not an address", "zz", IpType.UNKNOWN, 0),
    ],
)
def test_the_address_alone_says_what_a_device_is(
    origins: OriginReader, address: str, country: str, ip_type: IpType, asn: int
) -> None:
    origin = origins.lookup(address)
    assert (origin.country, origin.ip_type, origin.asn) == (country, ip_type, asn)


@pytest.mark.parametrize(("country", "region"), [("de", "eu"), ("us", "us"), ("zz", "us")])
def test_the_nearest_region_serves_a_country(country: str, region: str) -> None:
    assert assign_region(country, REGIONS).name == region


FOUR = parse_regions(
    {
        "fra": {"url": "wss://fra/", "countries": ["*", "za"], "at": "50.1,8.7"},
        "iad": {"url": "wss://iad/", "countries": [], "at": "39.0,-77.5"},
        "sin": {"url": "wss://sin/", "countries": ["KR"], "at": "1.35,103.8"},
        "hnd": {"url": "wss://hnd/", "countries": [], "at": "35.5,139.8"},
    }
)


@pytest.mark.parametrize(
    ("country", "region"),
    [
        ("pl", "fra"), ("us", "iad"), ("br", "iad"), ("id", "sin"), ("jp", "hnd"), ("fj", "hnd"), ("in", "sin"),
        ("kr", "sin"), ("za", "fra"), ("zz", "fra"),
    ],
)  # fmt: skip
def test_a_country_is_served_by_the_nearest_region_unless_one_names_it(country: str, region: str) -> None:
    assert assign_region(country, FOUR).name == region


def test_the_globe_is_round() -> None:
    assert 330 < distance_km(COUNTRIES["fr"], COUNTRIES["gb"]) < 350
    assert distance_km(Place(0, 179.9), Place(0, -179.9)) < 23
    assert 20_010 < distance_km(Place(90, 0), Place(-90, 0)) < 20_020
    assert len(COUNTRIES) > 240


@pytest.mark.parametrize("at", ["", "50.1", "91,0", "0,181", "nan,0", "x,y", "1,2,3", 5, ["1", "2"]])
def test_a_region_stands_somewhere_on_earth(at: object) -> None:
    with pytest.raises(ValueError, match=r"^eu: "):
        parse_regions({"eu": {"url": "wss://a/", "countries": ["*"], "at": at}})


def test_regions_must_serve_everybody_by_secure_sockets() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        parse_regions({"eu": {"url": "wss://a/", "countries": ["de"]}})
    with pytest.raises(ValueError, match="ws://"):
        parse_regions({"eu": {"url": "http://a/", "countries": ["*"]}})
    with pytest.raises(ValueError, match="no region"):
        assign_region("fr", ())


@pytest.mark.parametrize(
    ("name", "random"),
    [("rig-001", False), ("550e8400-e29b-41d4-a716-446655440000", True), ("x-0123456789abcdef", True)],
)
def test_names_that_will_change_are_noticed(name: str, random: bool) -> None:
    assert looks_random(name) is random


def test_a_slug_fits_a_username_token() -> None:
    assert slug("T-Mobile US, Inc.") == "t_mobile_us_inc"


def test_modems_are_the_production_pool() -> None:
    device = Device(DeviceId("d"), OWNER, "n", Kind.MODEM, Origin(), "", "", 0)
    assert device.pool is Pool.MBL
    assert replace(device, kind=Kind.SDK).pool is Pool.PEER


# Tokens


def test_a_token_says_who_a_device_is() -> None:
    private, public = pem_keys()
    claims = Claims(DeviceId("d"), OWNER, 3, 4, False, ("wss://a/",))
    token = issue(claims, private, int(time.time()))
    assert verify(token, public) == claims
    assert verify(token, pem_keys()[1]) is TokenFault.INVALID
    assert verify("x.y.z", public) is TokenFault.INVALID


def test_a_token_lives_for_an_hour() -> None:
    private, public = pem_keys()
    claims = Claims(DeviceId("d"), OWNER, 0)
    assert verify(issue(claims, private, int(time.time()) - 3700), public) is TokenFault.EXPIRED
    assert verify(issue(claims, private, int(time.time()) - 3500), public) == claims


def payload(**change: object) -> dict[str, object]:
    good: dict[str, object] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "d",
        "acct": "a",
        "gen": 0,
        "agen": 0,
        "iat": int(time.time()),
        "own": True,
        "relays": [],
        "exp": int(time.time()) + 60,
    }
    return {k: v for k, v in (good | change).items() if v is not None}


def kid_of(public: str) -> str:
    key = load_pem_public_key(public.encode())
    assert isinstance(key, Ed25519PublicKey)
    return key_id(key)


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "other"},
        {"iss": "other"},
        {"gen": "0"},
        {"gen": True},
        {"agen": None},
        {"acct": None},
        {"own": 1},
        {"iat": None},
        {"own": None},
        {"relays": "wss://a/"},
        {"sub": None},
        {"sub": 7},
        {"exp": None},
        {"exp": str(int(time.time()) + 60)},
        {"exp": True},
        {"aud": [AUDIENCE]},
        {"iat": int(time.time()) + 3600},
        {"nbf": int(time.time()) + 3600},
        {"nbf": "0"},
    ],
)
def test_a_token_with_other_claims_is_refused(change: dict[str, object]) -> None:
    private, public = pem_keys()
    headers = {"kid": kid_of(public)}
    good = jwt.encode(payload(), private, algorithm="EdDSA", headers=headers)
    assert isinstance(verify(good, public), Claims)
    token = jwt.encode(payload(**change), private, algorithm="EdDSA", headers=headers)
    assert verify(token, public) is TokenFault.INVALID


def test_a_token_without_a_signature_or_by_another_algorithm_is_refused() -> None:
    _, public = pem_keys()
    headers = {"kid": kid_of(public)}
    assert verify(jwt.encode(payload(), "k" * 32, "HS256", headers), public) is TokenFault.INVALID
    unsigned = jwt.encode(payload(), None, "none", headers)  # type: ignore[arg-type]  # that is the attack
    assert verify(unsigned, public) is TokenFault.INVALID
    with_public = hmac_by_public_key(public, headers)
    assert verify(with_public, public) is TokenFault.INVALID


def hmac_by_public_key(public: str, headers: dict[str, str]) -> str:
    """A token whose HMAC key is the public key's own text: what a careless verifier takes for a signature."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT", **headers}).encode())
    signed = head + b"." + part(json.dumps(payload()).encode())
    return (signed + b"." + part(hmac.digest(public.encode(), signed, "sha256"))).decode()


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"crit": ["exp"]},
        {"alg": None},
        ["EdDSA"],
        "EdDSA",
    ],
)
def test_a_header_that_says_something_else_is_refused_although_its_signature_is_right(header: object) -> None:
    private, public = pem_keys()
    told = {"alg": "EdDSA", "kid": kid_of(public)} | header if isinstance(header, dict) else header
    assert (verify(signed_as({"alg": "EdDSA", "kid": kid_of(public)}, private), public)) == Claims(
        DeviceId("d"), AccountId("a"), 0
    )
    assert verify(signed_as(told, private), public) is TokenFault.INVALID


def signed_as(header: object, private: str) -> str:
    """A token whose header says what the test wants, signed by Ed25519 all the same."""
    key = load_pem_private_key(private.encode(), None)
    assert isinstance(key, Ed25519PrivateKey)
    parts = [base64.urlsafe_b64encode(json.dumps(o).encode()).rstrip(b"=") for o in (header, payload())]
    signature = base64.urlsafe_b64encode(key.sign(b".".join(parts))).rstrip(b"=")
    return b".".join((*parts, signature)).decode()


@pytest.mark.parametrize(
    "spoil", [".", "..", "...", "a.b", "\u00e9.b.c", "W1tb" * 2000 + ".b.c", "=.=.=", "e30.e30.e30"]
)
def test_what_is_no_token_is_refused(spoil: str) -> None:
    assert verify(spoil, pem_keys()[1]) is TokenFault.INVALID


@given(at=st.integers(0, 10_000), flip=st.integers(1, 127))
def test_no_changed_token_is_believed(at: int, flip: int) -> None:
    """Not even one whose change the library does not see: unused bits of the last letter, or another spelling."""
    token, public = SIGNED
    place = at % len(token)
    changed = token[:place] + chr(ord(token[place]) ^ flip) + token[place + 1 :]
    assert verify(changed, public) is TokenFault.INVALID


@pytest.mark.parametrize("more", ["=", "==", "\n", " ", "A"])
def test_a_token_with_more_behind_it_is_not_believed(more: str) -> None:
    token, public = SIGNED
    assert verify(token + more, public) is TokenFault.INVALID


@pytest.mark.parametrize("kid", [None, "", "nobody", 7])
def test_a_token_of_a_key_that_is_not_named_or_not_known_is_refused(kid: object) -> None:
    private, public = pem_keys()
    headers = {} if kid is None else {"kid": kid}
    if isinstance(kid, int):
        signed = issue(Claims(DeviceId("d"), OWNER, 0), private, int(time.time()))
        head = base64.urlsafe_b64encode(json.dumps({"alg": "EdDSA", "kid": kid}).encode()).rstrip(b"=")
        token = head.decode() + signed[signed.index(".") :]
    else:
        token = jwt.encode(payload(), private, algorithm="EdDSA", headers=headers)
    assert verify(token, public) is TokenFault.INVALID


def signed_now() -> tuple[str, str]:
    """A good token and its public key."""
    private, public = pem_keys()
    return issue(Claims(DeviceId("d"), OWNER, 0), private, int(time.time())), public


SIGNED = signed_now()


def test_keys_rotate_without_a_device_noticing() -> None:
    (old, old_public), (new, new_public) = pem_keys(), pem_keys()
    claims, now = Claims(DeviceId("d"), OWNER, 3, 1), int(time.time())
    before, after = issue(claims, old, now), issue(claims, new, now)
    both = f"{old_public}\n{new_public}"
    assert verify(before, both) == verify(after, both) == claims
    assert verify(before, new_public) is TokenFault.INVALID
    forged = jwt.encode(payload(), old, algorithm="EdDSA", headers={"kid": kid_of(new_public)})
    assert verify(forged, both) is TokenFault.INVALID


def test_settings_must_hold_public_keys() -> None:
    private, public = pem_keys()
    check_public_keys(public)
    for wrong in ("", "no key", private):
        with pytest.raises(ValueError, match=r"PEM|public"):
            check_public_keys(wrong)
