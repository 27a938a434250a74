"""Settings and parts of the API function, made once per container."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator

from functions.sealing import KEY_BYTES, SealingSettings, envelope
from shared.access.envelope import Envelope
from shared.access.secrets import SecretBox
from shared.guard.service import LiveSettings
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import load, secret_bytes
from shared.runtime.signing import check_public_keys
from shared.supply.ip_data import mirror_of
from shared.supply.model import Origin, Region, parse_regions
from shared.supply.origin import OriginReader
from shared.supply.rules import override_for
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
    asn_classes: Path | None = None
    ip_data_bucket: str = ""
    registrations_per_minute: int = Field(default=60, ge=1)
    registrations_per_key_per_minute: int = Field(default=12_000, ge=1)
    calls_per_minute_address: int = Field(default=6000, ge=1)
    calls_per_minute_key: int = Field(default=3000, ge=1)

    @field_validator("sealing_key")
    @classmethod
    def _modem_key(cls, value: SecretStr) -> SecretStr:
        secret_bytes(value, KEY_BYTES)
        return value

    @field_validator("jwt_public_key")
    @classmethod
    def _public(cls, value: SecretStr) -> SecretStr:
        check_public_keys(value.get_secret_value())
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
    live = LiveSettings(dynamo, settings.table("guard"), now_ms)
    origins = open_origins(settings)
    enrolment = Enrolment(
        dynamo=dynamo,
        redis=redis,
        table=settings.table,
        origin=lambda address: overridden(origins.lookup(address), address, live),
        regions=lambda: regions_now(settings, live),
        private_key=settings.jwt_private_key.get_secret_value(),
        now_ms=now_ms,
    )
    return Wiring(settings, dynamo, redis, live, envelope(settings), modem_box, origins, enrolment)


def open_origins(settings: ApiSettings) -> OriginReader:
    """The reader of address data, which follows the bucket where one is set."""
    files = settings.asn_mmdb, settings.country_mmdb
    mirror = mirror_of(settings.ip_data_bucket, *files) if settings.ip_data_bucket else None
    if mirror is not None:
        mirror.fetch()
    late = mirror is not None
    return OriginReader(*files, settings.asn_classes, late=late, fetch=mirror.fetch if mirror else None)


def overridden(origin: Origin, address: str, live: LiveSettings) -> Origin:
    """An origin with the class that an operator gave its network or ASN, if one did."""
    said = override_for(live.get("ip_classes"), address, origin.asn)
    return origin if said is None else replace(origin, ip_type=said)


def regions_now(settings: ApiSettings, live: LiveSettings) -> tuple[Region, ...]:
    """Relay regions: the live setting, or what the process was started with while nobody wrote it."""
    value: dict[str, Any] = live.get("relays") or json.loads(settings.relays)
    return parse_regions(value)


@functools.cache
def wiring() -> Wiring:
    """The wiring of this container."""
    settings = load(ApiSettings)
    return wire(settings, SyncDynamo(), SyncRedis(settings.redis_url, settings.redis_login()))
