"""The real listing job in a simulated fleet: whatever breaks, leaves, flaps and comes back, stores end as the rules say."""

from dataclasses import replace

import pytest

from local.simulation import with_stores
from local.simulation.engine import Simulation
from local.simulation.world import Rates
from shared.grading.model import Thresholds
from shared.kernel.codes import Pool
from shared.pool.live import listed_ids
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis

pytestmark = pytest.mark.slow
WILD = replace(
    Rates(),
    break_every_h=0.5,
    leave_every_h=0.5,
    flapping_share=0.1,
    altering_share=0.05,
    lying_share=0.1,
    carrier_at_h=0.2,
    carrier_for_min=4,
    region_at_h=0.35,
    target_at_h=0.45,
)
COUNT, HOURS = 40, 0.5


def test_the_job_on_real_stores_does_what_the_rules_say(
    dynoxide: SyncDynamo, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_stores, "TABLE", "psx-test-")
    redis = SyncRedis(valkey_url)
    stored = with_stores.StoredSimulation(COUNT, HOURS, WILD, Thresholds(), (dynoxide, redis), seed=7)
    found = stored.run()
    alone = Simulation(COUNT, HOURS, WILD, Thresholds(), seed=7).run()
    assert list(stored.disagreements()) == []
    listed = {d.grade.device_id for d in stored.world.devices if d.grade.listed}
    assert redis.run(listed_ids(Pool.PEER)) == listed
    assert found.listing_writes > COUNT, "exits went and came back"
    assert (found.bars, found.bars_of_honest) == (alone.bars, alone.bars_of_honest)
    assert found.bars > 0, "liars were barred by their customers"
    assert (found.listing_writes, found.braked_rounds) == (alone.listing_writes, alone.braked_rounds)
    assert stored.counted.calls["update_item"] < 2 * found.listing_writes + COUNT, "only changes are written"
    redis.close()


def test_customers_meet_few_broken_exits_and_each_of_them_seldom() -> None:
    """The figures of the rules as they stand; no clock of this machine is in them."""
    figures = Simulation(2_000, 2.0, replace(Rates(), carrier_at_h=1.0), Thresholds(), seed=3).run()
    ordered = sorted(figures.hit_to_last_ms)
    assert len(ordered) > 50
    assert ordered[len(ordered) * 99 // 100] < 10_000
    recovered = sorted(figures.mended_to_listed_ms)
    assert recovered[len(recovered) * 99 // 100] < 120_000
    assert sum(figures.customers_of_fault) / len(figures.customers_of_fault) < 2


def test_customers_keep_liars_off_sale_and_no_exit_whose_faults_probes_see() -> None:
    rates = replace(Rates(), break_every_h=4, lying_share=0.02, carrier_at_h=1.0)
    figures, blind = (
        Simulation(500, 2.0, rates, Thresholds(customers_to_bar=enough), seed=3).run()
        for enough in (Thresholds().customers_to_bar, 10**6)
    )
    assert blind.bars == 0
    assert figures.liar_customers * 4 < blind.liar_customers
    assert figures.liar_listed_ms * 4 < blind.liar_listed_ms
    assert figures.bars > figures.liars > 0
    assert figures.bars_of_honest <= figures.bars // 20


def test_where_one_exit_in_ten_lies_customers_keep_them_off_sale_all_the_same() -> None:
    """Everybody is let down now and then there, and speaks nevertheless; probes stay within what they may cost."""
    rates = replace(Rates(), lying_share=0.1, customers=50, carrier_at_h=9, region_at_h=9, target_at_h=9)
    figures = Simulation(500, 1.5, rates, Thresholds(), seed=5).run()
    assert figures.liar_listed_ms * 4 < figures.liars * 1.5 * 3_600_000
    assert figures.bars_of_honest <= figures.bars // 20
    assert figures.probe_bytes * 24 / 1.5 / 500 < Thresholds().bytes_per_day
