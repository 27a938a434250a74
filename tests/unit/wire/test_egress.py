"""Nothing leads into anybody's own network, and nothing to mail ports."""

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.egress import (
    MAIL_PORTS,
    EgressPolicy,
    EgressVerdict,
    check_address,
    check_name,
    is_blocked_domain,
    own_network,
    parse_domains,
)

POLICY = EgressPolicy()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "192.0.2.1",
        "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::10.0.0.1",
        "64:ff9b::a00:1", "64:ff9b:1::1", "2002:a00:1::", "2001:0:0:0:0:0:f5ff:fffe",
    ],
)  # fmt: skip
def test_private_and_special_addresses_are_refused(address: str) -> None:
    assert check_address(address, 443, POLICY) is EgressVerdict.PRIVATE_ADDRESS


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert check_address(address, 443, POLICY) is EgressVerdict.ALLOWED


@pytest.mark.parametrize("port", [*sorted(MAIL_PORTS), 0, -1, 65536])
def test_mail_ports_and_impossible_ports_are_refused(port: int) -> None:
    assert check_address("1.1.1.1", port, POLICY) is EgressVerdict.BLOCKED_PORT


def test_the_lab_list_opens_exactly_what_it_names() -> None:
    policy = EgressPolicy(lab_allow=frozenset({("127.80.0.1", 8443)}))
    assert check_address("127.80.0.1", 8443, policy) is EgressVerdict.ALLOWED
    assert check_address("127.80.0.1", 8444, policy) is EgressVerdict.PRIVATE_ADDRESS
    assert check_address("127.80.0.2", 8443, policy) is EgressVerdict.PRIVATE_ADDRESS


@pytest.mark.parametrize("text", ["", "example.org", "1.2.3", "0x7f000001"])
def test_only_literals_are_addresses(text: str) -> None:
    assert check_address(text, 443, POLICY) is EgressVerdict.NOT_AN_ADDRESS


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST.", "router", "x.local", "a.b.internal", "nas.lan", "x.home.arpa"]
)
def test_private_names_are_refused(name: str) -> None:
    assert check_name(name) is EgressVerdict.PRIVATE_NAME


@pytest.mark.parametrize("name", ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"])
def test_a_literal_that_hides_another_address_is_refused(name: str) -> None:
    assert check_name(name) is EgressVerdict.EMBEDDED_ADDRESS


@pytest.mark.parametrize("name", ["example.org", "1.1.1.1", "2606:4700::1111"])
def test_public_names_and_plain_literals_pass_to_the_address_check(name: str) -> None:
    assert check_name(name) is EgressVerdict.ALLOWED


@given(st.integers(0, 2**32 - 1))
def test_no_form_of_an_address_says_more_than_its_plain_form(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    verdict = check_address(str(plain), 443, POLICY)
    mapped = check_address(f"::ffff:{plain}", 443, POLICY)
    nat64 = check_address(str(ipaddress.IPv6Address((0x64FF9B << 96) | number)), 443, POLICY)
    assert mapped is verdict
    assert nat64 is verdict


FILE: dict[str, list[dict[str, Any]]] = json.loads(Path("docs/protocol/egress.json").read_text())


@pytest.mark.parametrize("row", FILE["own"], ids=lambda row: f"{row['address']} of {row['of']}")
def test_what_is_an_exit_s_own_is_refused_as_the_vectors_say(row: dict[str, Any]) -> None:
    address, _, prefix = row["of"].partition("/")
    own = own_network(address, int(prefix) if prefix else None)
    assert check_address(row["address"], 443, POLICY, [own] if own else []).value == row["verdict"]


def test_the_lab_list_opens_an_exit_s_own_network_too() -> None:
    policy = EgressPolicy(lab_allow=frozenset({("91.198.174.192", 80)}))
    own = own_network("91.198.174.192")
    assert own is not None
    assert check_address("91.198.174.192", 80, policy, [own]) is EgressVerdict.ALLOWED
    assert check_address("91.198.174.192", 81, policy, [own]) is EgressVerdict.OWN_NETWORK


@pytest.mark.parametrize("row", FILE["addresses"], ids=lambda row: f"{row['address']}:{row['port']}")
def test_verdicts_are_those_of_the_vectors(row: dict[str, Any]) -> None:
    assert check_address(row["address"], row["port"], POLICY).value == row["verdict"]


@pytest.mark.parametrize(
    ("host", "blocked"),
    [
        ("bank.example", True), ("Bank.Example.", True), ("www.bank.example", True), ("a.b.bank.example", True),
        ("mybank.example", False), ("bank.example.org", False), ("example", False), ("8.8.8.8", False), ("", False),
    ],
)  # fmt: skip
def test_a_closed_domain_closes_what_is_below_it_and_nothing_else(host: str, blocked: bool) -> None:
    assert is_blocked_domain(host, parse_domains({"blocked": ["bank.example", "other.example"]})) == blocked


@pytest.mark.parametrize(
    "value",
    [
        {}, {"blocked": "bank.example"}, {"blocked": [], "allowed": []}, {"blocked": ["com"]}, {"blocked": [7]},
        {"blocked": ["Bank.example"]}, {"blocked": ["bank.example."]}, {"blocked": ["*.bank.example"]},
        {"blocked": ["https://bank.example"]}, {"blocked": ["a" * 64 + ".example"]}, {"blocked": ["a.example"] * 5001},
    ],
)  # fmt: skip
def test_a_list_of_domains_that_cannot_be_meant_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="blocked: "):
        parse_domains(value)
