"""Address -> country, ASN and class, from MMDB files that the operator supplies and the reviewed table ASN -> class.

Understands the MaxMind, DB-IP and IPinfo layouts. A class is only ever what the table says of the ASN; any other ASN is
`unknown` and is never paid as mobile. Files that change on disk are opened again while the process runs; one that
cannot be read leaves the one before it in use. Sources of the table: docs/decisions/0032-ip-classes.md.
"""

import csv
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import maxminddb

from shared.kernel.codes import IpType
from shared.kernel.ids import UNKNOWN_COUNTRY, Country
from shared.supply.model import Origin

CHECK_EVERY_S: Final = 10.0
REVIEWED_CLASSES: Final = Path(__file__).with_name("asn_classes.csv")

log = logging.getLogger("psx.supply")


def read_asn_classes(path: Path) -> dict[int, IpType]:
    """The reviewed table: CSV with a header that has `asn` and `class`. Raises ValueError on a class nobody knows."""
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["asn"]): IpType(row["class"]) for row in csv.DictReader(file)}


class _Database:
    """One MMDB file, opened again when another one stands in its place; `late` lets it come after the start."""

    def __init__(self, path: Path, *, late: bool) -> None:
        self._path = path
        self._reader: maxminddb.Reader | None = None
        self._stamp: tuple[int, int, int] | None = None
        if not late or path.exists():
            self._reader, self._stamp = maxminddb.open_database(path), _stamp(path)

    def get(self, address: str) -> Mapping[str, Any]:
        """The row of an address; empty when there is none, or when the file knows no such addresses."""
        if self._reader is None:
            return {}
        try:
            row = self._reader.get(address)
        except ValueError:
            return {}
        return row if isinstance(row, dict) else {}

    def follow(self) -> None:
        """Open the file again if it changed. The reader before is left to whoever still asks it."""
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._reader, self._stamp = maxminddb.open_database(self._path), stamp
                log.info("address data renewed", extra={"file": self._path.name})
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            log.warning("address data not renewed", extra={"reason": type(error).__name__})

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class OriginReader:
    """Looks addresses up; open for the life of the process.

    `fetch` may bring newer files and is called now and then. `late` files may be missing at first: nothing is known then.
    """

    def __init__(
        self,
        asn_mmdb: Path,
        country_mmdb: Path,
        asn_classes: Path | None = None,
        *,
        late: bool = False,
        fetch: Callable[[], None] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asn, self._country = _Database(asn_mmdb, late=late), _Database(country_mmdb, late=late)
        self._classes = read_asn_classes(asn_classes or REVIEWED_CLASSES)
        self._fetch = fetch
        self._monotonic_s = monotonic_s
        self._checked_s = monotonic_s()

    def lookup(self, address: str) -> Origin:
        """The origin of an address; every part that is not known stays unknown."""
        now_s = self._monotonic_s()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            self.follow()
        plain = _plain(address)
        number, name = _network(self._asn.get(plain))
        country = _country(self._country.get(plain))
        return Origin(country, self._classes.get(number, IpType.UNKNOWN), number, name)

    def follow(self) -> None:
        """Use files that changed."""
        if self._fetch is not None:
            self._fetch()
        self._asn.follow()
        self._country.follow()

    def close(self) -> None:
        """Close both files."""
        self._asn.close()
        self._country.close()


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _plain(address: str) -> str:
    """An IPv4 address that came through an IPv6 socket, as itself."""
    if not address.lower().startswith("::ffff:"):
        return address
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return str(mapped) if mapped is not None else address


def _network(row: Mapping[str, Any]) -> tuple[int, str]:
    """DB-IP nests the network under `traits` in its paid files; MaxMind and the free ones do not."""
    traits = row.get("traits")
    row = traits if isinstance(traits, dict) else row
    number = row.get("autonomous_system_number", row.get("asn", 0))
    name = row.get("autonomous_system_organization", row.get("as_name", row.get("name", "")))
    if isinstance(number, str):  # IPinfo writes "AS64500"
        digits = number.upper().removeprefix("AS")
        number = int(digits) if digits.isdecimal() else 0
    return int(number or 0), str(name or "")


def _country(row: Mapping[str, Any]) -> Country:
    """MaxMind nests the code; IPinfo writes it as `country_code` beside the name, in older files as `country`."""
    place = row.get("country_code") or row.get("country", "")
    code = str(place.get("iso_code", "") if isinstance(place, dict) else place).lower()
    return Country(code) if len(code) == 2 and code.isascii() and code.isalpha() else UNKNOWN_COUNTRY
