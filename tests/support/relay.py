"""A relay without its process: sockets of peers on transports by hand."""

from types import SimpleNamespace
from typing import Any, cast

from relay_node.peers import PeerSocket
from relay_node.registry import (
    Hooks,
    Registry,
)
from shared.supply.tokens import TokenFault


class Wire:
    """A transport by hand, from an address."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.address, self.closing, self.paused = address, False, False
        self.written = b""
        self.unsent_bytes = 0

    def get_extra_info(self, name: str) -> Any:
        bare_socket = SimpleNamespace(setsockopt=lambda *option: None)
        return {"peername": (self.address, 4000), "socket": bare_socket}.get(name)

    def set_write_buffer_limits(self, high: int) -> None: ...

    def set_protocol(self, protocol: Any) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += bytes(data)

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.write(part)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


def registry() -> Registry:
    """All of a relay's devices; what it asks of its process has no effect."""
    return Registry(
        Hooks(
            verify=lambda token: TokenFault.INVALID,
            origin=lambda address: cast(Any, address),
            now_ms=lambda: 1,
            arrived=lambda device: None,
            left=lambda device: None,
            redirect_for=lambda device: None,
        )
    )


def peer(of: Registry, address: str = "192.0.2.1") -> tuple[PeerSocket, Wire]:
    socket, wire = PeerSocket(of), Wire(address)
    socket.connection_made(cast(Any, wire))
    return socket, wire
