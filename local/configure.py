"""`./psx configure STAGE --file FILE`: what a stage needs in AWS before its first deployment: secrets and parameters.

Secrets are made here and put into Secrets Manager under `psx/<stage>/…`; one that exists is never touched, so a second
run changes nothing that credentials hang on. Parameters come from the file (JSON) and go to SSM under `/psx/<stage>/…`;
they are what `infra/functions/parameters.yml` declares, and what nodes read (`infra/nodes/boot.py`). Public keys that nodes
verify with are copied out of the secrets, so a second run after a rotation publishes the new ones. Values that only the
operator has (RPC nodes, gas wallet) are read from this command's environment. Only names are printed. Leaves out rotation:
docs/operations/secrets.md.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import boto3
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway_node.prober.settings import PLACES_MIN, parse_targets
from local.cache_users import access_strings
from local.paths import ROOT
from shared.supply.model import parse_regions

PARAMETERS_FILE: Final = ROOT / "infra" / "functions" / "parameters.yml"
SECRETS: Final[Mapping[str, tuple[str, ...]]] = {
    "credentials": ("PSX_SECRET_PEPPER",),
    "modems": ("PSX_SEALING_KEY",),
    "device-tokens": ("PSX_JWT_PRIVATE_KEY", "PSX_JWT_PUBLIC_KEY"),
    "sale": ("PSX_QUOTE_SECRET",),
    "mesh": ("PSX_MESH_TOKEN",),
    "probe-target": ("PSX_TARGET_SIGNING_KEY", "PSX_TARGET_PUBLIC_KEYS"),
    "probe-asking": ("PSX_PROBE_ASKING_KEY",),
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
    **{f"cache-{user}": ("PSX_REDIS_PASSWORD",) for user in access_strings()},
}
OPERATORS: Final = frozenset({*SECRETS["chains"], *SECRETS["watchdog"]})
OPTIONAL: Final = frozenset({"PSX_GAS_KEY", "PSX_SELF_TEST_KEY", "PSX_CUSTOMER_KEY", *SECRETS["watchdog"]})
NETWORK: Final = "network/"
PROBE_TARGETS: Final = "nodes/probe-targets"
"""The operator's too, and known when the targets stand: it may come with a later run."""
PUBLISHED: Final[Mapping[str, tuple[str, str]]] = {
    "nodes/jwt-public-key": ("device-tokens", "PSX_JWT_PUBLIC_KEY"),
    "nodes/probe-target-keys": ("probe-target", "PSX_TARGET_PUBLIC_KEYS"),
}
"""Parameter -> the secret and the variable in it that is public. Nodes need it and must not read the private one."""
_NAME: Final = re.compile(r"/psx/\$\{sls:stage\}/(.+)")


class ConfigureRefused(Exception):
    """What was given is not what a stage needs; the message names it, never a value."""


def parameter_names() -> tuple[str, ...]:
    """Parameters that the operator gives; those of the network stack are published by it."""
    declared = yaml.safe_load(PARAMETERS_FILE.read_text("utf-8")).values()
    names = [match[1] for entry in declared if (match := _NAME.fullmatch(entry["Default"]))]
    return tuple(name for name in names if not name.startswith(NETWORK))


def fresh_values() -> dict[str, str]:
    """New values of every variable that is ours to make, for one secret."""
    tokens, target = _key_pair(), _key_pair()
    return {
        "PSX_SECRET_PEPPER": secrets.token_hex(32),
        "PSX_SEALING_KEY": secrets.token_hex(32),
        "PSX_QUOTE_SECRET": secrets.token_hex(32),
        "PSX_MESH_TOKEN": secrets.token_urlsafe(32),
        "PSX_JWT_PRIVATE_KEY": tokens[0],
        "PSX_JWT_PUBLIC_KEY": tokens[1],
        "PSX_TARGET_SIGNING_KEY": target[0],
        "PSX_TARGET_PUBLIC_KEYS": target[1],
        "PSX_PROBE_ASKING_KEY": secrets.token_hex(32),
        "PSX_REDIS_PASSWORD": secrets.token_hex(32),
    }


def _key_pair() -> tuple[str, str]:
    """A fresh Ed25519 pair: private and public PEM."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode(), public.decode()


def create_secrets(client: Any, stage: str, given: Mapping[str, str]) -> dict[str, bool]:
    """Create what is missing; answers name -> whether it is new. Raises ConfigureRefused."""
    made = {}
    for secret, variables in SECRETS.items():
        name = f"psx/{stage}/{secret}"
        if _exists(client, name):
            made[name] = False
            continue
        values = {**fresh_values(), **{variable: given.get(variable, "") for variable in OPERATORS}}
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
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - {*wanted, PROBE_TARGETS})
    if missing or unknown:
        found = [f"missing: {', '.join(missing)}"] if missing else []
        raise ConfigureRefused("; ".join([*found, *([f"unknown: {', '.join(unknown)}"] if unknown else [])]))
    values = {name: v if isinstance(v, str) else json.dumps(v) for name, v in given.items()}
    for name, check in _CHECKS.items():
        try:
            check(values.get(name, ""))
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            raise ConfigureRefused(f"{name}: {fault or type(fault).__name__}") from None
    return [_put(client, stage, name, value) for name, value in values.items()]


def _check_targets(text: str) -> None:
    if text and len({target.place for target in parse_targets(text)}) < PLACES_MIN:
        raise ValueError(f"must name targets in at least {PLACES_MIN} places")


_CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    "relays": lambda text: parse_regions(json.loads(text)),
    PROBE_TARGETS: _check_targets,
}


def publish_keys(store: Any, client: Any, stage: str) -> list[str]:
    """Write the public halves of what the secrets hold (`store`) as parameters (`client`); answers their names."""
    found = []
    for name, (secret, variable) in PUBLISHED.items():
        held = json.loads(store.get_secret_value(SecretId=f"psx/{stage}/{secret}")["SecretString"])
        found.append(_put(client, stage, name, held[variable]))
    return found


def _put(client: Any, stage: str, name: str, value: str) -> str:
    full = f"/psx/{stage}/{name}"
    client.put_parameter(Name=full, Value=value, Type="String", Overwrite=True)
    return full


def configure(stage: str, file: Path) -> int:
    """Run the command; answers the exit status."""
    try:
        given = json.loads(file.read_text("utf-8"))
        if not isinstance(given, dict):
            raise ConfigureRefused(f"{file.name}: must be a JSON object")
        parameters, store = boto3.client("ssm"), boto3.client("secretsmanager")
        written = write_parameters(parameters, stage, given)
        made = create_secrets(store, stage, os.environ)
        written += publish_keys(store, parameters, stage)
    except (ConfigureRefused, OSError, ValueError) as refused:
        sys.stderr.write(f"psx: {refused}\n")
        return 2
    for name in written:
        sys.stdout.write(f"parameter {name}: written\n")
    for name, new in made.items():
        sys.stdout.write(f"secret    {name}: {'created' if new else 'kept as it is'}\n")
    if PROBE_TARGETS not in given:
        sys.stdout.write(f"parameter /psx/{stage}/{PROBE_TARGETS}: not given; gateways need it to start\n")
    return 0
