"""Address -> country, ASN and class, from MMDB files that the operator supplies and the ASN class table.

Understands the MaxMind, DB-IP and IPinfo layouts. A class is only ever what the table says of the ASN; an ASN that it does
not know is `unknown` and is never paid as mobile.
"""

import csv
from pathlib import Path
from typing import Any

import maxminddb

from shared.kernel.codes import IpType
from shared.kernel.ids import UNKNOWN_COUNTRY, Country
from shared.supply.model import Origin


def read_asn_classes(path: Path) -> dict[int, IpType]:
    """The reviewed table: CSV with a header that has `asn` and `class`. Raises ValueError on a class nobody knows."""
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["asn"]): IpType(row["class"]) for row in csv.DictReader(file)}


class OriginReader:
    """Looks addresses up; open for the life of the process."""

    def __init__(self, asn_mmdb: Path, country_mmdb: Path, asn_classes: Path) -> None:
        self._asn = maxminddb.open_database(asn_mmdb)
        self._country = maxminddb.open_database(country_mmdb)
        self._classes = read_asn_classes(asn_classes)

    def lookup(self, address: str) -> Origin:
        """The origin of an address; every part that is not known stays unknown."""
        try:
            network, place = self._asn.get(address), self._country.get(address)
        except ValueError:
            return Origin()
        number, name = _network(network if isinstance(network, dict) else {})
        country = _country(place if isinstance(place, dict) else {})
        return Origin(country, self._classes.get(number, IpType.UNKNOWN), number, name)

    def close(self) -> None:
        """Close both files."""
        self._asn.close()
        self._country.close()


def _network(row: dict[str, Any]) -> tuple[int, str]:
    number = row.get("autonomous_system_number", row.get("asn", 0))
    name = row.get("autonomous_system_organization", row.get("as_name", row.get("name", "")))
    if isinstance(number, str):  # IPinfo writes "AS64500"
        digits = number.upper().removeprefix("AS")
        number = int(digits) if digits.isdecimal() else 0
    return int(number), str(name)


def _country(row: dict[str, Any]) -> Country:
    place = row.get("country", row.get("country_code", ""))
    code = place.get("iso_code", "") if isinstance(place, dict) else place
    return Country(str(code).lower()) if len(str(code)) == 2 else UNKNOWN_COUNTRY
