"""Rate limits on one server and on a Cluster: sliding, atomic over all instances, counted under all limits or none."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.access.live import Limit, count_calls, first_in
from shared.runtime.redis import SyncRedis

pytestmark = pytest.mark.slow
AT_MS = 1_000_000 * 60_000
FOUR = Limit("four", 4, 60)


def wait_ms(redis: SyncRedis, at_ms: int, who: str = "a") -> int:
    return redis.run(count_calls([FOUR], who, at_ms))[0].wait_ms


def test_a_limit_slides_over_the_minute(any_valkey_url: str) -> None:
    redis = SyncRedis(any_valkey_url)
    assert [wait_ms(redis, AT_MS + 30_000) for _ in range(4)] == [0, 0, 0, 0]
    assert wait_ms(redis, AT_MS + 30_000) == 45_000
    assert wait_ms(redis, AT_MS + 30_000, "b") == 0
    assert wait_ms(redis, AT_MS + 61_000) == 14_000
    assert wait_ms(redis, AT_MS + 75_000) == 0
    redis.close()


def test_what_is_left_is_told_and_falls_to_nothing(any_valkey_url: str) -> None:
    redis = SyncRedis(any_valkey_url)
    told = [redis.run(count_calls([FOUR], "c", AT_MS + 10_000))[0] for _ in range(5)]
    assert [a.left for a in told] == [3, 2, 1, 0, 0]
    assert {a.reset_ms for a in told} == {50_000}
    redis.close()


def test_a_call_that_one_limit_refuses_is_counted_under_none(any_valkey_url: str) -> None:
    redis, one = SyncRedis(any_valkey_url), Limit("one", 1, 3600)
    first = redis.run(count_calls([FOUR, one], "d", AT_MS))
    assert [a.wait_ms for a in first] == [0, 0]
    for _ in range(3):
        refused = redis.run(count_calls([FOUR, one], "d", AT_MS))
        assert (refused[0].wait_ms, refused[1].wait_ms > 0) == (0, True)
    assert redis.run(count_calls([FOUR], "d", AT_MS))[0].left == 2
    redis.close()


def test_of_many_at_once_exactly_as_many_pass_as_may(any_valkey_url: str) -> None:
    redis, ten = SyncRedis(any_valkey_url), Limit("ten", 10, 60)

    def call(_: int) -> bool:
        return redis.run(count_calls([ten], "e", AT_MS))[0].wait_ms == 0

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(call, range(100))) == 10
    redis.close()


def test_news_is_news_once_in_its_time(any_valkey_url: str) -> None:
    redis = SyncRedis(any_valkey_url)
    assert [redis.run(first_in("x", 60)) for _ in range(3)] == [True, False, False]
    redis.close()


def test_whoever_waits_as_long_as_told_is_let_in(any_valkey_url: str) -> None:
    redis = SyncRedis(any_valkey_url)
    for calls in (1, 3, 10):
        limit, at = Limit(f"of{calls}", calls, 60), AT_MS + 59_000
        for _ in range(calls):
            assert redis.run(count_calls([limit], "f", at))[0].wait_ms == 0
        told = redis.run(count_calls([limit], "f", at))[0].wait_ms
        assert redis.run(count_calls([limit], "f", at + told - 1))[0].wait_ms > 0
        assert redis.run(count_calls([limit], "f", at + told))[0].wait_ms == 0
    redis.close()
