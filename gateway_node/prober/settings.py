"""What the prober needs from its environment."""

import json
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, field_validator

from shared.grading.asking import KEY_MIN_CHARS
from shared.grading.model import Target
from shared.runtime.settings import Settings
from shared.runtime.signing import check_public_keys

PLACES_MIN: Final = 2
"""An exit is listed for the first time when it was seen from two places."""


class ProberSettings(Settings):
    """Environment of a prober (prefix PSX_)."""

    mesh_token: SecretStr
    secret_pepper: SecretStr
    sealing_key: SecretStr
    asn_mmdb: Path
    country_mmdb: Path
    asn_classes: Path | None = None
    ip_data_bucket: str = ""
    probe_targets: str
    probe_target_keys: str
    probe_asking_key: SecretStr = Field(min_length=KEY_MIN_CHARS)
    """What targets send bodies to; one that is being rotated out may stand behind it, after a comma."""
    probe_ca_file: Path | None = None
    probe_concurrency: int = 64
    probe_private_listen: str = ""
    """Where `/metrics`, `/health` and `/ready` are answered; nowhere when empty."""

    @field_validator("probe_targets")
    @classmethod
    def _targets(cls, value: str) -> str:
        if len({target.place for target in parse_targets(value)}) < PLACES_MIN:
            raise ValueError(f"must name targets in at least {PLACES_MIN} places")
        return value

    @field_validator("probe_target_keys")
    @classmethod
    def _keys(cls, value: str) -> str:
        check_public_keys(value)
        return value

    def targets(self) -> list[Target]:
        """The probe targets."""
        return parse_targets(self.probe_targets)


def parse_targets(text: str) -> list[Target]:
    """`[{"place", "name", "address", "port", "plainPort"}, ...]`. Raises ValueError naming what is wrong."""
    try:
        return [
            Target(
                str(entry["place"]),
                str(entry["name"]),
                str(entry["address"]),
                int(entry["port"]),
                int(entry["plainPort"]),
            )
            for entry in json.loads(text)
        ]
    except (KeyError, TypeError, ValueError):
        raise ValueError("must be a list of place, name, address, port, plainPort") from None
