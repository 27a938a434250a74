"""What the relay counts, and the one list of reasons for which it closes, drops or refuses."""

from enum import StrEnum

from shared.runtime.tallies import Tallies, level


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


SOCKETS = level("psx_relay_sockets", "Open peer sockets")
DEVICES = level("psx_relay_devices", "Devices with at least one open socket")
LINKS = level("psx_relay_links", "Open links of gateways")
BUFFERED = level("psx_relay_buffered_bytes", "Bytes held for connections that are full")
TUNNELS = level("psx_relay_tunnels", "Open tunnels")
ENDED = Tallies("psx_relay_ended", "Sockets and tunnels ended or refused, by reason", "what", "reason")
_BYTES = Tallies("psx_relay_bytes", "Tunnel bytes relayed", "direction")
UP, DOWN = _BYTES.of("to_peer"), _BYTES.of("from_peer")


def count(what: str, reason: Reason) -> None:
    """Count one end or refusal of a `socket` or a `tunnel`."""
    ENDED.of(what, reason).inc()
