"""What every job needs, made once per container."""

import functools
from dataclasses import dataclass

from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import Settings, load


class JobSettings(Settings):
    """Environment of the jobs that need more than stores."""

    ip_data_bucket: str = ""


@dataclass(frozen=True)
class Wiring:
    """Settings and stores."""

    settings: Settings
    dynamo: SyncDynamo
    redis: SyncRedis


@functools.cache
def wiring() -> Wiring:
    """The wiring of this container."""
    settings = load(Settings)
    return Wiring(settings, SyncDynamo(), SyncRedis(settings.redis_url))
