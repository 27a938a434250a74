"""Results of probes, what they add up to, and the one enumeration of why a probe failed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.kernel.codes import IpType, SpeedTier
from shared.kernel.ids import UNKNOWN_COUNTRY, Country, DeviceId

PROBE_MODE = "connect_v2"
PROOF_HEADER: Final = "X-PSX-Proof"
"""The header that carries what a target signs."""


class Cause(StrEnum):
    """On whose side a failure lies: only an exit's own failures count against it."""

    EXIT = "exit"
    NETWORK = "network"


class Phase(StrEnum):
    """The checks of a probe, in their order; what suppliers are shown as the failing check."""

    REACH = "reach"
    CONNECT = "connect"
    TLS = "tls"
    BODY = "body"
    PLAIN = "plain"
    EXIT_IP = "exit_ip"


class Failure(StrEnum):
    """Why a probe failed; stable codes that suppliers and operators see."""

    PEER_OFFLINE = "peer_offline"
    RELAY_UNREACHABLE = "relay_unreachable"
    RELAY_DRAINING = "relay_draining"
    TARGET_DOWN = "probe_target_down"
    MODEM_UNREACHABLE = "modem_unreachable"
    MODEM_CREDENTIALS = "modem_credentials_refused"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_DROPPED = "tls_dropped_mid_handshake"
    TLS_TIMEOUT = "tls_timeout"
    TLS_UNTRUSTED = "tls_untrusted"
    BODY_SHORT = "body_short"
    BODY_MISMATCH = "body_mismatch"
    BODY_UNSIGNED = "body_signature_wrong"
    HTTP_STATUS = "http_status"
    PLAIN_FAILED = "plain_failed"
    PLAIN_ALTERED = "plain_body_altered"
    NO_EXIT_IP = "no_exit_ip"
    OVERALL_TIMEOUT = "probe_overall_timeout"

    @property
    def alters_content(self) -> bool:
        """Whether the exit changed what passed through it: quarantined at once, not after three times."""
        return self in _ALTERING

    @property
    def cause(self) -> Cause:
        """Whose failure it is. What the network did says nothing of the exit."""
        return Cause.NETWORK if self in _OF_THE_NETWORK else Cause.EXIT

    @property
    def phase(self) -> Phase:
        """The check that failed. An overall timeout names the body: that is what takes long."""
        return _PHASES[self]


_ALTERING: Final = frozenset(
    {Failure.BODY_MISMATCH, Failure.BODY_UNSIGNED, Failure.TLS_UNTRUSTED, Failure.PLAIN_ALTERED}
)
_OF_THE_NETWORK: Final = frozenset(
    {Failure.PEER_OFFLINE, Failure.RELAY_UNREACHABLE, Failure.RELAY_DRAINING, Failure.TARGET_DOWN}
)

_PHASES: Final = {
    Failure.PEER_OFFLINE: Phase.REACH,
    Failure.RELAY_UNREACHABLE: Phase.REACH,
    Failure.RELAY_DRAINING: Phase.REACH,
    Failure.TARGET_DOWN: Phase.REACH,
    Failure.MODEM_UNREACHABLE: Phase.REACH,
    Failure.MODEM_CREDENTIALS: Phase.REACH,
    Failure.CONNECT_REFUSED: Phase.CONNECT,
    Failure.CONNECT_TIMEOUT: Phase.CONNECT,
    Failure.TLS_DROPPED: Phase.TLS,
    Failure.TLS_TIMEOUT: Phase.TLS,
    Failure.TLS_UNTRUSTED: Phase.TLS,
    Failure.BODY_SHORT: Phase.BODY,
    Failure.BODY_MISMATCH: Phase.BODY,
    Failure.BODY_UNSIGNED: Phase.BODY,
    Failure.HTTP_STATUS: Phase.BODY,
    Failure.OVERALL_TIMEOUT: Phase.BODY,
    Failure.PLAIN_FAILED: Phase.PLAIN,
    Failure.PLAIN_ALTERED: Phase.PLAIN,
    Failure.NO_EXIT_IP: Phase.EXIT_IP,
}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe through one exit. Times in ms, throughput in KB/s; what was not reached is None.

    `vantage` is the place of the target that saw the exit, `exit_mark` a digest of the address that it saw, `exit_network`
    one of its /24 (IPv6: /48) unless an operator spoke of it: devices of one home line have it in common. `differs` names
    what the exit is not although its registration said so: `country`, `class`, or both with a comma.
    """

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
    vantage: str = ""
    exit_mark: str = ""
    exit_network: str = ""
    differs: str = ""
    plain: bool = False
    """Whether an unencrypted page came through unaltered, too."""

    @property
    def passed(self) -> bool:
        """Whether a customer would have been served."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class Stability:
    """How an exit's address behaved: changes that fade with a half-life, in thousandths, and since when it is watched."""

    mark: str = ""
    since_ms: int = 0
    seen_ms: int = 0
    changes_milli: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """Off sale on customers' word: until when, and how many times in a row. Probes neither set nor end it."""

    times: int = 0
    until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Fared:
    """How tunnels of one customer fared with one exit since it was last told. `customer` and `targets` are digests."""

    device_id: DeviceId
    customer: str
    served: int
    failed: int
    targets: tuple[str, ...] = ()
    """Of those that failed."""


@dataclass(frozen=True, slots=True)
class Experience:
    """One customer's tunnels within a while: with the exit in question, and with all other exits together."""

    served: int
    failed: int
    served_elsewhere: int = 0
    failed_elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class Conduct:
    """How an exit treated its customers since the first that it failed; `targets` is how many different ones failed."""

    customers: tuple[Experience, ...] = ()
    targets: int = 0


@dataclass(frozen=True, slots=True)
class Grade:
    """What the last probes of a device add up to. Counters are consecutive; only the latest result is kept.

    `vantages` are the places whose probes passed in the present run of passes. `listed_before`: it was on sale once.
    `measured_ms` is when its throughput was last measured, `plain_ms` when an unencrypted page last came through unaltered.
    `cut_short`: a body did not come through, and no long one has since; what smaller ones do says nothing then.
    """

    device_id: DeviceId
    passes: int = 0
    failures: int = 0
    tier: SpeedTier = SpeedTier.UNKNOWN
    listed: bool = False
    quarantined: bool = False
    cut_short: bool = False
    reason: str = "not_probed"
    latest: ProbeResult | None = None
    version: int = 0
    vantages: tuple[str, ...] = ()
    listed_before: bool = False
    stability: Stability = Stability()
    measured_ms: int = 0
    plain_ms: int = 0
    goods: str = ""
    """As what it is on sale, as text; empty while it is not."""
    bar: Bar = Bar()


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What operators may tune, as the setting `grading`. The defaults are those that the simulation chose."""

    passes_to_list: int = 2
    failures_to_delist: int = 3
    first_passes: int = 2
    first_vantages: int = 2
    fast_kbps: int = 1_000
    medium_kbps: int = 250
    brake_percent: int = 10
    customers_to_bar: int = 6
    bar_percent: int = 80
    interval_s: int = 300
    retry_s: int = 20
    failing_s: int = 60
    bytes_per_day: int = 16_000_000


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What one probe asks for: how large a body, and whether an unencrypted page too."""

    size_bytes: int
    plain: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A probe target: the place it stands in, its TLS name, its literal address and its ports."""

    place: str
    name: str
    address: str
    port: int
    plain_port: int
