"""The one place that knows where the wire protocols are: `psx_peer._wire` in a built package, else `shared.wire`.

The build copies `shared/wire` and rewrites its imports, so a device installs nothing but this package.
"""

try:
    from psx_peer._wire import cork, egress, handshake, http1, mux, peer, stream, websocket  # type: ignore[import-not-found, import-untyped, unused-ignore]  # built only
    from psx_peer._wire.outbox import Outbox  # type: ignore[import-not-found, import-untyped, unused-ignore]  # built only
except ImportError:
    from shared.wire import cork, egress, handshake, http1, mux, peer, stream, websocket
    from shared.wire.outbox import Outbox

__all__ = ["Outbox", "cork", "egress", "handshake", "http1", "mux", "peer", "stream", "websocket"]
