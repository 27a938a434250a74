"""The username grammar: every token, every healing, and only two refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kernel.codes import IpType, Pool
from shared.pool.model import Failover, Rotation
from shared.pool.username import UsernameMissing, parse_username

BOTH = (Pool.MBL, Pool.PEER)


@pytest.mark.parametrize(
    ("text", "pools"),
    [
        ("psx_a", BOTH),
        ("psx_a-any", BOTH),
        ("psx_a-best", BOTH),
        *((f"psx_a-{p}", (Pool.MBL,)) for p in ("mbl", "mobile", "modem", "lte", "4g", "5g", "MBL")),
        *((f"psx_a-{p}", (Pool.PEER,)) for p in ("peer", "residential", "resi", "home")),
    ],
)
def test_pools_and_their_aliases(text: str, pools: tuple[Pool, ...]) -> None:
    route = parse_username(text)
    assert (route.account_id, route.pools, route.corrections) == ("psx_a", pools, ())


@pytest.mark.parametrize(
    ("text", "country"),
    [
        ("us", "us"),
        ("USA", "us"),
        ("america", "us"),
        ("uk", "gb"),
        ("britain", "gb"),
        ("england", "gb"),
        ("georgia", "ge"),
        ("any", None),
        ("de", "de"),
    ],
)
def test_countries_and_their_aliases(text: str, country: str | None) -> None:
    assert parse_username(f"psx_a-mbl-{text}").country == country


def test_defaults_are_those_of_the_contract() -> None:
    route = parse_username("psx_a-mbl-us")
    assert (route.rotation, route.session_id, route.ttl_s, route.failover) == (
        Rotation.AUTO10,
        None,
        3600,
        Failover.SAME_COUNTRY,
    )
    assert (route.carrier, route.city, route.ip_type, route.isp, route.asn, route.strict, route.pin) == (
        None,
    ) * 5 + (False, None)


def test_tokens_come_in_any_order() -> None:
    route = parse_username(
        "psx_a-peer-de-rot-sticky-strict-sid-job_1-ttl-120-carrier-lab_mobile-city-berlin-iptype-mobile-isp-lab-asn-64601"
        "-failover-samecarrier-pin-lease-l12345678"
    )
    assert route.corrections == ()
    assert (route.rotation, route.session_id, route.ttl_s, route.strict) == (
        Rotation.STICKY,
        "job_1",
        120,
        True,
    )
    assert (route.carrier, route.city, route.ip_type, route.isp) == (
        "lab_mobile",
        "berlin",
        IpType.MOBILE,
        "lab",
    )
    assert (route.asn, route.failover, route.pin) == (64601, Failover.SAME_CARRIER, ("lease", "l12345678"))


@pytest.mark.parametrize("mode", list(Rotation))
def test_every_rotation_is_read(mode: Rotation) -> None:
    assert parse_username(f"psx_a-mbl-us-rot-{mode.value}").rotation is mode


def test_hard_means_sticky() -> None:
    assert parse_username("psx_a-mbl-us-rot-hard").rotation is Rotation.STICKY


@pytest.mark.parametrize(
    ("tail", "corrections"),
    [
        ("xyz-us", ("pool=any",)),
        ("mbl-deutschland", ("country=any",)),
        ("mbl-us-rot-never", ("rot=dropped",)),
        ("mbl-us-sid-" + "x" * 65, ("sid=dropped",)),
        ("mbl-us-ttl-5", ("ttl=60",)),
        ("mbl-us-ttl-9999999999", ("ttl=2592000",)),
        ("mbl-us-ttl-abc", ("ttl=dropped",)),
        ("mbl-us-asn-12345678", ("asn=unusable",)),
        ("mbl-us-iptype-satellite", ("iptype=unusable",)),
        ("mbl-us-failover-maybe", ("failover=dropped",)),
        ("mbl-us-pin-moon-1", ("pin=dropped",)),
        ("mbl-us-pin", ("pin=dropped",)),
        ("mbl-us-colour-red", ("colour=unknown", "red=unknown")),
        ("mbl-us-sid", ("sid=dropped",)),
        ("mbl-us--", ("empty=unknown", "empty=unknown")),
    ],
)
def test_what_cannot_be_used_is_healed_and_told(tail: str, corrections: tuple[str, ...]) -> None:
    assert parse_username(f"psx_a-{tail}").corrections == corrections


@pytest.mark.parametrize(
    ("tail", "unusable"),
    [
        ("iptype-residental", ("iptype",)),
        ("iptype", ("iptype",)),
        ("asn-12345678", ("asn",)),
        ("asn-lab", ("asn",)),
        ("isp-späti", ("isp",)),
        ("isp-" + "x" * 65, ("isp",)),
        ("iptype-x-asn-x", ("asn", "iptype")),
        ("iptype-mobile-iptype-x", ("iptype",)),
        ("iptype-x-iptype-mobile", ()),
        ("city-" + "x" * 65, ()),
        ("carrier-" + "x" * 65, ()),
        ("rot-never-ttl-x-failover-x-pin-moon-1", ()),
    ],
)
def test_a_filter_that_must_hold_is_never_dropped(tail: str, unusable: tuple[str, ...]) -> None:
    assert parse_username(f"psx_a-peer-us-{tail}").unusable == unusable


@pytest.mark.parametrize("text", ["", "x" * 257])
def test_only_a_missing_or_overlong_username_is_refused(text: str) -> None:
    with pytest.raises(UsernameMissing):
        parse_username(text)


@given(st.text(min_size=1, max_size=256))
def test_every_other_text_is_a_route_with_printable_corrections(text: str) -> None:
    for correction in parse_username(text[:256]).corrections:
        assert correction.isascii()
        assert correction.isprintable()
