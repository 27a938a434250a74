"""Results of probes and what they add up to."""

from dataclasses import dataclass
from enum import StrEnum

from shared.kernel.codes import IpType, SpeedTier
from shared.kernel.ids import UNKNOWN_COUNTRY, Country, DeviceId

PROBE_MODE = "connect_v2"


class Failure(StrEnum):
    """Why a probe failed; stable codes that suppliers and operators see."""

    PEER_OFFLINE = "peer_offline"
    RELAY_UNREACHABLE = "relay_unreachable"
    MODEM_UNREACHABLE = "modem_unreachable"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_DROPPED = "tls_dropped_mid_handshake"
    TLS_TIMEOUT = "tls_timeout"
    TLS_UNTRUSTED = "tls_untrusted"
    BODY_SHORT = "body_short"
    BODY_MISMATCH = "body_mismatch"
    HTTP_STATUS = "http_status"
    NO_EXIT_IP = "no_exit_ip"
    OVERALL_TIMEOUT = "probe_overall_timeout"

    @property
    def alters_content(self) -> bool:
        """Whether the exit changed what passed through it: quarantined at once, not after three times."""
        return self in {Failure.BODY_MISMATCH, Failure.TLS_UNTRUSTED}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe through one exit. Times in ms, throughput in KB/s; what was not reached is None."""

    at_ms: int
    failure: Failure | None = None
    connect_ms: int | None = None
    tls_handshake_ms: int | None = None
    ttfb_ms: int | None = None
    throughput_kbps: int | None = None
    exit_country: Country = UNKNOWN_COUNTRY
    exit_ip_type: IpType = IpType.UNKNOWN
    exit_asn: int = 0
    exit_isp: str = ""

    @property
    def passed(self) -> bool:
        """Whether a customer would have been served."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class Grade:
    """What the last probes of a device add up to. Counters are consecutive; only the latest result is kept."""

    device_id: DeviceId
    passes: int = 0
    failures: int = 0
    tier: SpeedTier = SpeedTier.UNKNOWN
    listed: bool = False
    quarantined: bool = False
    reason: str = "not_probed"
    latest: ProbeResult | None = None
    version: int = 0
