"""Flushes are applied once, in Redis and in DynamoDB."""

import pytest

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.live import (
    KEYS_PER_CALL,
    close_meter,
    flush,
    flushes,
    lease,
    open_meter,
    read_traffic,
    read_used,
)
from shared.metering.model import Ask, FlushBatch, LineKey, Meter, UsageLine
from shared.metering.table import apply_items, newest_sequence, pending_batches, put_batch, usage_days
from shared.runtime.dynamo import Conflict, SyncDynamo, transact
from shared.runtime.redis import SyncRedis

pytestmark = pytest.mark.slow

GATEWAY = GatewayId("g1")
PAK = PakId("p1")
TABLE = "psx-test-usage"
DAY_MS = 1_800_000_000_000


def batch(sequence: int) -> FlushBatch:
    key = LineKey(
        PAK, AccountId("psx_a"), DeviceId("d1"), AccountId("psx_s"), Country("us"), Pool.MBL, IpType.MOBILE
    )
    return FlushBatch(GATEWAY, sequence, DAY_MS, (UsageLine(key, 10, 20),))


@pytest.mark.slow
def test_the_same_flush_again_adds_nothing_and_answers_the_same(redis: SyncRedis) -> None:
    redis.run(open_meter(PAK, 5, 100))
    assert redis.run(flush(GATEWAY, 0, {PAK: 30})) == {PAK: Meter(35, 100)}
    assert redis.run(flush(GATEWAY, 0, {PAK: 30})) == {PAK: Meter(35, 100)}
    assert redis.run(flush(GATEWAY, 1, {PAK: 70})) == {PAK: Meter(105, 100)}
    assert redis.run(flush(GatewayId("g2"), 0, {PAK: 1})) == {PAK: Meter(106, 100)}


@pytest.mark.slow
def test_a_meter_is_closed_when_the_truth_knows_all_of_it_and_nobody_carries(redis: SyncRedis) -> None:
    redis.run(open_meter(PAK, 50, 1_000))
    redis.run(flush(GATEWAY, 0, {PAK: 10}))
    assert redis.run(close_meter(PAK, 59)) is False
    redis.run(lease(GATEWAY, {PAK: Ask(0, 100)}))
    assert redis.run(close_meter(PAK, 60)) is False
    assert redis.run(lease(GATEWAY, {PAK: Ask(0, 0)}))[PAK].cap_bytes == 1_000
    assert redis.run(close_meter(PAK, 60)) is True
    assert redis.run(read_used(PAK)) is None
    assert redis.run(flush(GATEWAY, 1, {PAK: 5})) == {
        PAK: Meter(5, None)
    }  # told late; the batch is in the truth
    assert redis.run(open_meter(PAK, 65, 1_000)) == Meter(65, 1_000)


@pytest.mark.slow
def test_opening_a_meter_raises_it_to_the_truth_and_never_lowers_it(redis: SyncRedis) -> None:
    assert redis.run(read_used(PAK)) is None
    assert redis.run(open_meter(PAK, 50, None)) == Meter(50, None)
    redis.run(flush(GATEWAY, 0, {PAK: 10}))
    assert redis.run(open_meter(PAK, 50, 70)) == Meter(60, 70)
    assert redis.run(read_used(PAK)) == 60
    assert redis.run(open_meter(PAK, 0, None)).cap_bytes is None
    assert redis.run(flush(GATEWAY, 1, {PAK: 1})) == {PAK: Meter(61, None)}


def test_a_batch_is_recorded_once_and_waits_to_be_applied(any_dynamo: SyncDynamo) -> None:
    dynamo = any_dynamo
    assert dynamo.run(newest_sequence(TABLE, GATEWAY)) == -1
    assert dynamo.run(put_batch(TABLE, batch(0)))
    assert not dynamo.run(put_batch(TABLE, batch(0)))
    dynamo.run(put_batch(TABLE, batch(7)))
    assert dynamo.run(newest_sequence(TABLE, GATEWAY)) == 7
    assert dynamo.run(pending_batches(TABLE, 10)).rows == (batch(0), batch(7))


def test_a_batch_is_applied_once(any_dynamo: SyncDynamo) -> None:
    dynamo = any_dynamo
    dynamo.run(put_batch(TABLE, batch(0)))
    assert dynamo.run(transact(apply_items(TABLE, batch(0)))) is None
    assert dynamo.run(transact(apply_items(TABLE, batch(0)))) == Conflict((0,))
    assert dynamo.run(pending_batches(TABLE, 10)).rows == ()
    for owner in ("pak#p1", "dev#d1", "acct#psx_a"):
        assert dynamo.run(usage_days(TABLE, owner, "2027-01-01", 10)).rows == (("2027-01-15", 10, 20),)
        assert dynamo.run(usage_days(TABLE, owner, "2027-01-16", 10)).rows == ()


@pytest.mark.slow
def test_leases_of_two_gateways_never_overlap(redis: SyncRedis) -> None:
    redis.run(open_meter(PAK, 0, 10_000_000))
    first = redis.run(lease(GATEWAY, {PAK: Ask(0, 8_000_000)}))[PAK].lease_bytes
    second = redis.run(lease(GatewayId("g2"), {PAK: Ask(0, 8_000_000)}))[PAK].lease_bytes
    assert (first, second) == (8_000_000, 500_000)
    assert redis.run(lease(GATEWAY, {PAK: Ask(0, 1)}))[PAK].lease_bytes == 1
    assert redis.run(lease(GatewayId("g2"), {PAK: Ask(0, 9_999_999)}))[PAK].lease_bytes == 2_499_999


@pytest.mark.slow
def test_near_the_cap_one_lease_is_the_rest_and_then_none(redis: SyncRedis) -> None:
    redis.run(open_meter(PAK, 0, 100_000))
    assert redis.run(lease(GATEWAY, {PAK: Ask(40_000, 500_000)}))[PAK].lease_bytes == 60_000
    assert redis.run(lease(GatewayId("g2"), {PAK: Ask(7, 500_000)}))[PAK].lease_bytes == -7
    redis.run(flush(GATEWAY, 0, {PAK: 40_000}, {PAK: Ask(0, 0)}))
    assert redis.run(lease(GatewayId("g2"), {PAK: Ask(7, 500_000)}))[PAK].lease_bytes == 59_993


@pytest.mark.slow
def test_a_key_without_a_cap_needs_no_lease(redis: SyncRedis) -> None:
    redis.run(open_meter(PAK, 0, None))
    assert redis.run(lease(GATEWAY, {PAK: Ask(0, 500)}))[PAK] == Meter(0, None, 0)


def test_a_large_cut_is_added_in_slices_and_once_wherever_it_broke_off(redis: SyncRedis) -> None:
    paks = {PakId(f"p{n:05d}"): n + 1 for n in range(2 * KEYS_PER_CALL + 1)}
    calls = flushes(GATEWAY, 7, paks, {})
    assert len(calls) == 3
    redis.run(calls[0])
    redis.run(calls[1])  # and the gateway is killed; its next life writes the cut from its journal
    meters: dict[PakId, Meter] = {}
    for call in flushes(GATEWAY, 7, dict(reversed(paks.items())), {}):
        meters.update(redis.run(call).items())
    assert {pak_id: meter.used_bytes for pak_id, meter in meters.items()} == paks
    assert redis.run(read_traffic()) == sum(paks.values())
    for call in flushes(GATEWAY, 8, {PakId("p00000"): 1}, {}):
        assert redis.run(call)[PakId("p00000")].used_bytes == 2
