"""Where traffic through somebody's device may go: never into private networks, never to mail ports.

The same policy runs in the gateway (on the name and on the resolved address) and in every SDK (on the address that is
dialled). IPv4 inside IPv6 (mapped, NAT64, 6to4) is unwrapped and checked; a customer's literal of that kind is refused.
What is public for everybody else may still be the owner's, so an exit's own networks are closed too: decision 0087.
The list is written out, because what `ipaddress` takes for global differs between versions of Python.
Source: the IANA special-purpose registries (RFC 6890), RFC 6052, RFC 3056, RFC 6598; vectors: docs/protocol/egress.json.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

MAIL_PORTS: Final = frozenset({25, 465, 587, 2525})
MAX_PORT: Final = 65_535
VERDICTS_KEPT: Final = 4096
DOMAINS_MAX: Final = 5_000
"""Of the setting `domains`: they stand in one row."""

OWN_PREFIX_4_MIN: Final = 8
OWN_PREFIX_6_MIN: Final = 32
"""An interface that claims a larger network than this is set wrong: its address counts as if it were told alone."""
OWN_PREFIX_6: Final = 64
"""One home's line, or one phone's: whatever is in it is the owner's."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # what Azure tells a machine of itself, at an address that looks public
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
_SPECIAL_6: Final = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_DOMAIN: Final = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")
_PRIVATE_NAMES: Final = (
    ".local",
    ".internal",
    ".localhost",
    ".lan",
    ".home.arpa",
    ".intranet",
    ".corp",
    ".home",
)


class EgressVerdict(StrEnum):
    """Whether a target may be dialled, and if not, why."""

    ALLOWED = "allowed"
    PRIVATE_ADDRESS = "private_address"
    OWN_NETWORK = "own_network"
    EMBEDDED_ADDRESS = "embedded_ipv4_literal"
    PRIVATE_NAME = "private_name"
    BLOCKED_PORT = "blocked_port"
    NOT_AN_ADDRESS = "not_an_address"


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """`lab_allow` are (address, port) pairs let through on a lab machine; settings refuse it anywhere else."""

    blocked_ports: frozenset[int] = MAIL_PORTS
    lab_allow: frozenset[tuple[str, int]] = frozenset()


@lru_cache(maxsize=VERDICTS_KEPT)
def check_name(name: str) -> EgressVerdict:
    """The verdict on a name before it is resolved; a literal is checked as one that a customer wrote."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        lowered = name.lower().rstrip(".")
        private = lowered == "localhost" or "." not in lowered or lowered.endswith(_PRIVATE_NAMES)
        return EgressVerdict.PRIVATE_NAME if private else EgressVerdict.ALLOWED
    embedded = isinstance(address, ipaddress.IPv6Address) and _embedded_ipv4(address) is not None
    return EgressVerdict.EMBEDDED_ADDRESS if embedded else EgressVerdict.ALLOWED


def parse_domains(value: Mapping[str, Any]) -> frozenset[str]:
    """The setting `domains`, `{"blocked": [name, ...]}`. Raises ValueError naming what is wrong."""
    blocked = value.get("blocked")
    if value.keys() != {"blocked"} or not isinstance(blocked, list) or len(blocked) > DOMAINS_MAX:
        raise ValueError(f"blocked: a list of at most {DOMAINS_MAX} domains, and nothing else")
    for name in blocked:
        if not isinstance(name, str) or not _DOMAIN.fullmatch(name):
            raise ValueError(
                "blocked: each is a domain in lower case (xn-- for other scripts), without a final dot"
            )
    return frozenset(blocked)


def is_blocked_domain(host: str, blocked: frozenset[str]) -> bool:
    """Whether a name is one of these domains or below one of them."""
    if not blocked:
        return False
    labels = host.lower().rstrip(".").split(".")
    return any(".".join(labels[start:]) in blocked for start in range(len(labels)))


def check_address(
    address: str, port: int, policy: EgressPolicy, own: Iterable[Network] = ()
) -> EgressVerdict:
    """The verdict on the address and port that are about to be dialled. `own`: the networks of the exit itself."""
    verdict, forms, text = _judged(address)
    if (text, port) in policy.lab_allow:
        return EgressVerdict.ALLOWED
    if verdict is EgressVerdict.NOT_AN_ADDRESS:
        return verdict
    if port in policy.blocked_ports or not 0 < port <= MAX_PORT:
        return EgressVerdict.BLOCKED_PORT
    if verdict is EgressVerdict.ALLOWED:
        for network in own:
            for form in forms:
                if form in network:
                    return EgressVerdict.OWN_NETWORK
    return verdict


@lru_cache(maxsize=VERDICTS_KEPT)
def own_network(address: str, prefix: int | None = None) -> Network | None:
    """What is an exit's own for having this address: on an interface with this prefix, or as others see it.

    Of IPv6 never less than the /64. None for what is no address.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed, prefix = parsed.ipv4_mapped, None
    alone, least = (32, OWN_PREFIX_4_MIN) if parsed.version == 4 else (OWN_PREFIX_6, OWN_PREFIX_6_MIN)
    bits = min(prefix, alone) if prefix is not None and prefix >= least else alone
    return ipaddress.ip_network((parsed, bits), strict=False)


@lru_cache(maxsize=VERDICTS_KEPT)
def _judged(address: str) -> tuple[EgressVerdict, tuple[_Address, ...], str]:
    """(verdict on an address whatever the port, the address and the IPv4 one that it embeds, its usual form)."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return EgressVerdict.NOT_AN_ADDRESS, (), ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return EgressVerdict.PRIVATE_ADDRESS, (parsed,), str(parsed)
        embedded = _embedded_ipv4(parsed)
        if embedded is not None:
            return _public(embedded), (parsed, embedded), str(parsed)
    return _public(parsed), (parsed,), str(parsed)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if int(address) >> 32 == 0 and int(address) > 1:  # IPv4-compatible, RFC 4291 2.5.5.1
        return ipaddress.IPv4Address(int(address))
    return address.ipv4_mapped or address.sixtofour


def _public(address: _Address) -> EgressVerdict:
    if isinstance(address, ipaddress.IPv4Address):
        private = any(address in network for network in _SPECIAL_4)
    else:
        private = address not in _GLOBAL_UNICAST or any(address in network for network in _SPECIAL_6)
    return EgressVerdict.PRIVATE_ADDRESS if private else EgressVerdict.ALLOWED
