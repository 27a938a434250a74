"""Which devices are connected to this relay, by which sockets; and what may connect at all.

A socket belongs to the device its JWT names; a device has up to 8 sockets and its tunnels are spread over them by load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from relay_node.figures import DEVICES, Reason
from relay_node.forward import Buffers
from relay_node.pace import Pace
from relay_node.rotation import Rotations
from shared.access.rules import network_of
from shared.pool.rotation import Outcome
from shared.supply.model import Origin
from shared.supply.tokens import Claims, TokenFault
from shared.wire import mux, peer
from shared.wire.peer import Text
from shared.wire.websocket import CloseCode

if TYPE_CHECKING:
    from relay_node.links import LinkConnection
    from relay_node.peers import PeerSocket
    from relay_node.websocket import PeerConnection

MAX_TUNNELS_PER_DEVICE: Final = 256
UNFINISHED_MAX_BYTES: Final = 256 * 1024 * 1024
MAX_SOCKETS_PER_ADDRESS: Final = 4096
HANDSHAKES_PER_S_MAX: Final = 5000
HANDSHAKES_PER_S_PER_ADDRESS_MAX: Final = 250
"""A token costs a signature check: an address (of IPv6 its /64) that hammers is refused before it."""
RELAY_LISTS_MAX: Final = 64
ROOM_AGAIN_S: Final = 0.25
"""How soon all connections are looked at again."""
GIVES_WAY_MIN_BYTES: Final = 64 * 1024
"""A connection for which less waits is no hoarder, unless nearly all is held."""
READ_BYTES: Final = 256 * 1024


@dataclass(slots=True)
class Device:
    """One enrolled device while it has sockets here.

    `leaving`: it was told to go. `confirms_open`: it has said `tunnel_connected` before. `read_again_s`: until then (of the
    loop's clock) nothing is read of it.
    """

    device_id: str
    account_id: str
    origin: Origin
    address: str
    connected_ms: int
    generation: int = 0
    account_generation: int = 0
    leaving: bool = False
    renewed_s: float = 0.0
    confirms_open: bool = False
    read_again_s: float = 0.0
    sockets: list[PeerSocket] = field(default_factory=list)

    def tunnel_count(self) -> int:
        """Tunnels over all its sockets."""
        return sum(s.load for s in self.sockets)

    @property
    def owned(self) -> bool:
        """Whether who holds it showed that it is theirs (decision 0033). All its sockets are alike in this."""
        return any(s.owned for s in self.sockets)

    def least_loaded(self, *, v2: bool = False) -> PeerSocket | None:
        """The ready socket (of v2 only, if asked) that carries the fewest tunnels; one that is full only if all are."""
        best, fewest = None, 0
        for socket in self.sockets:
            if socket.ready and (socket.v2 or not v2):
                load = socket.load
                if best is None or load < fewest:
                    best, fewest = socket, load
        if best is not None and not best.buffers.has_room:
            usable = [s for s in self.sockets if s.ready and (s.v2 or not v2) and s.buffers.has_room]
            return min(usable, key=lambda s: s.load, default=best)
        return best

    @property
    def protocol(self) -> str:
        """What gateways may speak to it: v2 when any ready socket does."""
        return mux.PROTOCOL if self.least_loaded(v2=True) is not None else peer.PROTOCOL


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the registry asks of its process: verify tokens, look addresses up, hear of arrivals and departures."""

    verify: Callable[[str], Claims | TokenFault]
    origin: Callable[[str], Origin]
    now_ms: Callable[[], int]
    arrived: Callable[[Device], None]
    left: Callable[[Device], None]
    redirect_for: Callable[[Device], str | None]
    rotated: Callable[[str, str, Outcome], None] = lambda device_id, request_id, outcome: None


class Unfinished:
    """What is held of peers' messages that have begun and not ended. Beyond the bound the one that began first is closed:
    an honest peer ends what it begins.
    """

    def __init__(self, max_bytes: int = UNFINISHED_MAX_BYTES) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._of: dict[PeerConnection, int] = {}

    def holds(self, socket: PeerConnection) -> bool:
        """Whether anything is counted of this one."""
        return socket in self._of

    def hold(self, socket: PeerConnection, size: int) -> None:
        """So much is held of a socket's message now; with 0 it has none, and the next one begins later than all."""
        self.held_bytes += size - self._of.get(socket, 0)
        if size:
            self._of[socket] = size
        else:
            self._of.pop(socket, None)
        while self.held_bytes > self._max_bytes:
            oldest = next(iter(self._of))
            self.held_bytes -= self._of.pop(oldest)
            oldest.close(CloseCode.TRY_AGAIN_LATER, "a message that does not end", Reason.OVERLOADED)


class Registry:
    """All devices connected to this relay."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.devices: dict[str, Device] = {}
        self.sockets: set[PeerSocket] = set()
        self.per_address: dict[str, int] = {}
        self.links: set[LinkConnection] = set()
        self.buffers = Buffers()
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        """Every socket's: what a read put here is taken before the next read."""
        self.unfinished = Unfinished()
        self._room_again_s = 0.0
        self.draining = False
        self._window_s = 0
        self._handshakes: dict[str, int] = {}
        self._handshakes_total = 0
        self._relay_lists: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.pace = Pace()
        self.rotations = Rotations()

    def may_shake_hands(self, address: str, now_s: float) -> bool:
        """Count a handshake of this second; False when there were too many, of this address or of all.

        What an address may not have any more counts for nobody else.
        """
        if int(now_s) != self._window_s:
            self._window_s, self._handshakes_total = int(now_s), 0
            self._handshakes.clear()
        count = self._handshakes.get(address, 0) + 1
        self._handshakes[address] = count
        if count > HANDSHAKES_PER_S_PER_ADDRESS_MAX:
            return False
        self._handshakes_total += 1
        return self._handshakes_total <= HANDSHAKES_PER_S_MAX

    def attach(self, socket: PeerSocket, claims: Claims) -> Reason | None:
        """Give an accepted socket to its device, or say why not: it has all its sockets already, or newer tokens, or who
        holds it showed that it is theirs and this one did not.

        Sockets with older tokens than the newest are closed; so are those of strangers when the owner comes.
        """
        device = self.devices.get(claims.device_id)
        if device is not None:
            is_older = claims.generation < device.generation
            if is_older or claims.account_generation < device.account_generation:
                return Reason.TOKEN_REFUSED
            if device.owned and not claims.owned:
                return Reason.NOT_OWNED
            if claims.owned and not device.owned:
                self._turn_out(device)
                device = None
            elif len(device.sockets) >= peer.MAX_SOCKETS_PER_DEVICE:
                return Reason.TOO_MANY_SOCKETS
        if device is None:
            device = self._arrive(socket, claims)
        device.sockets.append(socket)
        socket.owned = claims.owned
        device.generation = socket.generation = claims.generation
        device.account_generation = socket.account_generation = claims.account_generation
        self.revoke(device.device_id, claims.generation, claims.account_generation)
        socket.device, socket.token_issued_s = device, claims.issued_s
        socket.known_relays = self._one_of_each(claims.relays)
        return None

    def _arrive(self, socket: PeerSocket, claims: Claims) -> Device:
        """A device with its first socket: that one's address is the device's."""
        device = Device(
            claims.device_id,
            claims.account_id,
            self.hooks.origin(socket.address),
            socket.address,
            self.hooks.now_ms(),
            claims.generation,
            claims.account_generation,
        )
        device.renewed_s = socket.loop.time()
        self.devices[claims.device_id] = device
        DEVICES.value = len(self.devices)
        return device

    def speaks_from(self, device: Device, socket: PeerSocket) -> bool:
        """Whether a device has another address since this socket is ready: then that, and what is known of it, is the
        device's. One of another family is a second way of the same line, as long as the first one stands.
        """
        is_other = network_of(socket.address) != network_of(device.address)
        same_family = (":" in socket.address) is (":" in device.address)
        stands = not same_family and any(s.ready and s.address == device.address for s in device.sockets)
        if is_other and not stands:
            device.address, device.origin = socket.address, self.hooks.origin(socket.address)
        return is_other and not stands

    @staticmethod
    def _turn_out(device: Device) -> None:
        """Whoever has the device without having shown that it is theirs leaves it to who has."""
        for socket in list(device.sockets):
            socket.close(CloseCode.POLICY, "its owner is here", Reason.NOT_OWNED)

    def _one_of_each(self, relays: tuple[str, ...]) -> tuple[str, ...]:
        """The same list of relays stands in almost every token: it is kept once."""
        if len(self._relay_lists) >= RELAY_LISTS_MAX:
            self._relay_lists.clear()
        return self._relay_lists.setdefault(relays, relays)

    def detach(self, socket: PeerSocket) -> None:
        """A socket is gone; with the last one its device leaves."""
        device = socket.device
        if device is None or socket not in device.sockets:
            return
        device.sockets.remove(socket)
        if not device.leaving and not any(s.address == device.address for s in device.sockets):
            newest = device.sockets[-1] if device.sockets else None
            if newest is not None and newest.ready and self.speaks_from(device, newest):
                self.hooks.arrived(device)
        if not device.sockets and self.devices.get(device.device_id) is device:  # nobody has taken its place
            del self.devices[device.device_id]
            DEVICES.value = len(self.devices)
            self.hooks.left(device)

    def ask_rotation(self, device_id: str, request_id: str) -> None:
        """Send a device that is here what it is asked; remember it for one that comes here to answer."""
        device = self.devices.get(device_id)
        socket = device.least_loaded() if device else None
        self.rotations.asked(device_id, request_id, socket.address if socket else "", self.hooks.now_ms())
        if socket is not None:
            socket.send_text(peer.Type.ROTATE_IP_REQUEST, requestId=request_id)

    def answer_rotation(self, socket: PeerSocket, said: Text) -> None:
        """What a device says of a rotation; told on when it was asked for."""
        if socket.device is None:
            return
        device_id, request_id = socket.device.device_id, said.text("requestId")
        outcome = self.rotations.answered(device_id, request_id, said, socket.address, self.hooks.now_ms())
        if outcome is not None:
            self.hooks.rotated(device_id, request_id, outcome)

    def revoke_account(self, account_id: str, generation: int) -> None:
        """Close every socket of an account whose tokens before `generation` ended."""
        for device in [d for d in self.devices.values() if d.account_id == account_id]:
            self.revoke(device.device_id, 0, generation)

    def revoke(self, device_id: str, generation: int, account_generation: int = 0) -> None:
        """Close every socket of a device whose tokens before these generations ended."""
        device = self.devices.get(device_id)
        for socket in list(device.sockets) if device else ():
            if socket.generation < generation or socket.account_generation < account_generation:
                socket.close(CloseCode.IDENTITY_INVALID, "identity revoked", Reason.REVOKED)

    def make_room(self, now_s: float) -> None:
        """While too much is held for peers and gateways that do not take it, those lose their connections whose bytes would
        wait longest at the pace at which they take them: their tunnels resume, or end.
        """
        if self.buffers.crowded() and now_s >= self._room_again_s:
            self._room_again_s = now_s + ROOM_AGAIN_S
            for hoarder in self._hoarders():
                hoarder.give_way()
                if self.buffers.roomy():
                    break

    def _hoarders(self) -> Iterator[PeerSocket | LinkConnection]:
        """Who has most to wait for comes first."""
        everybody: Iterable[PeerSocket | LinkConnection] = (*self.sockets, *self.links)
        holders = [c for c in everybody if c.buffers.held_bytes]
        for holder in sorted(holders, key=lambda c: c.buffers.wait(), reverse=True):
            # asked now: its other end may have given way
            held_bytes = holder.buffers.held_bytes
            if held_bytes >= GIVES_WAY_MIN_BYTES or (held_bytes and self.buffers.nearly_full()):
                yield holder

    def sweep(self, now_s: float) -> None:
        """Close what is idle, late or stalled. Called every few seconds."""
        self.make_room(now_s)
        for socket in list(self.sockets):
            socket.buffers.look()
            socket.sweep(now_s)
        for link in list(self.links):
            link.buffers.look()
            link.sweep(now_s)
