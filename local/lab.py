"""The lab: which loopback addresses are which network, certificates, and secrets of one run.

Address -> class goes through MMDB files and the ASN table exactly as in production; only the ranges are loopback and the
ASNs private-use (RFC 6996).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from local.cache_users import access_strings

TARGET_NAME: Final = "target.lab.psx.example"
TARGET_ADDRESS: Final = "127.80.0.1"
RELAY_NAMES: Final = {"eu": "127.30.0.1", "us": "127.30.0.2"}
RELAY_COUNTRIES: Final = {"eu": ["de", "gb", "fr", "nl"], "us": ["*"]}
AGENT_ADDRESS: Final = "127.20.0.1"
SOLANA_AGENT_ADDRESS: Final = "127.20.0.3"
THIEF_ADDRESS: Final = "127.20.0.2"
GRADING: Final = {"retry_s": 1, "interval_s": 30, "failing_s": 2}
"""The setting `grading` of the lab, where nobody wants to wait."""


@dataclass(frozen=True, slots=True)
class Network:
    """One lab network: a loopback range that belongs to a carrier, a home ISP or a hoster."""

    cidr: str
    asn: int
    name: str
    ip_class: str
    country: str

    def host(self, number: int) -> str:
        """An address of the range."""
        return self.cidr.rpartition(".")[0] + f".{number}"


NETWORKS: Final = (
    Network("127.10.1.0/24", 64601, "Lab Mobile US", "mobile", "US"),
    Network("127.10.2.0/24", 64602, "Lab Mobile DE", "mobile", "DE"),
    Network("127.10.3.0/24", 64603, "Lab Mobile GB", "mobile", "GB"),
    Network("127.10.4.0/24", 64604, "Lab Mobile BR", "mobile", "BR"),
    Network("127.11.1.0/24", 64611, "Lab Home US", "residential", "US"),
    Network("127.11.2.0/24", 64612, "Lab Home DE", "residential", "DE"),
    Network("127.11.3.0/24", 64613, "Lab Home FR", "residential", "FR"),
    Network("127.12.1.0/24", 64621, "Lab Hosting NL", "datacenter", "NL"),
)
BY_NAME: Final = {network.name: network for network in NETWORKS}


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One peer of the lab: its name, address, fault if any, and the region it first goes to when that is a wrong one."""

    name: str
    address: str
    network: Network
    fault: str = ""
    first_region: str = ""


@dataclass(frozen=True, slots=True)
class ModemPlan:
    """One modem of the lab's farm."""

    name: str
    exit_address: str
    network: Network


def _peer(name: str, network: str, number: int, fault: str = "", first_region: str = "") -> PeerPlan:
    found = BY_NAME[network]
    return PeerPlan(name, found.host(number), found, fault, first_region)


PEERS: Final = (
    _peer("phone-us-1", "Lab Mobile US", 11),
    _peer("home-us-1", "Lab Home US", 11),
    _peer("phone-de-1", "Lab Mobile DE", 11),
    _peer("home-de-1", "Lab Home DE", 11),
    _peer("phone-gb-1", "Lab Mobile GB", 11),
    _peer("home-fr-1", "Lab Home FR", 11),
    _peer("phone-br-1", "Lab Mobile BR", 11),
    _peer("server-nl-1", "Lab Hosting NL", 11),
    _peer("phone-de-2", "Lab Mobile DE", 12, first_region="us"),
    _peer("phone-us-broken", "Lab Mobile US", 13, fault="tls_drop"),
    _peer("home-fr-slow", "Lab Home FR", 13, fault="slow"),
    _peer("phone-gb-altering", "Lab Mobile GB", 13, fault="corrupt"),
)
MODEMS: Final = (
    ModemPlan("modem-us-1", BY_NAME["Lab Mobile US"].host(101), BY_NAME["Lab Mobile US"]),
    ModemPlan("modem-us-2", BY_NAME["Lab Mobile US"].host(102), BY_NAME["Lab Mobile US"]),
    ModemPlan("modem-de-1", BY_NAME["Lab Mobile DE"].host(101), BY_NAME["Lab Mobile DE"]),
)


@dataclass(frozen=True, slots=True)
class LabFiles:
    """Files of one run."""

    asn_mmdb: Path
    country_mmdb: Path
    asn_classes: Path
    ca: Path
    target_cert: Path
    relay_cert: Path


def write_files(
    folder: Path, networks: Sequence[Network] = NETWORKS, relays: Iterable[str] = tuple(RELAY_NAMES.values())
) -> LabFiles:
    """MMDBs, ASN table and certificates of a run."""
    files = LabFiles(
        folder / "asn.mmdb",
        folder / "country.mmdb",
        folder / "asn_classes.csv",
        folder / "ca.pem",
        folder / "target.pem",
        folder / "relay.pem",
    )
    write_mmdb(files, networks)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(files.ca))
    _certificate(ca, files.target_cert, TARGET_NAME)
    _certificate(ca, files.relay_cert, *relays)
    return files


def _certificate(ca: trustme.CA, path: Path, *names: str) -> None:
    issued = ca.issue_cert(*names)
    path.touch(mode=0o600)
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))


def write_mmdb(files: LabFiles, networks: Sequence[Network]) -> None:
    """Country and ASN databases in the MaxMind layout, and the class table."""
    asn = MMDBWriter(ip_version=4, database_type="GeoLite2-ASN", description="psx lab")
    country = MMDBWriter(ip_version=4, database_type="GeoLite2-Country", description="psx lab")
    rows = ["asn,class,name,source,checked_on"]
    for network in networks:
        ranges = IPSet([network.cidr])
        asn.insert_network(
            ranges,
            {"autonomous_system_number": network.asn, "autonomous_system_organization": network.name},
        )
        country.insert_network(ranges, {"country": {"iso_code": network.country}})
        rows.append(f"{network.asn},{network.ip_class},{network.name},lab,2026-11-21")
    asn.to_db_file(str(files.asn_mmdb))
    country.to_db_file(str(files.country_mmdb))
    files.asn_classes.write_text("\n".join(rows) + "\n")


@dataclass(frozen=True, slots=True)
class LabSecrets:
    """Fresh secrets of one run; they live in memory and in the environment of the processes that need them."""

    pepper: str
    sealing_key: str
    master_key: str
    quote_secret: str
    mesh_token: str
    jwt_private: str
    jwt_public: str
    target_private: str
    target_public: str
    asking_key: str
    cache: Mapping[str, str]
    """Passwords of the cache's users."""


def fresh_secrets() -> LabSecrets:
    """Secrets that no other run has."""
    return LabSecrets(
        secrets.token_hex(32),
        secrets.token_hex(32),
        secrets.token_hex(32),
        secrets.token_hex(32),
        secrets.token_urlsafe(32),
        *_key_pair(),
        *_key_pair(),
        secrets.token_hex(32),
        {user: secrets.token_hex(32) for user in access_strings()},
    )


def _key_pair() -> tuple[str, str]:
    """A fresh Ed25519 pair: (private PEM, public PEM)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


def targets_setting(ports: dict[str, tuple[int, int]], address: str = TARGET_ADDRESS) -> str:
    """`PSX_PROBE_TARGETS` of the lab: two places at one address."""
    return json.dumps(
        [
            {
                "place": place,
                "name": TARGET_NAME,
                "address": address,
                "port": port,
                "plainPort": plain_port,
            }
            for place, (port, plain_port) in ports.items()
        ]
    )


def relays_setting(ports: Mapping[str, int], addresses: Mapping[str, str] = RELAY_NAMES) -> str:
    """`PSX_RELAYS` of the lab."""
    return json.dumps(
        {
            region: {
                "url": f"wss://{address}:{ports[region]}/",
                "countries": RELAY_COUNTRIES[region],
            }
            for region, address in addresses.items()
        }
    )
