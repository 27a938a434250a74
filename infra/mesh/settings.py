"""What the mesh controller needs from its environment."""

import re
from ipaddress import IPv4Network
from pathlib import Path

from pydantic import Field, field_validator

from infra.mesh.config import endpoint
from infra.mesh.model import Role
from infra.mesh.rules import KEY_MAX_AGE_S, REGIONS_MAX, region_network
from shared.runtime.settings import Settings, listen_address

INTERFACE_PATTERN = re.compile(r"[a-z][a-z0-9]{1,13}")
NODE_ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class MeshSettings(Settings):
    """Environment of the mesh controller (prefix PSX_)."""

    mesh_node_id: str
    mesh_role: Role
    mesh_region: str
    mesh_region_number: int = Field(ge=0, lt=REGIONS_MAX)
    mesh_endpoint: str
    mesh_inner_endpoint: str = ""
    mesh_interface: str = "psx0"
    mesh_state_dir: Path
    mesh_private_listen: str
    mesh_poll_s: float = Field(default=10.0, ge=0.2, le=30.0)
    mesh_key_max_age_s: int = Field(default=KEY_MAX_AGE_S, ge=3600)
    mesh_env_file: Path | None = None
    """Gets `PSX_RELAY_MESH_LISTEN`, so that the relay listens on the mesh and nowhere else."""
    mesh_connect_port: int = Field(default=7443, gt=0, lt=65_536)

    @field_validator("mesh_endpoint", "mesh_inner_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        return endpoint(value) if value else value

    @field_validator("mesh_private_listen")
    @classmethod
    def _address(cls, value: str) -> str:
        listen_address(value)
        return value

    @field_validator("mesh_interface")
    @classmethod
    def _interface(cls, value: str) -> str:
        if not INTERFACE_PATTERN.fullmatch(value):
            raise ValueError("must be 2 to 14 letters and digits")
        return value

    @field_validator("mesh_node_id")
    @classmethod
    def _node_id(cls, value: str) -> str:
        if not NODE_ID_PATTERN.fullmatch(value):
            raise ValueError("must be 1 to 63 of a-z, 0-9 and hyphens")
        return value

    def network(self) -> IPv4Network:
        """The addresses of this node's region."""
        return region_network(self.mesh_region_number)

    def listen_port(self) -> int:
        """The UDP port of WireGuard: that of the endpoint that others are told."""
        return int((self.mesh_inner_endpoint or self.mesh_endpoint).rpartition(":")[2])
