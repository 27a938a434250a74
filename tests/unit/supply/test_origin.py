"""Address -> what it is: every layout, both address families, files that change, and the reviewed table's own rules."""

import csv
import ipaddress
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from shared.access import rules as access
from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.supply.model import Consent, Device, Kind, Origin, Owner, OwnerConsent
from shared.supply.origin import CHECK_EVERY_S, REVIEWED_CLASSES, OriginReader, read_asn_classes
from shared.supply.rules import (
    COUNT_SHARDS,
    CROWD_MAX,
    DEVICES_MAX,
    TERMS,
    UNPROVEN_MAX,
    class_subject,
    crowded_networks,
    has_consent,
    network_of,
    override_for,
    shard_cap,
    wants_listing,
)

PHONE_NET, HOME_NET, V6_NET = "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"
COLUMNS = ["asn", "class", "country", "name", "source", "looked_up"]
LISTS = re.compile(
    r"(bgptools/(mobile|dsl|vpsh|vpn|tor|eyeball)|oxl/(isp|hosting|vpn)|x4b/(datacenter|vpn)|bad-asn-list)"
)


def write(path: Path, rows: dict[str, Any], version: int = 6) -> Path:
    writer = MMDBWriter(
        ip_version=version, database_type="test", description="test", ipv4_compatible=version == 6
    )
    for network, row in rows.items():
        writer.insert_network(IPSet([network]), row)
    part = path.with_name(path.name + ".part")
    writer.to_db_file(str(part))
    part.replace(path)
    return path


def classes(folder: Path) -> Path:
    path = folder / "classes.csv"
    path.write_text("asn,class\n64601,mobile\n64611,residential\n")
    return path


MAXMIND = (
    {"autonomous_system_number": 64601, "autonomous_system_organization": "Lab Mobile"},
    {"country": {"iso_code": "DE", "names": {"en": "Germany"}}},
)
DB_IP_PAID = (
    {
        "traits": {"autonomous_system_number": 64601, "autonomous_system_organization": "Lab Mobile"},
        "country": {"iso_code": "DE"},
    },
)
IPINFO_LITE = ({"asn": "AS64601", "as_name": "Lab Mobile", "country": "Germany", "country_code": "DE"},)
IPINFO_OLD = ({"asn": "AS64601", "as_name": "Lab Mobile", "country": "DE", "country_name": "Germany"},)


@pytest.mark.parametrize("layout", [MAXMIND, DB_IP_PAID, IPINFO_LITE, IPINFO_OLD])
@pytest.mark.parametrize("address", ["198.51.100.9", "2001:db8::9", "::ffff:198.51.100.9"])
def test_every_layout_tells_the_same_of_both_address_families(
    tmp_path: Path, layout: tuple[dict[str, Any], ...], address: str
) -> None:
    asn = write(tmp_path / "asn.mmdb", {PHONE_NET: layout[0], V6_NET: layout[0]})
    country = write(tmp_path / "country.mmdb", {PHONE_NET: layout[-1], V6_NET: layout[-1]})
    reader = OriginReader(asn, country, classes(tmp_path))
    assert reader.lookup(address) == Origin(Country("de"), IpType.MOBILE, 64601, "Lab Mobile")
    assert reader.lookup("192.0.2.1") == Origin()
    reader.close()


def test_a_file_without_ipv6_leaves_the_rest_of_what_is_known(tmp_path: Path) -> None:
    asn = write(tmp_path / "asn.mmdb", {PHONE_NET: MAXMIND[0]}, version=4)
    country = write(tmp_path / "country.mmdb", {V6_NET: MAXMIND[1]})
    reader = OriginReader(asn, country, classes(tmp_path))
    assert reader.lookup("2001:db8::1") == Origin(Country("de"))
    reader.close()


def test_rows_that_make_no_sense_stay_unknown(tmp_path: Path) -> None:
    asn = write(tmp_path / "asn.mmdb", {PHONE_NET: {"asn": "none"}, HOME_NET: {"asn": "AS4294967295"}})
    country = write(tmp_path / "country.mmdb", {PHONE_NET: {"country": {}}, HOME_NET: {"country": "12"}})
    reader = OriginReader(asn, country, classes(tmp_path))
    assert reader.lookup("198.51.100.1") == Origin()
    assert reader.lookup("203.0.113.1") == Origin(asn=4294967295)
    reader.close()


def test_files_that_change_are_used_without_a_restart_and_broken_ones_are_not(tmp_path: Path) -> None:
    now = [0.0]
    asn = write(tmp_path / "asn.mmdb", {PHONE_NET: MAXMIND[0]})
    country = write(tmp_path / "country.mmdb", {PHONE_NET: MAXMIND[1]})
    reader = OriginReader(asn, country, classes(tmp_path), monotonic_s=lambda: now[0])
    assert reader.lookup("203.0.113.1").ip_type is IpType.UNKNOWN
    write(tmp_path / "asn.mmdb", {HOME_NET: {"asn": "AS64611", "as_name": "Home"}})
    assert reader.lookup("203.0.113.1").ip_type is IpType.UNKNOWN
    now[0] += CHECK_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.RESIDENTIAL
    part = tmp_path / "broken"
    part.write_bytes(b"no database")
    part.replace(asn)
    now[0] += CHECK_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.RESIDENTIAL
    asn.unlink()
    now[0] += CHECK_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.RESIDENTIAL
    reader.close()


# The reviewed table


def rows() -> list[dict[str, str]]:
    with REVIEWED_CLASSES.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


def test_every_row_cites_where_and_when_it_was_looked_up() -> None:
    for row in rows():
        cited = row["source"].split()
        assert cited, row
        assert all(LISTS.fullmatch(word) for word in cited), row
        assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", row["looked_up"]), row
        assert re.fullmatch(r"[a-z]{2}", row["country"]), row
        assert row["name"].strip(), row


def test_a_row_has_the_class_that_its_sources_give() -> None:
    for row in rows():
        cited = set(row["source"].split())
        if row["class"] == "mobile":
            assert "bgptools/mobile" in cited, row
        elif row["class"] == "residential":
            assert "bgptools/dsl" in cited, row
        else:
            assert len(cited & {"bgptools/vpsh", "oxl/hosting", "x4b/datacenter", "bad-asn-list"}) >= 2 or (
                cited & {"x4b/vpn", "oxl/vpn", "bgptools/vpn"}
            ), row


def test_the_table_is_sorted_has_each_network_once_and_none_that_is_private() -> None:
    numbers = [int(row["asn"]) for row in rows()]
    assert numbers == sorted(set(numbers))
    assert not [n for n in numbers if 64512 <= n <= 65534 or n >= 4_200_000_000]
    assert len(read_asn_classes(REVIEWED_CLASSES)) == len(numbers)


def test_the_table_knows_carriers_and_homes_of_forty_countries_and_hosting_of_forty() -> None:
    countries = {
        ip_type: {row["country"] for row in rows() if row["class"] == ip_type}
        for ip_type in ("mobile", "residential", "datacenter")
    }
    assert len(countries["mobile"] & countries["residential"]) >= 40
    assert len(countries["datacenter"]) >= 40


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("asn,class\n1,fast\n")
    with pytest.raises(ValueError, match="fast"):
        read_asn_classes(path)


# Overrides, crowds, limits


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("AS64500", "AS64500"),
        ("as64500", "AS64500"),
        ("64500", "AS64500"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("192.0.2.1/24", None),
        ("0.0.0.0/0", None),
        ("::/0", None),
        ("AS0", None),
        ("ASx", None),
        ("", None),
    ],
)
def test_a_subject_of_an_override_has_one_spelling(text: str, subject: str | None) -> None:
    assert class_subject(text) == subject


def test_the_narrowest_network_wins_then_the_asn() -> None:
    said = {
        "AS1": {"class": "datacenter"},
        "198.51.0.0/16": {"class": "residential"},
        "198.51.100.0/24": {"class": "mobile"},
        "2001:db8::/32": {"class": "unknown"},
    }
    assert override_for(said, "198.51.100.1", 1) is IpType.MOBILE
    assert override_for(said, "198.51.7.1", 1) is IpType.RESIDENTIAL
    assert override_for(said, "2001:db8::1", 1) is IpType.UNKNOWN
    assert override_for(said, "203.0.113.1", 1) is IpType.DATACENTER
    assert override_for(said, "", 1) is IpType.DATACENTER
    assert override_for(said, "203.0.113.1", 2) is None
    assert override_for({}, "203.0.113.1", 1) is None


def test_a_crowd_of_homes_is_seen_by_network() -> None:
    def homes(addresses: list[str]) -> Counter[str]:
        return Counter(map(network_of, addresses))

    v4 = [f"203.0.113.{n}" for n in range(CROWD_MAX + 1)]
    assert crowded_networks(homes(v4)) == {"203.0.113.0/24"}
    assert crowded_networks(homes(v4[1:])) == frozenset()
    v6 = [f"2001:db8:1:{n:x}::1" for n in range(CROWD_MAX + 1)]
    assert crowded_networks(homes(v6)) == {"2001:db8:1::/48"}
    assert crowded_networks(homes(["no address"] * 500)) == frozenset()


def test_limits_count_a_subscriber_and_not_an_address() -> None:
    assert access.network_of("198.51.100.1") == "198.51.100.1"
    assert (
        access.network_of("2001:db8:1:2:3::4") == access.network_of("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    )
    assert access.network_of("::ffff:198.51.100.1") == "198.51.100.1"
    assert access.network_of("odd") == "odd"
    assert network_of("::ffff:198.51.100.1") == "198.51.100.0/24"
    assert ipaddress.ip_network(network_of("2001:db8:1:2::1")).prefixlen == 48


@pytest.mark.parametrize("cap", [DEVICES_MAX, UNPROVEN_MAX, 0, 5, 17])
def test_the_parts_of_a_cap_add_up_to_it(cap: int) -> None:
    assert sum(shard_cap(cap, shard) for shard in range(COUNT_SHARDS)) == cap


# Consent and wishes


def device(**fields: Any) -> Device:
    given = {"created_at_ms": 100, **fields}
    return Device(DeviceId("d"), AccountId("psx_s"), "n", Kind.AGENT, Origin(), "", "", **given)


def agreed(at_ms: int, version: str = "2026-11") -> OwnerConsent:
    return OwnerConsent(version, at_ms, "key 1", 1)


OWN = Consent("2026-11", "sdk", 150)
NOBODY = Owner(AccountId("psx_s"))


@pytest.mark.parametrize(
    ("device", "owner", "consented"),
    [
        (device(), NOBODY, False),
        (device(consent=OWN), NOBODY, True),
        (device(consent=Consent("1999", "sdk", 150)), NOBODY, False),
        (device(), Owner(AccountId("a"), consent=agreed(50)), True),
        (device(), Owner(AccountId("a"), consent=agreed(50, "1999")), False),
        (device(consent=OWN, withdrawn_at_ms=160), NOBODY, False),
        (device(consent=OWN, withdrawn_at_ms=160), Owner(AccountId("a"), consent=agreed(170)), False),
        (device(consent=OWN), Owner(AccountId("a"), withdrawn_at_ms=150), False),
        (device(consent=OWN), Owner(AccountId("a"), withdrawn_at_ms=149), True),
        (device(consent=OWN), Owner(AccountId("a"), withdrawn_at_ms=200, consent=agreed(300)), True),
    ],
)
def test_consent_is_the_newest_word_and_a_devices_own_no_is_never_overruled(
    device: Device, owner: Owner, consented: bool
) -> None:
    assert has_consent(device, owner, TERMS) is consented


def test_the_newest_wish_wins_on_one_device_or_on_all() -> None:
    none_of_them = Owner(AccountId("a"), listing_all=False, listing_all_at_ms=200)
    assert wants_listing(device(), NOBODY)
    assert not wants_listing(device(listing_set_at_ms=100), none_of_them)
    assert wants_listing(device(listing_set_at_ms=300), none_of_them)
