"""Something to sell, where a test is about the sale and not about exits: nothing is priced that nobody could have."""

from shared.pool.live import list_endpoint
from shared.pool.numbers import derive, run
from shared.runtime.redis import SyncRedis
from tests.contract.test_pool_live import modem


def put_on_sale(redis: SyncRedis) -> None:
    """A modem in the US, counted at once."""
    redis.run(list_endpoint(modem("stocked")))
    run(redis, derive())
