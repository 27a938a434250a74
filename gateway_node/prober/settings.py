"""What the prober needs from its environment."""

from pathlib import Path

from pydantic import SecretStr

from shared.runtime.settings import Settings


class ProberSettings(Settings):
    """Environment of a prober (prefix PSX_)."""

    mesh_token: SecretStr
    secret_pepper: SecretStr
    sealing_key: SecretStr
    asn_mmdb: Path
    country_mmdb: Path
    asn_classes: Path | None = None
    ip_data_bucket: str = ""
    probe_target_name: str
    probe_target_address: str
    probe_target_port: int
    probe_ca_file: Path | None = None
    probe_bytes: int = 256 * 1024
    probe_interval_s: float = 300.0
    probe_retry_s: float = 20.0
    probe_concurrency: int = 32
