"""What a device is follows from its address; who it is follows from tokens that rotate."""

import time
from collections.abc import Callable
from dataclasses import replace

import jwt
import pytest

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Modem, Origin, parse_regions
from shared.supply.origin import OriginReader
from shared.supply.rules import assign_region, looks_random, slug
from shared.supply.service import EnrolFault, Enrolled, Enrolment, device_id_for
from shared.supply.tokens import AUDIENCE, ISSUER, Claims, TokenFault, issue, verify
from tests.support.lab import pem_keys

REGIONS = parse_regions(
    {
        "eu": {"url": "wss://eu.example/", "countries": ["DE"]},
        "us": {"url": "wss://us.example/", "countries": ["*"]},
    }
)
OWNER = AccountId("psx_s")
CONSENT = Consent("2026-11", "sdk", 1)
NOW_MS = 1_800_000_000_000


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
    claims = Claims(DeviceId("d"), OWNER, 3)
    token = issue(claims, ("wss://a/",), private, int(time.time()))
    assert verify(token, public) == claims
    assert verify(token, pem_keys()[1]) is TokenFault.INVALID
    assert verify("x.y.z", public) is TokenFault.INVALID


def test_a_token_lives_for_an_hour() -> None:
    private, public = pem_keys()
    claims = Claims(DeviceId("d"), OWNER, 0)
    assert verify(issue(claims, (), private, int(time.time()) - 3700), public) is TokenFault.EXPIRED
    assert verify(issue(claims, (), private, int(time.time()) - 3500), public) == claims


@pytest.mark.parametrize(
    "change", [{"aud": "other"}, {"iss": "other"}, {"gen": "0"}, {"acct": None}, {"sub": None}]
)
def test_a_token_with_other_claims_is_refused(change: dict[str, object]) -> None:
    private, public = pem_keys()
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "d",
        "acct": "a",
        "gen": 0,
        "exp": int(time.time()) + 60,
    } | change
    token = jwt.encode({k: v for k, v in payload.items() if v is not None}, private, algorithm="EdDSA")
    assert verify(token, public) is TokenFault.INVALID


def test_a_token_signed_by_another_algorithm_is_refused() -> None:
    _, public = pem_keys()
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "d",
        "acct": "a",
        "gen": 0,
        "exp": int(time.time()) + 60,
    }
    assert verify(jwt.encode(payload, "k" * 32, algorithm="HS256"), public) is TokenFault.INVALID


# Enrolment


@pytest.fixture
def enrolment(dynamo: SyncDynamo) -> Enrolment:
    german = Origin(Country("de"), IpType.MOBILE, isp="Lab X")
    return Enrolment(
        dynamo,
        SyncRedis("redis://127.0.0.1:9/0"),
        lambda name: f"psx-test-{name}",
        lambda address: german if address == "de" else Origin(),
        REGIONS,
        pem_keys()[0],
        lambda: NOW_MS,
    )


def register(
    enrolment: Enrolment, name: str = "rig", key: str = "k", address: str = "de", account: AccountId = OWNER
) -> Enrolled:
    result = enrolment.register(account, device_id_for(key, name), name, Kind.AGENT, address, CONSENT, None)
    assert isinstance(result, Enrolled)
    return result


def test_a_device_is_enrolled_where_its_address_says(enrolment: Enrolment) -> None:
    first = register(enrolment)
    assert first.created
    assert (first.relay, first.device.carrier, first.device.consent) == (
        "wss://eu.example/",
        "lab_x",
        CONSENT,
    )
    assert first.relays == ("wss://eu.example/", "wss://us.example/")


def test_the_same_name_is_the_same_device_even_after_the_key_was_rotated(enrolment: Enrolment) -> None:
    first = register(enrolment, key="old")
    again = register(enrolment, key="new", address="a")
    assert not again.created
    assert again.device.device_id == first.device.device_id
    assert again.relay == "wss://us.example/"


def test_a_device_id_of_another_account_is_refused(enrolment: Enrolment) -> None:
    ident = register(enrolment).device.device_id
    assert (
        enrolment.register(AccountId("psx_t"), ident, "other", Kind.SDK, "a", None, None)
        is EnrolFault.NAME_TAKEN
    )


def test_refresh_tokens_rotate_and_a_spent_one_revokes_the_device(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    first = register(enrolment)
    ident = first.device.device_id
    second = enrolment.refresh(ident, first.refresh_token)
    assert isinstance(second, Enrolled)
    assert second.refresh_token != first.refresh_token
    assert enrolment.refresh(ident, "never issued") is EnrolFault.REFRESH_INVALID
    assert enrolment.refresh(ident, first.refresh_token) is EnrolFault.REFRESH_REUSED
    assert enrolment.refresh(ident, second.refresh_token) is EnrolFault.REFRESH_INVALID
    device = dynamo.run(devices.get_device("psx-test-devices", ident))
    assert device is not None
    assert device.generation == 1
    assert enrolment.refresh(DeviceId("nobody"), "x") is EnrolFault.REFRESH_INVALID


def test_a_modem_is_found_again_by_its_name(enrolment: Enrolment) -> None:
    def sealed(port: int) -> Callable[[DeviceId], Modem]:
        return lambda device_id: Modem("127.0.0.1", port, f"for {device_id}")

    first = enrolment.add_modem(OWNER, "m1", Origin(), "lab", sealed(1))
    again = enrolment.add_modem(OWNER, "m1", Origin(), "lab", sealed(2))
    assert isinstance(first, Device)
    assert isinstance(again, Device)
    assert again.device_id == first.device_id
    assert again.modem == Modem("127.0.0.1", 2, f"for {first.device_id}")


def test_a_wallet_alone_makes_its_own_account(enrolment: Enrolment) -> None:
    assert enrolment.wallet_account("0xABC") == enrolment.wallet_account("0xabc")
    assert enrolment.wallet_account("0xdef") != enrolment.wallet_account("0xabc")


def test_a_wallet_is_kept_when_it_was_registered_first(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    for wallet in ("0x1", "0x2"):
        enrolment.register(OWNER, DeviceId("d"), "d", Kind.SDK, "a", None, wallet)
    device = dynamo.run(devices.get_device("psx-test-devices", DeviceId("d")))
    assert device is not None
    assert device.wallet == "0x1"


def test_devices_are_listed_per_account_and_in_all(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    idents = {register(enrolment, name=f"rig{n}").device.device_id for n in range(3)}
    mine = dynamo.run(devices.of_account("psx-test-devices", OWNER, 10))
    everybody = dynamo.run(devices.all_devices("psx-test-devices", 10, None))
    assert {d.device_id for d in mine.rows} == {d.device_id for d in everybody.rows} == idents
