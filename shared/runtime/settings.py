"""Typed, frozen settings from the environment, all errors at once, secrets without defaults.

Each process subclasses `Settings`; this module leaves out what only one process needs. Library: pydantic-settings.
"""

import enum
import sys
from typing import Any, NoReturn, TypeVar

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound="Settings")


class Stage(enum.StrEnum):
    """Where a process runs. Lab openings exist in `local` alone."""

    LOCAL = "local"
    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


class Settings(BaseSettings):
    """What every process needs: `PSX_STAGE`, `PSX_TABLE_PREFIX`, `PSX_REDIS_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="PSX_", frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    stage: Stage
    table_prefix: str
    redis_url: str

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://")):
            raise ValueError("must begin with redis:// or rediss://")
        return value

    def table(self, name: str) -> str:
        """The full name of a table of this stage."""
        return f"{self.table_prefix}{name}"


class LabSettings(Settings):
    """Openings for the network on one machine; refused outside stage `local`."""

    egress_lab_allow: str = ""
    lab_hosts: str = ""

    @model_validator(mode="after")
    def _only_local(self) -> "LabSettings":
        if self.stage is not Stage.LOCAL and (self.egress_lab_allow or self.lab_hosts):
            raise ValueError("PSX_EGRESS_LAB_ALLOW and PSX_LAB_HOSTS exist in stage local only")
        return self

    def lab_endpoints(self) -> frozenset[tuple[str, int]]:
        """The `address:port` pairs that the egress policy lets through."""
        pairs = (entry.rpartition(":") for entry in self.egress_lab_allow.split(",") if entry)
        return frozenset((address.strip().strip("[]"), int(port)) for address, _, port in pairs)

    def lab_names(self) -> dict[str, str]:
        """Names that are resolved before DNS: lower-case name -> address."""
        pairs = (entry.partition("=") for entry in self.lab_hosts.split(",") if entry)
        return {name.strip().lower(): address.strip() for name, _, address in pairs}


def load(kind: type[S], **given: Any) -> S:
    """Settings from the environment; `given` overrides it in tests. Raises pydantic's ValidationError."""
    return kind(**given)


def load_or_exit(kind: type[S]) -> S:
    """Settings from the environment, or a line per fault on stderr and exit status 2."""
    try:
        return load(kind)
    except ValidationError as error:
        refuse_start(error)


def refuse_start(error: ValidationError) -> NoReturn:
    """Print what is wrong, naming variables and never their values, and exit with status 2."""
    for fault in error.errors(include_input=False, include_context=False):
        name = "_".join(str(part) for part in fault["loc"]).upper()
        sys.stderr.write(f"settings: {'PSX_' + name if name else 'settings'}: {fault['msg']}\n")
    raise SystemExit(2)


def secret_bytes(secret: SecretStr, length: int) -> bytes:
    """A hex secret as bytes of exactly `length`. Raises ValueError without naming the value."""
    try:
        raw = bytes.fromhex(secret.get_secret_value())
    except ValueError:
        raise ValueError(f"must be {length} bytes in hex") from None
    if len(raw) != length:
        raise ValueError(f"must be {length} bytes in hex")
    return raw


def listen_address(text: str) -> tuple[str, int]:
    """`address:port` as a pair. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("must be address:port")
    return host.strip("[]"), int(port)
