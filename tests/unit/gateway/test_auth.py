"""Failed attempts are limited per address, for a while."""

import pytest

from gateway_node import auth
from gateway_node.auth import FailureLimiter


def test_ten_failures_in_a_minute_wait_half_a_minute_and_thirty_wait_five() -> None:
    now = [0.0]
    limiter = FailureLimiter(lambda: now[0])
    for _ in range(9):
        limiter.failed("a")
    assert not limiter.banned("a")
    limiter.failed("a")
    assert limiter.banned("a")
    assert not limiter.banned("b")
    now[0] = 30.0
    assert not limiter.banned("a")
    for _ in range(20):
        limiter.failed("a")
    now[0] = 300.0
    assert limiter.banned("a")
    now[0] = 331.0
    assert not limiter.banned("a")


def test_slow_failures_are_forgiven() -> None:
    now = [0.0]
    limiter = FailureLimiter(lambda: now[0])
    for _ in range(50):
        now[0] += 10
        limiter.failed("a")
    assert not limiter.banned("a")


def test_strangers_of_ever_new_addresses_use_up_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TRACKED_MAX", 100)
    limiter = FailureLimiter(lambda: 0.0)
    for number in range(1000):
        for _ in range(10):
            limiter.failed(f"{number}")
    assert len(limiter._tracked) == 100
    assert limiter.banned("999"), "who failed last is remembered"
    assert not limiter.banned("0")
