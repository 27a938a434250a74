"""Settings and parts of the API function, made once per container."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from functions.sealing import KEY_BYTES, SealingSettings, envelope
from shared.access.envelope import Envelope
from shared.access.secrets import SecretBox
from shared.guard.service import LiveSettings
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import load, secret_bytes
from shared.supply.model import parse_regions
from shared.supply.origin import OriginReader
from shared.supply.service import Enrolment


class ApiSettings(SealingSettings):
    """Environment of the API function (prefix PSX_)."""

    api_base_url: str
    gateway_host: str
    gateway_http_port: int
    gateway_socks_port: int
    sealing_key: SecretStr
    jwt_private_key: SecretStr
    jwt_public_key: SecretStr
    relays: str
    asn_mmdb: Path
    country_mmdb: Path
    asn_classes: Path
    registrations_per_minute: int = Field(default=60, ge=1)
    calls_per_minute_address: int = Field(default=6000, ge=1)
    calls_per_minute_key: int = Field(default=3000, ge=1)

    @field_validator("sealing_key")
    @classmethod
    def _modem_key(cls, value: SecretStr) -> SecretStr:
        secret_bytes(value, KEY_BYTES)
        return value

    @field_validator("relays")
    @classmethod
    def _regions(cls, value: str) -> str:
        parse_regions(json.loads(value))
        return value


@dataclass(frozen=True)
class Wiring:
    """Everything that routes use."""

    settings: ApiSettings
    dynamo: SyncDynamo
    redis: SyncRedis
    live: LiveSettings
    box: Envelope
    modem_box: SecretBox
    origins: OriginReader
    enrolment: Enrolment


def wire(settings: ApiSettings, dynamo: SyncDynamo, redis: SyncRedis) -> Wiring:
    """Put the parts together."""
    modem_box = SecretBox(
        secret_bytes(settings.sealing_key, KEY_BYTES), secret_bytes(settings.secret_pepper, KEY_BYTES)
    )
    origins = OriginReader(settings.asn_mmdb, settings.country_mmdb, settings.asn_classes)
    enrolment = Enrolment(
        dynamo=dynamo,
        redis=redis,
        table=settings.table,
        origin=origins.lookup,
        regions=parse_regions(json.loads(settings.relays)),
        private_key=settings.jwt_private_key.get_secret_value(),
        now_ms=now_ms,
    )
    live = LiveSettings(dynamo, settings.table("guard"), now_ms)
    return Wiring(settings, dynamo, redis, live, envelope(settings), modem_box, origins, enrolment)


@functools.cache
def wiring() -> Wiring:
    """The wiring of this container."""
    settings = load(ApiSettings)
    return wire(settings, SyncDynamo(), SyncRedis(settings.redis_url))
