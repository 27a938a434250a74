"""What a gateway node needs from its environment."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, field_validator

from shared.runtime.settings import LabSettings, listen_address, secret_bytes

KEY_BYTES = 32
LAST_FLUSH_MAX_S: Final = 120.0
"""How long a gateway that stops tries to write its last counts, after its drain. Its unit's `TimeoutStopSec` is longer
than both together."""
Network = IPv4Network | IPv6Network


class GatewaySettings(LabSettings):
    """Environment of a gateway node (prefix PSX_)."""

    gateway_id: str
    gateway_http_listen: str
    gateway_socks_listen: str
    gateway_private_listen: str
    gateway_tls_cert: Path | None = None
    gateway_tls_key: Path | None = None
    gateway_proxy_networks: str = ""
    """Networks of the load balancers that send PROXY protocol v2; others are not let in then. Empty: no balancer."""
    gateway_workers: int = Field(default=1, ge=1, le=64)
    gateway_drain_max_s: float = Field(default=30.0, ge=0, le=600)
    gateway_last_flush_max_s: float = Field(default=LAST_FLUSH_MAX_S, ge=0, le=LAST_FLUSH_MAX_S)
    house_account: str = ""
    gateway_journal_dir: Path | None = None
    mesh_token: SecretStr
    secret_pepper: SecretStr
    sealing_key: SecretStr

    @field_validator("secret_pepper", "sealing_key")
    @classmethod
    def _key(cls, value: SecretStr) -> SecretStr:
        secret_bytes(value, KEY_BYTES)
        return value

    @field_validator("gateway_proxy_networks")
    @classmethod
    def _balancers(cls, value: str) -> str:
        networks(value)
        return value

    @field_validator("gateway_http_listen", "gateway_socks_listen", "gateway_private_listen")
    @classmethod
    def _address(cls, value: str) -> str:
        listen_address(value)
        return value

    def balancers(self) -> tuple[Network, ...]:
        """The networks of the load balancers in front."""
        return networks(self.gateway_proxy_networks)


def networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, separated by commas. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
