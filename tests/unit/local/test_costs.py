"""The cost model: what its page shows is what it computes, and more of anything never costs less."""

import re
from itertools import pairwise

import pytest

from local.costs import DEVICES, DOLLAR, TERABYTES, Month, leaving, month, table
from local.paths import ROOT


def test_the_page_shows_what_the_model_computes() -> None:
    page = (ROOT / "docs" / "operations" / "costs.md").read_text("utf-8")
    assert table() in page, "put what `./psx costs` prints into docs/operations/costs.md"


@pytest.mark.parametrize(
    ("gigabytes", "dollars"), [(0, 0), (10_000, 900), (50_000, 4_300), (150_000, 11_300)]
)
def test_what_leaves_is_priced_in_steps(gigabytes: int, dollars: int) -> None:
    assert leaving(gigabytes) == dollars * DOLLAR


def test_more_devices_or_more_traffic_never_cost_less() -> None:
    for name in Month.__slots__:
        for fewer, more in pairwise(DEVICES):
            assert getattr(month(fewer, 10), name) <= getattr(month(more, 10), name), name
        for less, more in pairwise(TERABYTES):
            assert getattr(month(1_000, less), name) <= getattr(month(1_000, more), name), name


def test_the_page_says_of_each_price_where_it_is_looked_up() -> None:
    page = (ROOT / "docs" / "operations" / "costs.md").read_text("utf-8")
    source = (ROOT / "local" / "costs.py").read_text("utf-8")
    prices = source.partition("# Prices")[2].partition("# Loads")[0]
    named = set(re.findall(r"^([A-Z_]+): Final", prices, re.M))
    assert named
    assert [name for name in named if f"`{name}`" not in page.partition("Where each price")[2]] == []
