"""Rows: medians, goals, and what is missing."""

from benchmarks.row import OURS, Goal, Reading, compare, short


def _rounds(*values: float) -> list[Reading]:
    return [Reading(value) for value in values]


def test_a_row_compares_medians_with_every_goal() -> None:
    rounds = {OURS: _rounds(9, 10, 50), "slow": _rounds(4, 5, 6), "fast": _rounds(19, 20, 21)}
    row = compare("bulk", "MB/s", rounds, [Goal("slow", 2), Goal("fast", 0.5)])
    assert (row.ours, row.peers, row.ratio, row.ok) == (10, {"slow": 5, "fast": 20}, 2, True)
    assert row.goal == ">= 2 x slow, >= 0.5 x fast"
    assert not compare("bulk", "MB/s", rounds, [Goal("slow", 2), Goal("fast", 0.6)]).ok


def test_less_is_better_where_the_goal_says_at_most() -> None:
    rounds = {OURS: _rounds(10), "peer": _rounds(5)}
    assert compare("p50", "us", rounds, [Goal("peer", 2, at_most=True)]).ok
    assert not compare("p50", "us", rounds, [Goal("peer", 1.9, at_most=True)]).ok


def test_a_goal_without_a_peer_is_the_bound_itself() -> None:
    rounds = {OURS: _rounds(3.9), "peer": _rounds(14)}
    row = compare("memory", "KB", rounds, [Goal("", 4, at_most=True)])
    assert (row.ok, row.goal, row.ratio) == (True, "<= 4", None)


def test_a_missing_peer_fails_the_row_and_is_listed_even_when_no_goal_names_it() -> None:
    rounds = {OURS: _rounds(10), "peer": _rounds(1), "broken": []}
    row = compare("bulk", "MB/s", rounds, [Goal("peer", 1)], ["absent"])
    assert (row.ok, row.missing) == (False, ["absent", "broken"])
    assert row.peers == {"peer": 1, "absent": None, "broken": None}


def test_a_row_without_our_figure_is_not_ok() -> None:
    row = compare("bulk", "MB/s", {OURS: [], "peer": _rounds(1)}, [Goal("peer", 1, at_most=True)])
    assert (row.ours, row.ok, row.missing) == (0, False, [OURS])


def test_noise_is_the_range_and_says_how_many_rounds_were_disturbed() -> None:
    rounds = {OURS: [Reading(1234.5), Reading(0.1234, disturbed=True)], "peer": _rounds(2)}
    row = compare("bulk", "MB/s", rounds, [Goal("peer", 1)])
    assert (row.noise, row.ranges["peer"]) == ("0.123-1234 ~1", "2-2")


def test_cpu_is_the_median_of_the_rounds_that_read_it() -> None:
    rounds = {OURS: [Reading(1, 0.4), Reading(1, 0.6), Reading(1, 0.5)], "peer": _rounds(1)}
    assert compare("bulk", "MB/s", rounds, [Goal("peer", 1)]).cpu == {OURS: 0.5}


def test_figures_have_three_digits_and_no_exponent() -> None:
    assert [short(v) for v in (12345.6, 100, 12.345, 0.0123)] == ["12346", "100", "12.3", "0.0123"]
