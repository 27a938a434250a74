"""What every job needs, made once per container."""

import functools
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import Settings, load


class JobSettings(Settings):
    """Environment of the jobs that need more than stores."""

    ip_data_bucket: str = ""
    api_base_url: str = ""
    watchdog_api_key: SecretStr = SecretStr("")
    watchdog_account: str = ""
    watchdog_gateways: str = "[]"
    watchdog_targets: str = "[]"
    watchdog_ca_file: Path | None = None
    probe_asking_key: SecretStr = SecretStr("")
    watchdog_relays: str = "{}"
    watchdog_recipients: str = "{}"
    watchdog_certificates: str = ""
    watchdog_audits_cloud: bool = True
    alert_topic: str = ""


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
    return Wiring(settings, SyncDynamo(), SyncRedis(settings.redis_url, settings.redis_login()))
