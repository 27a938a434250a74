"""What stores are held to: each on one real server and on a Cluster of them."""

from collections.abc import Iterator

import pytest

from shared.runtime.redis import SyncRedis


@pytest.fixture
def redis(any_valkey_url: str) -> Iterator[SyncRedis]:
    """An executor on an empty one."""
    executor = SyncRedis(any_valkey_url)
    yield executor
    executor.close()
