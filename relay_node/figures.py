"""What the relay counts, and the one list of reasons for which it closes, drops or refuses."""

from collections.abc import Iterable
from enum import StrEnum
from functools import cache

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Reason(StrEnum):
    """Why a socket was closed or a tunnel refused or ended; each happening is counted once."""

    PEER_CLOSED = "peer_closed"
    PEER_STOPPED = "peer_stopped"
    TARGET_CLOSED = "target_closed"
    GATEWAY_CLOSED = "gateway_closed"
    PEER_GONE = "peer_gone"
    IDLE = "idle"
    STALLED = "stalled"
    PROTOCOL = "protocol_error"
    HANDSHAKE = "handshake_refused"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a reason, not a secret
    REVOKED = "revoked"
    NOT_OWNED = "owner_is_here"
    TOO_MANY_SOCKETS = "too_many_sockets"
    TOO_MANY_TUNNELS = "too_many_tunnels"
    UNKNOWN_DEVICE = "unknown_device"
    MESH_TOKEN = "mesh_token_refused"  # noqa: S105 - a reason, not a secret
    BAD_REQUEST = "bad_request"
    OPEN_FAILED = "open_failed"
    OPEN_TIMEOUT = "open_timeout"
    DRAIN = "drain"
    LINK_GONE = "link_gone"
    OVERLOADED = "overloaded"
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    MOVED = "moved"


SOCKETS = Gauge("psx_relay_sockets", "Open peer sockets")
DEVICES = Gauge("psx_relay_devices", "Devices with at least one open socket")
LINKS = Gauge("psx_relay_links", "Open links of gateways")
BUFFERED = Gauge("psx_relay_buffered_bytes", "Bytes held for connections that are full")
TUNNELS = Gauge("psx_relay_tunnels", "Open tunnels")
ENDED = Counter("psx_relay_ended", "Sockets and tunnels ended or refused, by reason", ["what", "reason"])


class Tally:
    """A count that every frame adds to: the library's own counter takes a lock for each addition."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int) -> None:
        """Add."""
        self.value += amount


UP, DOWN = Tally(), Tally()


class _Bytes(Collector):
    def collect(self) -> Iterable[Metric]:
        found = CounterMetricFamily("psx_relay_bytes", "Tunnel bytes relayed", labels=["direction"])
        found.add_metric(["to_peer"], UP.value)
        found.add_metric(["from_peer"], DOWN.value)
        yield found


REGISTRY.register(_Bytes())


def count(what: str, reason: Reason) -> None:
    """Count one end or refusal of a `socket` or a `tunnel`."""
    _ended(what, reason).inc()


@cache
def _ended(what: str, reason: Reason) -> Counter:
    return ENDED.labels(what, reason.value)
