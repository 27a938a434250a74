"""What a relay node needs from its environment; everything is checked before the first socket opens."""

import json
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, field_validator

from shared.runtime.settings import LabSettings, listen_address
from shared.supply.model import Region, parse_regions

MIN_TOKEN_CHARS: Final = 32


class RelaySettings(LabSettings):
    """Environment of a relay node (prefix PSX_)."""

    relay_id: str
    relay_region: str
    relay_peer_listen: str
    relay_mesh_listen: str
    relay_private_listen: str
    relay_drain_max_s: float = Field(default=30.0, ge=0, le=600)
    relay_tls_cert: Path | None = None
    relay_tls_key: Path | None = None
    relays: str
    mesh_token: SecretStr
    jwt_public_key: SecretStr
    asn_mmdb: Path
    country_mmdb: Path
    asn_classes: Path | None = None
    ip_data_bucket: str = ""

    @field_validator("relay_peer_listen", "relay_mesh_listen", "relay_private_listen")
    @classmethod
    def _address(cls, value: str) -> str:
        listen_address(value)
        return value

    @field_validator("mesh_token")
    @classmethod
    def _strong(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < MIN_TOKEN_CHARS:
            raise ValueError(f"must have at least {MIN_TOKEN_CHARS} characters")
        return value

    @field_validator("relays")
    @classmethod
    def _regions(cls, value: str) -> str:
        parse_regions(json.loads(value))
        return value

    def regions(self) -> tuple[Region, ...]:
        """All regions and the countries that they serve."""
        return parse_regions(json.loads(self.relays))
