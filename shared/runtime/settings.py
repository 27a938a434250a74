"""Typed, frozen settings from the environment, all errors at once, secrets without defaults.

In AWS the secrets are in Secrets Manager: `PSX_SECRETS` names them, each a JSON object of variables.
Each process subclasses `Settings`; this module leaves out what only one process needs. Library: pydantic-settings.
"""

import enum
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeVar

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound="Settings")
PREFIX: Final = "PSX_"
SECRETS_VARIABLE: Final = "PSX_SECRETS"
REDIS_SCHEMES: Final = ("redis://", "rediss://", "redis+cluster://", "rediss+cluster://")


class SecretsUnreadable(Exception):
    """A named secret could not be read; the message says which and why, never what is in it."""


class Stage(enum.StrEnum):
    """Where a process runs. Lab openings exist in `local` alone."""

    LOCAL = "local"
    DEV = "dev"
    STAGING = "staging"
    PROD = "prod"


class Settings(BaseSettings):
    """What every process needs: `PSX_STAGE`, `PSX_TABLE_PREFIX`, `PSX_REDIS_URL`; with a cache that knows users also
    `PSX_REDIS_USER` and `PSX_REDIS_PASSWORD`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    stage: Stage
    table_prefix: str
    redis_url: str
    redis_user: str = ""
    redis_password: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _user_and_password(self) -> "Settings":
        if bool(self.redis_user) != bool(self.redis_password.get_secret_value()):
            raise ValueError("PSX_REDIS_USER and PSX_REDIS_PASSWORD go together")
        return self

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if not value.startswith(REDIS_SCHEMES):
            raise ValueError(f"must begin with {', '.join(REDIS_SCHEMES)}")
        return value

    def redis_login(self) -> tuple[str, str] | None:
        """User and password for Redis; None where everybody may do everything."""
        return (self.redis_user, self.redis_password.get_secret_value()) if self.redis_user else None

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
    """Settings from the environment and from the secrets that it names; a secret wins, `given` is for tests.

    Raises pydantic's ValidationError, and SecretsUnreadable.
    """
    names = [name for name in os.environ.get(SECRETS_VARIABLE, "").split(",") if name]
    return kind(**{**(_read_secrets(names) if names else {}), **given})


def _read_secrets(names: Sequence[str]) -> dict[str, str]:
    """Fields by the variables in the secrets. Read once per process: a rotated secret needs new processes."""
    import boto3  # noqa: PLC0415 - only where there are secrets to read
    import botocore.exceptions as failures  # noqa: PLC0415

    client = boto3.client("secretsmanager")
    found: dict[str, str] = {}
    for name in names:
        try:
            variables = json.loads(client.get_secret_value(SecretId=name)["SecretString"])
            found |= {key.removeprefix(PREFIX).lower(): str(value) for key, value in variables.items()}
        except failures.ClientError as error:
            raise SecretsUnreadable(f"secret {name}: {error.response['Error']['Code']}") from None
        except (failures.BotoCoreError, ValueError, AttributeError) as error:
            raise SecretsUnreadable(f"secret {name}: {type(error).__name__}") from None
    return found


def load_or_exit(kind: type[S]) -> S:
    """Settings from the environment, or a line per fault on stderr and exit status 2."""
    try:
        return load(kind)
    except ValidationError as error:
        refuse_start(error)
    except SecretsUnreadable as error:
        sys.stderr.write(f"settings: {error}\n")
        raise SystemExit(2) from None


def refuse_start(error: ValidationError) -> NoReturn:
    """Print what is wrong, naming variables and never their values, and exit with status 2."""
    for fault in error.errors(include_input=False, include_context=False):
        name = "_".join(str(part) for part in fault["loc"]).upper()
        sys.stderr.write(f"settings: {PREFIX + name if name else 'settings'}: {fault['msg']}\n")
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
