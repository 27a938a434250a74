"""Exits that serve probes and let customers down: counted by gateways in Redis, barred by the listing run in the truth."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from gateway_node.fared import FaredBook
from gateway_node.leases import Leases
from shared.grading import table as grades
from shared.grading.conduct import EXCUSES_MAX, HOLD_MS
from shared.grading.listing import ListingRun
from shared.grading.live import (
    accuse,
    conduct_key,
    conduct_mark,
    count_barred,
    count_conduct,
    excuse_conduct,
    forget_conduct,
    mark_changed,
    read_changed,
    read_conduct,
    take_due,
)
from shared.grading.model import Bar, Conduct, Experience, Fared, Grade
from shared.guard.service import all_incidents
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, DeviceId, EndpointId, GatewayId
from shared.pool.live import unpause
from shared.pool.model import Acquired, Selected
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import AsyncRedis, RedisCall, SyncRedis, command
from tests.contract.test_listing import NOW, PASS, US, enrol
from tests.support.permissions import as_function, as_node
from tests.support.pool import peer

pytestmark = pytest.mark.slow
LIAR, GOOD = DeviceId("liar"), DeviceId("good")
CUSTOMERS = [f"c{n}" for n in range(8)]


@pytest.fixture
def redis(any_valkey_url: str) -> Iterator[SyncRedis]:
    executor = SyncRedis(any_valkey_url)
    executor.run(count_conduct([Fared(DeviceId("all"), name, 100, 0) for name in CUSTOMERS]))
    yield executor
    executor.close()


@pytest.fixture
def listing(dynoxide: SyncDynamo, redis: SyncRedis) -> ListingRun:
    run = ListingRun(dynoxide, redis, lambda name: f"psx-test-{name}")
    for name in ("liar", "good"):
        enrol(run, name, PASS, US)
    assert run.run(NOW).listed == 2
    return run


def complain(redis: SyncRedis, *customers: str, of: DeviceId = LIAR) -> None:
    """Each of these was failed twice, each with targets of its own."""
    redis.run(count_conduct([Fared(of, name, 0, 2, (f"{name}a", f"{name}b")) for name in customers]))


def time_passes(redis: SyncRedis, device_id: DeviceId = LIAR) -> None:
    """Long enough for a probe after the first look. None has failed."""
    redis.run(command("HSET", conduct_key(device_id), "accused", 1, parse=int))
    redis.run(mark_changed([conduct_mark(device_id)]))


def grade(listing: ListingRun, device_id: DeviceId = LIAR) -> Grade:
    found = listing.dynamo.run(grades.get_grade("psx-test-grades", device_id))
    assert found is not None
    return found


def test_an_exit_is_counted_from_its_first_failure_on_with_what_its_customers_have_elsewhere(
    redis: SyncRedis,
) -> None:
    redis.run(count_conduct([Fared(LIAR, "c0", 5, 0)]))
    assert redis.run(read_conduct([LIAR])) == [Conduct()], "nobody was failed yet"
    redis.run(count_conduct([Fared(LIAR, "c1", 1, 2, ("x", "y")), Fared(LIAR, "c0", 1, 0)]))
    redis.run(count_conduct([Fared(LIAR, "c1", 0, 1, ("x",)), Fared(LIAR, "new", 0, 1, ("z",))]))
    said = redis.run(read_conduct([LIAR, GOOD]))
    assert set(said[0].customers) == {
        Experience(1, 3, 100, 0),
        Experience(1, 0, 105, 0),
        Experience(0, 1, 0, 0),
    }
    assert (said[0].targets, said[1]) == (3, Conduct())
    for key in (conduct_key(LIAR), "{probe}:customer:new"):
        assert 0 < redis.run(command("TTL", key, parse=int)) <= 3600


def test_a_liar_is_barred_by_its_customers_told_why_and_comes_back_by_itself(
    listing: ListingRun, redis: SyncRedis
) -> None:
    complain(redis, *CUSTOMERS)
    first = listing.run(NOW, sweep=False)
    assert (first.barred, first.listed) == ([], 2), "a probe has its chance first"
    assert redis.run(take_due(60_000, 1, "2026-11-21", 1)).device_ids == (LIAR,), (
        "it is probed before all others"
    )
    time_passes(redis)
    with as_function("list-exits"):
        report = listing.run(NOW, sweep=False)
    assert (report.barred, report.delisted, report.listed) == ([LIAR], ["liar: lets_customers_down"], 1)
    barred = grade(listing)
    assert (barred.listed, barred.bar) == (False, Bar(1, NOW + HOLD_MS))
    assert listing.run(NOW + HOLD_MS - 1).listed == 1
    assert listing.run(NOW + HOLD_MS).newly_listed == [LIAR]
    complain(redis, *CUSTOMERS)
    time_passes(redis)
    assert listing.run(NOW + HOLD_MS, sweep=False).barred == [LIAR]
    assert grade(listing).bar == Bar(2, NOW + 3 * HOLD_MS), "twice as long the second time"


def test_it_is_looked_at_again_when_its_time_is_over(listing: ListingRun, redis: SyncRedis) -> None:
    complain(redis, *CUSTOMERS)
    time_passes(redis)
    listing.run(NOW, sweep=False)
    at_ms, clock = (
        redis.run(command("ZSCORE", "{probe}:changed", "bar:liar", parse=lambda a: int(float(a)))),
        redis.run(command("TIME", parse=lambda a: int(a[0]) * 1000)),
    )
    assert abs(at_ms - clock - HOLD_MS) < 60_000


def test_what_a_failed_probe_explains_bars_nobody(listing: ListingRun, redis: SyncRedis) -> None:
    complain(redis, *CUSTOMERS)
    listing.run(NOW, sweep=False)
    redis.run(excuse_conduct(LIAR))
    complain(redis, *CUSTOMERS)
    assert not redis.run(accuse(LIAR)), "what is told around a failed probe is not counted"
    redis.run(mark_changed([conduct_mark(LIAR)]))
    assert listing.run(NOW, sweep=False).listed == 2


@pytest.mark.parametrize(
    ("settle", "settler"),
    [
        (excuse_conduct, partial(as_node, "gateway", "prober")),
        (forget_conduct, partial(as_function, "list-exits")),
    ],
)
def test_what_is_forgotten_of_an_exit_makes_nobody_a_worse_witness(
    redis: SyncRedis,
    settle: Callable[[DeviceId], RedisCall[Any]],
    settler: Callable[[], AbstractContextManager[None]],
) -> None:
    """Customers have in all what they had without that exit; never less than nothing, and no window begins by it."""
    redis.run(count_conduct([Fared(GOOD, "c0", 3, 0), Fared(GOOD, "young", 1, 0)]))
    redis.run(count_conduct([Fared(LIAR, name, 2, 9, ("t",)) for name in ("c0", "c1", "young", "over")]))
    redis.run(command("HSET", "{probe}:customer:young", "failed", 4, parse=int))  # its window began later
    redis.run(command("DEL", "{probe}:customer:over", parse=int))
    with settler():
        redis.run(settle(LIAR))
    assert [in_all(redis, name) for name in ("c0", "c1", "young")] == [(103, 0), (100, 0), (1, 0)]
    assert not redis.run(command("EXISTS", "{probe}:customer:over", parse=int))
    redis.run(settle(LIAR))
    assert in_all(redis, "c0") == (103, 0)


def test_whom_an_exit_fails_after_a_failed_probe_is_no_worse_witness_either(redis: SyncRedis) -> None:
    redis.run(excuse_conduct(LIAR))
    redis.run(count_conduct([Fared(LIAR, "c0", 1, 9, ("t",))]))
    assert in_all(redis, "c0") == (101, 0), "what served it still speaks for it"


def in_all(redis: SyncRedis, customer: str) -> tuple[int, int]:
    key = f"{{probe}}:customer:{customer}"
    return redis.run(
        command("HMGET", key, "served", "failed", parse=lambda a: (int(a[0] or 0), int(a[1] or 0)))
    )


def test_failing_a_probe_now_and_then_does_not_make_customers_forgotten(redis: SyncRedis) -> None:
    for _ in range(EXCUSES_MAX):
        redis.run(excuse_conduct(LIAR))
        assert redis.run(command("HLEN", conduct_key(LIAR), parse=int)) == 1, "nothing but the excuse"
    redis.run(command("DEL", conduct_key(LIAR), parse=int))  # its minute is over
    complain(redis, *CUSTOMERS)
    told = redis.run(command("HLEN", conduct_key(LIAR), parse=int))
    redis.run(excuse_conduct(LIAR))
    assert redis.run(command("HLEN", conduct_key(LIAR), parse=int)) == told > 1


@pytest.mark.parametrize("count", [1, 5])
def test_a_few_hostile_customers_get_nobody_off_sale(
    listing: ListingRun, redis: SyncRedis, count: int
) -> None:
    for _ in range(200):
        complain(redis, *CUSTOMERS[:count], of=GOOD)
    time_passes(redis, GOOD)
    assert (listing.run(NOW).barred, grade(listing, GOOD).listed) == ([], True)


def test_customers_that_fail_everywhere_get_nobody_off_sale(listing: ListingRun, redis: SyncRedis) -> None:
    """A large site is down: half of all that its customers ask for fails, here and elsewhere."""
    complain(redis, *CUSTOMERS)
    redis.run(count_conduct([Fared(DeviceId("others"), name, 0, 90, ("down",)) for name in CUSTOMERS]))
    time_passes(redis)
    assert listing.run(NOW, sweep=False).barred == []


def test_no_more_of_a_pool_goes_off_sale_for_this_than_the_brake_allows_all_together(
    listing: ListingRun, redis: SyncRedis
) -> None:
    names = [DeviceId(f"m{n}") for n in range(6)]
    for name in names:
        enrol(listing, name, PASS, US)
    assert listing.run(NOW).listed == 8
    for name in names[:4]:
        complain(redis, *CUSTOMERS, of=name)
        time_passes(redis, name)
    assert sorted(listing.run(NOW, sweep=False).barred) == names[:4]
    for name in names[4:]:
        complain(redis, *CUSTOMERS, of=name)
        time_passes(redis, name)
    report = listing.run(NOW, sweep=False)
    assert (report.barred, report.left, report.listed) == ([], 2, 4), "six would be more than five"
    (incident,) = all_incidents(listing.dynamo, "psx-test-guard")
    assert "customers let down by 2 exits of mbl" in incident.message
    assert redis.run(count_barred(Pool.MBL)) == 4
    later = listing.run(NOW + HOLD_MS, sweep=False)
    assert sorted(later.barred) == names[4:], "others' time is over, and theirs begins"
    (incident,) = all_incidents(listing.dynamo, "psx-test-guard")
    assert incident.closed_at_ms == NOW + HOLD_MS


def test_of_two_runs_one_sets_the_bar(listing: ListingRun, redis: SyncRedis) -> None:
    stale, bar = Bar(), Bar(1, NOW + HOLD_MS)
    setting = grades.set_bar("psx-test-grades", LIAR, stale, bar)
    assert listing.dynamo.run(setting) is not None
    assert listing.dynamo.run(grades.set_bar("psx-test-grades", LIAR, stale, replace(bar, times=2))) is None
    assert listing.dynamo.run(grades.set_bar("psx-test-grades", DeviceId("gone"), stale, bar)) is None
    assert grade(listing).bar == bar


def acquired(selected: Selected = Selected.FRESH, owner: str = "psx_s") -> Acquired:
    endpoint = replace(peer("liar"), account_id=AccountId(owner))
    return Acquired(endpoint, "", 0, "", "", selected)


async def test_a_gateway_tells_what_it_saw_and_an_owner_is_no_witness(
    any_valkey_url: str, redis: SyncRedis
) -> None:
    shared = AsyncRedis(any_valkey_url)
    leases = Leases(shared, GatewayId("g"), lambda: 0)
    buyer = AccountId("psx_buyer")
    leases.fared.note(acquired(), buyer, "one", "a:443")
    leases.fared.note(acquired(), buyer, "one", "b:443")
    leases.fared.note(acquired(), buyer, "two")
    leases.fared.note(acquired(Selected.PIN), buyer, "pins", "a:443")
    leases.fared.note(acquired(), AccountId("psx_s"), "owner", "a:443")
    with as_node("gateway"):
        await leases.tell_fared()
    assert leases.fared.take(10) == []
    (said,) = redis.run(read_conduct([LIAR]))
    assert ({(c.served, c.failed) for c in said.customers}, said.targets) == ({(0, 2), (1, 0)}, 2)
    await shared.close()


@pytest.mark.parametrize("kind", ["drops", "unreached targets"])
async def test_two_customers_keep_an_exit_from_others_only_while_a_probe_is_due(
    any_valkey_url: str, redis: SyncRedis, kind: str
) -> None:
    """Or two accounts could hold any number of exits for nothing: a passed probe lets each back, and they begin again."""
    shared = AsyncRedis(any_valkey_url)
    leases = Leases(shared, GatewayId("g"), lambda: 0)

    async def paused_by_two() -> int:
        redis.run(unpause(Pool.PEER, EndpointId("liar")))
        if kind == "drops":
            leases.report_suspect(acquired())
        else:
            for host in ("a", "b", "c"):
                for owner in ("one", "two"):
                    leases.report_target(acquired(), owner, host)
        with as_node("gateway"):
            await leases.drain()
        return redis.run(command("EXISTS", "{peer}:pause:liar", parse=int))

    assert [await paused_by_two(), await paused_by_two()] == [1, 0]
    redis.run(excuse_conduct(LIAR))
    assert await paused_by_two(), "since a probe failed they are believed"
    await shared.close()


def test_a_gateway_keeps_a_bounded_number_of_rows_and_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_node.fared.ROWS_MAX", 3)
    book = FaredBook()
    for number in range(5):
        for target in range(20):
            book.note(acquired(), AccountId("psx_buyer"), f"c{number}", f"t{target}:443")
    told = book.take(2) + book.take(10)
    assert [(one.failed, len(one.targets)) for one in told] == [(20, 8)] * 3


def test_marks_are_made_again_only_after_they_were_settled(redis: SyncRedis) -> None:
    complain(redis, *CUSTOMERS[:2])
    assert redis.run(read_changed(10)) == {}
    complain(redis, CUSTOMERS[2])
    (first,) = redis.run(read_changed(10)).items()
    complain(redis, CUSTOMERS[3])
    assert list(redis.run(read_changed(10)).items()) == [first]
    assert first[0] == "let:liar"
