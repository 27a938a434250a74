"""Who is on which relay, on a real server: the last one who came, its owner before strangers, nobody whose tokens ended."""

from dataclasses import replace

import pytest

from shared.kernel.ids import DeviceId, RelayId
from shared.pool.model import (
    Presence,
)
from shared.pool.presence import (
    Arrival,
    drop_presences,
    put_presence,
    put_presences,
    read_presence,
    read_presences,
    revoke_account,
    revoke_device,
)
from shared.runtime.redis import SyncRedis, command
from tests.support.pool import NOW, presence, run

pytestmark = pytest.mark.slow


def test_presence_is_read_back_and_dropped_only_by_its_relay(redis: SyncRedis) -> None:
    run(redis, put_presence(presence("d1")))
    assert redis.run(read_presence(DeviceId("d1"))) == presence("d1")
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r2"))) == [False]
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r1"))) == [True]
    assert redis.run(read_presence(DeviceId("d1"))) is None


def test_devices_that_come_and_go_together_are_told_of_together_each_as_itself(redis: SyncRedis) -> None:
    run(redis, *revoke_device(DeviceId("old"), 3))
    run(redis, put_presence(presence("elsewhere", "r2")))
    first = [Arrival(presence("d1")), Arrival(presence("old"), 2), Arrival(presence("D-3"), 1)]
    assert redis.run(put_presences(RelayId("r1"), first)) == [(0, 0), (3, 0), (0, 0)]
    ids = [DeviceId(name) for name in ("d1", "old", "D-3", "elsewhere")]
    found = redis.run(read_presences(ids))
    d3 = replace(presence("D-3"), generation=1)
    assert found == [presence("d1"), None, d3, presence("elsewhere", "r2")]
    assert redis.run(command("GET", f"{{peer}}:pin:{presence('D-3').account_id}:d3", parse=bytes)) == b"D-3"
    assert redis.run(drop_presences(ids, RelayId("r1"))) == [True, False, True, False]
    assert redis.run(read_presences(ids)) == [None, None, None, presence("elsewhere", "r2")]


def test_presence_ends_by_itself(redis: SyncRedis) -> None:
    run(redis, put_presence(presence("d1")))
    assert 0 < redis.run(command("TTL", "{peer}:live:d1", parse=int)) <= 90


def test_the_relay_that_a_device_came_to_last_has_it(redis: SyncRedis) -> None:
    old, new = presence("d1", "r1"), presence("d1", "r2")
    newer = Presence(
        **{**{f: getattr(new, f) for f in Presence.__dataclass_fields__}, "connected_at_ms": NOW + 1}
    )
    run(redis, put_presence(old), put_presence(newer), put_presence(old))
    found = redis.run(read_presence(DeviceId("d1")))
    assert found is not None
    assert found.relay_id == "r2"


def test_a_stranger_on_another_relay_never_has_a_device_that_its_owner_holds(redis: SyncRedis) -> None:
    def comes(relay: str, at_ms: int, *, owned: bool) -> str:
        here = replace(presence("d1", relay), connected_at_ms=at_ms)
        redis.run(put_presences(here.relay_id, [Arrival(here, owned=owned)]))
        found = redis.run(read_presence(DeviceId("d1")))
        assert found is not None
        return found.relay_id

    assert comes("r1", 5, owned=True) == "r1"
    assert comes("r2", 9, owned=False) == "r1"
    assert redis.run(drop_presences([DeviceId("d1")], RelayId("r1"))) == [True]
    assert comes("r2", 9, owned=False) == "r2"
    assert comes("r3", 10, owned=False) == "r3", "among strangers the last one has it"
    assert comes("r1", 7, owned=True) == "r1", "an owner need not come later"


def test_a_revoked_generation_is_told_when_a_device_arrives(redis: SyncRedis) -> None:
    assert redis.run(put_presence(presence("d1"))) == (0, 0)
    run(redis, *revoke_device(DeviceId("d1"), 3))
    assert redis.run(put_presence(presence("d1"))) == (3, 0)
    assert redis.run(put_presence(presence("d1"), 3)) == (3, 0)
    run(redis, *revoke_account(presence("d1").account_id, 2))
    run(redis, drop_presences([DeviceId("d1")], RelayId("r1")))
    assert redis.run(put_presence(presence("d1"), 3, 1)) == (3, 2)
    assert redis.run(read_presence(DeviceId("d1"))) is None
    assert redis.run(put_presence(presence("d1"), 3, 2)) == (3, 2)
    assert redis.run(read_presence(DeviceId("d1"))) is not None
