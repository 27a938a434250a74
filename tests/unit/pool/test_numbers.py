"""What of the derived numbers anybody may be routed to."""

import json
from dataclasses import asdict

import pytest

from shared.kernel.codes import Pool
from shared.kernel.ids import Country
from shared.pool.numbers import Numbers, _known

US, DE, FR = Country("us"), Country("de"), Country("fr")
NUMBERS = Numbers(
    1,
    stock={"mbl": {"us": 2}, "peer": {"us": 1, "de": 3}},
    held={"mbl": {"fr": 4}},
    types={
        "mbl": {"us": {"mobile": 2}},
        "peer": {"us": {"residential": 1}, "de": {"mobile": 3}},
    },
)


@pytest.mark.parametrize(
    ("pool", "country", "ip_type", "is_free"),
    [
        (Pool.MBL, US, "", True),
        (Pool.MBL, DE, "", False),
        (Pool.MBL, FR, "", False),
        (Pool.MBL, None, "", True),
        (Pool.PEER, US, "residential", True),
        (Pool.PEER, US, "mobile", False),
        (Pool.PEER, DE, "residential", False),
        (Pool.PEER, None, "mobile", True),
        (Pool.PEER, None, "datacenter", False),
    ],
)
def test_what_is_free_is_of_the_country_and_the_type_that_are_asked_for(
    pool: Pool, country: Country | None, ip_type: str, is_free: bool
) -> None:
    assert NUMBERS.is_free(pool, country, ip_type) is is_free


def test_nothing_is_free_of_nothing() -> None:
    assert not Numbers(1).is_free(Pool.MBL, None)


def test_a_rollup_of_another_version_is_read() -> None:
    stored = json.loads(json.dumps(asdict(NUMBERS)))
    del stored["held"]
    read = _known({**stored, "added_later": 1})
    assert (read.stock, read.held) == (NUMBERS.stock, {})
