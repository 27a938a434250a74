"""What keeps selection from an exit at once: the breaker that gateways share, and the heartbeat of its relay."""

from dataclasses import replace

import pytest

from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId, EndpointId, RelayId
from shared.pool import live
from shared.pool.live import BREAKER_HOSTS, BREAKER_OWNERS, BREAKER_PAUSE_MAX_S, BREAKER_PAUSE_S, Doubt
from shared.pool.numbers import derive, run
from shared.pool.presence import RELAY_ALIVE_TTL_MS, beat_relay, put_presence, read_presence, read_presences
from shared.runtime.redis import SyncRedis, command
from tests.support.pool import presence

pytestmark = pytest.mark.slow
EXIT = EndpointId("e1")


def half_open(redis: SyncRedis) -> None:
    """The pause is over; nothing has been heard of the exit."""
    redis.run(command("DEL", f"{{peer}}:pause:{EXIT}", parse=int))


def test_an_exits_own_fault_opens_the_breaker_for_everybody_and_longer_each_time(redis: SyncRedis) -> None:
    pauses = []
    for _ in range(6):
        pauses.append(redis.run(live.trip(Pool.PEER, EXIT)))
        half_open(redis)
    assert pauses == [10, 20, 40, 80, BREAKER_PAUSE_MAX_S, BREAKER_PAUSE_MAX_S]
    redis.run(live.unpause(Pool.PEER, EXIT))
    assert redis.run(live.trip(Pool.PEER, EXIT)) == BREAKER_PAUSE_S


def test_faults_of_many_customers_at_once_count_once(redis: SyncRedis) -> None:
    assert {redis.run(live.trip(Pool.PEER, EXIT)) for _ in range(20)} <= {
        BREAKER_PAUSE_S,
        BREAKER_PAUSE_S - 1,
    }


def test_a_dead_target_is_never_held_against_an_exit_and_several_are(redis: SyncRedis) -> None:
    assert (BREAKER_HOSTS, BREAKER_OWNERS) == (3, 2)
    for owner in ("o1", "o2", "o3"):
        assert not redis.run(live.suspect(Pool.PEER, EXIT, Doubt(owner, "one")))
    assert not redis.run(live.suspect(Pool.PEER, EXIT, Doubt("o1", "two")))
    assert redis.run(live.suspect(Pool.PEER, EXIT, Doubt("o1", "three")))
    assert not redis.run(live.suspect(Pool.PEER, EXIT, Doubt("o1", "three"))), "counted afresh"


def test_one_owner_cannot_open_a_breaker_by_naming_dead_targets(redis: SyncRedis) -> None:
    for number in range(50):
        assert not redis.run(live.suspect(Pool.PEER, EXIT, Doubt("o1", f"h{number}")))
    assert redis.run(command("SCARD", f"{{peer}}:suspects:{EXIT}", parse=int)) == BREAKER_HOSTS + 1
    assert redis.run(live.suspect(Pool.PEER, EXIT, Doubt("o2", "h0")))


def test_a_longer_pause_of_the_prober_is_never_shortened(redis: SyncRedis) -> None:
    redis.run(live.pause(Pool.PEER, EXIT, 120))
    redis.run(live.trip(Pool.PEER, EXIT))
    assert redis.run(command("TTL", f"{{peer}}:pause:{EXIT}", parse=int)) > 100


def test_devices_are_there_while_the_life_of_their_relay_lasts(redis: SyncRedis) -> None:
    here = replace(presence("d1"), relay_life="one")
    redis.run(put_presence(here))
    assert redis.run(read_presence(DeviceId("d1"))) is None
    assert not redis.run(beat_relay(here.relay_id, "one")), "nothing stood before the first beat"
    assert redis.run(beat_relay(here.relay_id, "one"))
    assert redis.run(read_presence(DeviceId("d1"))) == here
    left_ms = redis.run(command("PTTL", f"{{peer}}:relay:{here.relay_id}", parse=int))
    assert 0 < left_ms <= RELAY_ALIVE_TTL_MS < 5_000
    assert not redis.run(beat_relay(here.relay_id, "two")), "a restart has none of the devices yet"
    assert redis.run(read_presence(DeviceId("d1"))) is None
    elsewhere = replace(
        here, relay_id=RelayId("other"), relay_life="x", connected_at_ms=here.connected_at_ms + 1
    )
    redis.run(put_presence(elsewhere))
    redis.run(beat_relay(RelayId("other"), "x"))
    assert redis.run(read_presences([DeviceId("d1"), DeviceId("d2")])) == [elsewhere, None]


def test_what_is_counted_as_online_follows_the_relays_heartbeat(redis: SyncRedis) -> None:
    from tests.support.pool import peer

    redis.run(live.list_endpoint(peer("d1")))
    redis.run(put_presence(replace(presence("d1"), relay_life="one")))
    assert sum(run(redis, derive()).online["peer"].values()) == 0
    redis.run(beat_relay(presence("d1").relay_id, "one"))
    redis.run(live.pause(Pool.PEER, EndpointId("d1"), 10))
    numbers = run(redis, derive())
    assert sum(numbers.online["peer"].values()) == 1
    assert [quality["paused"] for quality in numbers.quality["peer"].values()] == [1]
