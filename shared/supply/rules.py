"""Pure decisions of enrolment: which region serves a country, which names look random, what a device is."""

import re
from collections.abc import Iterable
from typing import Final

from shared.supply.model import EVERY_OTHER_COUNTRY, Region

_UUID: Final = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_LONG_HEX: Final = re.compile(r"[0-9a-f]{16,}", re.IGNORECASE)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:@-]{0,127}")


def assign_region(country: str, regions: Iterable[Region]) -> Region:
    """The region that serves a country. The regions hold exactly one that serves every other country."""
    rest: Region | None = None
    for region in regions:
        if country in region.countries:
            return region
        if EVERY_OTHER_COUNTRY in region.countries:
            rest = region
    if rest is None:
        raise ValueError("no region serves the rest")
    return rest


def looks_random(name: str) -> bool:
    """Whether a device name will probably differ at the next start, which makes a new device each time."""
    return bool(_UUID.search(name) or _LONG_HEX.search(name))


def slug(text: str) -> str:
    """A name as a username token can carry it: lower case, letters and digits, at most 64."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:64]
