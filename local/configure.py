"""`./psx configure STAGE --file FILE`: what a stage needs in AWS before its first deployment: secrets and parameters.

Secrets are made here and put into Secrets Manager under `psx/<stage>/…`; one that exists is never touched, so a second
run changes nothing that credentials hang on. Parameters come from the file (JSON) and go to SSM under `/psx/<stage>/…`;
they are what `infra/functions/parameters.yml` declares. Values that only the operator has (RPC nodes, gas wallet) are
read from this command's environment. Only names are printed. Leaves out rotation: docs/operations/secrets.md.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from local.paths import ROOT

PARAMETERS_FILE: Final = ROOT / "infra" / "functions" / "parameters.yml"
SECRETS: Final[Mapping[str, tuple[str, ...]]] = {
    "credentials": ("PSX_SECRET_PEPPER",),
    "modems": ("PSX_SEALING_KEY",),
    "device-tokens": ("PSX_JWT_PRIVATE_KEY", "PSX_JWT_PUBLIC_KEY"),
    "sale": ("PSX_QUOTE_SECRET",),
    "mesh": ("PSX_MESH_TOKEN",),
    "chains": (
        "PSX_EVM_RPC_URLS",
        "PSX_SOLANA_RPC_URLS",
        "PSX_GAS_KEY",
        "PSX_SELF_TEST_KEY",
        "PSX_CUSTOMER_KEY",
    ),
    "watchdog": (
        "PSX_WATCHDOG_API_KEY",
        "PSX_WATCHDOG_ACCOUNT",
        "PSX_WATCHDOG_GATEWAYS",
        "PSX_WATCHDOG_TARGETS",
        "PSX_WATCHDOG_RELAYS",
        "PSX_WATCHDOG_RECIPIENTS",
        "PSX_WATCHDOG_CERTIFICATES",
    ),
}
OPERATORS: Final = frozenset({*SECRETS["chains"], *SECRETS["watchdog"]})
OPTIONAL: Final = frozenset({"PSX_GAS_KEY", "PSX_SELF_TEST_KEY", "PSX_CUSTOMER_KEY", *SECRETS["watchdog"]})
NETWORK: Final = "network/"
_NAME: Final = re.compile(r"/psx/\$\{sls:stage\}/(.+)")


class ConfigureRefused(Exception):
    """What was given is not what a stage needs; the message names it, never a value."""


def parameter_names() -> tuple[str, ...]:
    """Parameters that the operator gives; those of the network stack are published by it."""
    declared = yaml.safe_load(PARAMETERS_FILE.read_text("utf-8")).values()
    names = [match[1] for entry in declared if (match := _NAME.fullmatch(entry["Default"]))]
    return tuple(name for name in names if not name.startswith(NETWORK))


def fresh_values() -> dict[str, str]:
    """New values of every secret that is ours to make."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "PSX_SECRET_PEPPER": secrets.token_hex(32),
        "PSX_SEALING_KEY": secrets.token_hex(32),
        "PSX_QUOTE_SECRET": secrets.token_hex(32),
        "PSX_MESH_TOKEN": secrets.token_urlsafe(32),
        "PSX_JWT_PRIVATE_KEY": private.decode(),
        "PSX_JWT_PUBLIC_KEY": public.decode(),
    }


def create_secrets(client: Any, stage: str, given: Mapping[str, str]) -> dict[str, bool]:
    """Create what is missing; answers name -> whether it is new. Raises ConfigureRefused."""
    values = {**fresh_values(), **{name: given.get(name, "") for name in OPERATORS}}
    made = {}
    for secret, variables in SECRETS.items():
        name = f"psx/{stage}/{secret}"
        if _exists(client, name):
            made[name] = False
            continue
        missing = [v for v in variables if not values[v] and v not in OPTIONAL]
        if missing:
            raise ConfigureRefused(f"{name}: set {', '.join(missing)} in the environment of this command")
        client.create_secret(Name=name, SecretString=json.dumps({v: values[v] for v in variables}))
        made[name] = True
    return made


def _exists(client: Any, name: str) -> bool:
    try:
        client.describe_secret(SecretId=name)
    except client.exceptions.ResourceNotFoundException:
        return False
    return True


def write_parameters(client: Any, stage: str, given: Mapping[str, Any]) -> list[str]:
    """Write all parameters of a stage; answers their names. Raises ConfigureRefused before anything is written."""
    wanted = parameter_names()
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        found = [f"missing: {', '.join(missing)}"] if missing else []
        raise ConfigureRefused("; ".join([*found, *([f"unknown: {', '.join(unknown)}"] if unknown else [])]))
    for name in wanted:
        value = given[name] if isinstance(given[name], str) else json.dumps(given[name])
        client.put_parameter(Name=f"/psx/{stage}/{name}", Value=value, Type="String", Overwrite=True)
    return [f"/psx/{stage}/{name}" for name in wanted]


def configure(stage: str, file: Path) -> int:
    """Run the command; answers the exit status."""
    try:
        given = json.loads(file.read_text("utf-8"))
        if not isinstance(given, dict):
            raise ConfigureRefused(f"{file.name}: must be a JSON object")
        parameters = write_parameters(boto3.client("ssm"), stage, given)
        made = create_secrets(boto3.client("secretsmanager"), stage, os.environ)
    except (ConfigureRefused, OSError, ValueError) as refused:
        sys.stderr.write(f"psx: {refused}\n")
        return 2
    for name in parameters:
        sys.stdout.write(f"parameter {name}: written\n")
    for name, new in made.items():
        sys.stdout.write(f"secret    {name}: {'created' if new else 'kept as it is'}\n")
    return 0
