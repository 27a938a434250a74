"""The status page says what the numbers say, and nothing that somebody wrote becomes a part of it."""

import re

from functions.api.status_page import render, row_of
from shared.guard.model import Incident
from shared.pool.numbers import Numbers
from shared.upkeep.history import Point

HOUR = 3_600_000
NUMBERS = Numbers(
    1_800_000_000_000,
    stock={"mbl": {"us": 2}, "peer": {"us": 5, "de": 1}},
    online={"mbl": {"us": 2}, "peer": {"us": 4, "de": 1}},
    load={"mbl": {"us": 7}, "peer": {}},
    quality={
        "mbl": {"us": {"fast": 2, "paused": 1}},
        "peer": {"us": {"fast": 1, "slow": 4}, "de": {"unknown": 1}},
    },
)


def page(*incidents: Incident, history: tuple[Point, ...] = ()) -> str:
    return render(NUMBERS, incidents, history, "The last 72 hours", "https://api.example")


def point(hour: int, stock: int) -> Point:
    mean = {"stock.peer.us": stock, "stock.mbl.us": 1, "traffic.bytesPerSecond": 9, "fleet.devices": 99}
    return Point(hour * HOUR, mean, mean, mean)


def test_a_row_is_modems_peers_connected_tiers_and_paused() -> None:
    assert row_of(NUMBERS, "us") == [2, 5, 6, 3, 0, 4, 0, 1]
    assert row_of(NUMBERS, "de") == [0, 1, 1, 0, 0, 0, 1, 0]
    cells = re.findall(r'<tr data-country="(..)"><td>..</td>(.*?)</tr>', page())
    assert [(c, [int(n) for n in re.findall(r"<td>(\d+)</td>", row)]) for c, row in cells] == [
        ("DE", row_of(NUMBERS, "de")),
        ("US", row_of(NUMBERS, "us")),
    ]
    assert "8 exits are on sale, 7 of them are connected now, 7 connections are open" in page()


def test_incidents_are_told_as_text_and_closed_ones_as_past() -> None:
    opened = Incident("1", "k", "<script>alert(1)</script> & more", 1_800_000_000_000)
    closed = Incident("2", "k", "relay eu was away", 1_799_990_000_000, 1_799_999_000_000)
    shown = page(opened, closed)
    assert "Open incidents: 1" in shown
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "relay eu was away" in shown
    assert "Nothing is known to be wrong" in page(closed)


def test_without_the_live_store_the_rest_is_told_and_nothing_is_called_fine() -> None:
    opened = Incident("1", "k", "the cache is away", 1_800_000_000_000)
    shown = render(None, [opened], tuple(point(h, h) for h in (1, 2, 3)), "The last 72 hours", "https://api")
    assert "cannot be counted" in shown
    assert "the cache is away" in shown
    assert "<polyline" in shown
    assert "Nothing is known to be wrong" not in render(None, [], (), "x", "https://api")


def test_plots_are_lines_with_gaps_where_nobody_counted() -> None:
    shown = page(history=tuple(point(h, h) for h in (1, 2, 3, 9, 10)))
    first = shown[shown.index("<svg") : shown.index("</svg>")]
    lines = re.findall(r'points="([^"]+)"', first)
    assert [len(line.split()) for line in lines] == [3, 2]
    places = [tuple(int(n) for n in place.split(",")) for line in lines for place in line.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), "more is higher"
    assert "last 11, at most 11" in shown
    assert "not enough was counted yet" in page()
