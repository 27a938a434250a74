"""How far a fault reaches, when it becomes an incident, and whether a bill can be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.upkeep.model import Check, Finding, Observation, Scope
from shared.upkeep.rules import OVERHEAD_BYTES, RUNS_TO_OPEN, advance, billing_fault, judge

CONTROL = Observation(Check.CONTROL, ok=True)


def tries(**failing: set[Check]) -> list[Observation]:
    """What two gateways and two countries give, with some checks of a gateway failing."""
    seen = [CONTROL]
    for gateway in ("a", "b"):
        bad = failing.get(gateway, set())
        seen += [Observation(c, c not in bad, gateway) for c in (Check.HTTP, Check.SOCKS, Check.STICKY)]
        seen += [
            Observation(Check.COUNTRY, Check.COUNTRY not in bad, gateway, country) for country in ("us", "de")
        ]
    return seen


ALL = {Check.HTTP, Check.SOCKS, Check.STICKY, Check.COUNTRY}


def found(seen: list[Observation]) -> list[tuple[Scope, str]]:
    return sorted((f.scope, f.name) for f in judge(seen))


def test_all_well_is_nothing() -> None:
    assert judge(tries()) == []


def test_a_blind_watchdog_accuses_nobody_else() -> None:
    blind = [Observation(Check.CONTROL, ok=False, detail="timeout"), *tries(a=ALL, b=ALL)[1:]]
    assert found(blind) == [(Scope.WATCHDOG, "")]


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ({"a": ALL}, [(Scope.GATEWAY, "a")]),
        ({"a": ALL, "b": ALL}, [(Scope.FLEET, "")]),
        ({"a": {Check.SOCKS}}, [(Scope.GATEWAY, "a")]),
        ({"a": {Check.SOCKS}, "b": {Check.SOCKS}}, [(Scope.FLEET, "")]),
        ({"a": {Check.COUNTRY}, "b": {Check.COUNTRY}}, [(Scope.COUNTRY, "de"), (Scope.COUNTRY, "us")]),
        ({"a": {Check.COUNTRY}}, [(Scope.GATEWAY, "a")]),
    ],
)
def test_the_widest_scope_that_explains_what_was_seen_is_told(
    failing: dict[str, set[Check]], expected: list[tuple[Scope, str]]
) -> None:
    assert found(tries(**failing)) == expected


def test_one_country_on_every_gateway_is_that_country() -> None:
    seen = [o for o in tries() if o.country != "de"]
    seen += [Observation(Check.COUNTRY, False, gateway, "de") for gateway in ("a", "b")]
    assert found(seen) == [(Scope.COUNTRY, "de")]


def test_relays_settings_and_bills_are_told_beside_routing() -> None:
    seen = [
        *tries(),
        Observation(Check.RELAY, False, relay="relay-eu"),
        Observation(Check.RECIPIENTS, False, detail="recipient of base"),
        Observation(Check.BILLING, False),
        Observation(Check.SUSPENDED, False, "a"),
    ]
    assert {scope for scope, _ in found(seen)} == {Scope.RELAY, Scope.SETTINGS, Scope.FLEET}
    assert len(judge(seen)) == 4


LOOKED = [Observation(check, True, "a") for check in (Check.HTTP, Check.SOCKS, Check.CONTROL)]


def test_two_runs_in_a_row_open_an_incident_and_one_good_one_closes_it() -> None:
    bad = Finding(Scope.FLEET, Check.HTTP)
    first = advance({}, [bad], LOOKED)
    assert (first.standing, first.closed) == ((), ())
    second = advance(first.counts, [bad], LOOKED)
    assert (second.standing, second.closed) == ((bad,), ())
    third = advance(second.counts, [bad], LOOKED)
    assert (third.standing, third.closed) == ((bad,), ()), "closed by hand, it is opened again"
    assert advance(third.counts, [], LOOKED).closed == (bad.key,)
    assert advance(first.counts, [], LOOKED).closed == ()


def test_a_blind_run_neither_opens_nor_closes_anything_else() -> None:
    bad, blind = Finding(Scope.FLEET, Check.HTTP), Finding(Scope.WATCHDOG, Check.CONTROL)
    opened = advance(advance({}, [bad], LOOKED).counts, [bad], LOOKED)
    meanwhile = advance(opened.counts, [blind], LOOKED)
    assert (meanwhile.standing, meanwhile.closed) == ((), ())
    again = advance(meanwhile.counts, [bad], LOOKED)
    assert (again.standing, again.closed) == ((bad,), ())
    assert advance(again.counts, [], LOOKED).closed == (bad.key,)


@pytest.mark.parametrize(
    ("finding", "seen", "closes"),
    [
        (Finding(Scope.GATEWAY, Check.HTTP, "a"), LOOKED, True),
        (Finding(Scope.GATEWAY, Check.HTTP, "b"), LOOKED, False),
        (Finding(Scope.GATEWAY, Check.HTTP, "gone"), LOOKED, True),
        (Finding(Scope.FLEET, Check.PURCHASE), LOOKED, False),
        (Finding(Scope.FLEET, Check.SOCKS), LOOKED, True),
        (Finding(Scope.RELAY, Check.RELAY, "eu"), [Observation(Check.RELAY, True, relay="us")], True),
    ],
)
def test_only_what_was_looked_at_is_right_again(
    finding: Finding, seen: list[Observation], closes: bool
) -> None:
    turn = advance({finding.key: RUNS_TO_OPEN}, [], seen, ["a", "b"])
    assert turn.closed == ((finding.key,) if closes else ())
    assert turn.counts == ({} if closes else {finding.key: RUNS_TO_OPEN})


@given(st.lists(st.lists(st.sampled_from([Check.HTTP, Check.SOCKS, Check.CONTROL]), max_size=3), max_size=30))
def test_nothing_is_closed_that_did_not_stand_or_still_does(runs: list[list[Check]]) -> None:
    counts: dict[str, int] = {}
    standing: set[str] = set()
    for checks in runs:
        findings = [
            Finding(Scope.WATCHDOG if check is Check.CONTROL else Scope.FLEET, check) for check in set(checks)
        ]
        turn = advance(counts, findings, LOOKED)
        told = {f.key for f in turn.standing}
        assert not told & set(turn.closed)
        assert set(turn.closed) <= standing
        standing = (standing | told) - set(turn.closed)
        counts = dict(turn.counts)
        assert all(1 <= count <= RUNS_TO_OPEN for count in counts.values())


@pytest.mark.parametrize(
    ("billed", "right"),
    [
        (99_000, False),
        (100_000, True),
        (100_000 + 4 * OVERHEAD_BYTES, True),
        (100_001 + 4 * OVERHEAD_BYTES, False),
    ],
)
def test_a_bill_is_what_was_carried_and_the_overhead_of_each_fetch(billed: int, right: bool) -> None:
    assert (billing_fault(100_000, 4, 0, billed) is None) is right
