"""Links to relays: one TCP connection per relay for the tunnels of all its peers, whose ends are in `stream_exit.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

from gateway_node.stream_exit import LinkLost, RelayAway, StreamExit
from gateway_node.windows import Windows
from shared.kernel.ids import DeviceId
from shared.pool.live import mesh_address
from shared.pool.model import Presence
from shared.wire import mux
from shared.wire.cork import Cork
from shared.wire.http1 import HeadError, build_head, take_response_head
from shared.wire.mux import Bytes, Frame, MuxType
from shared.wire.outbox import Outbox

CONNECT_TIMEOUT_S: Final = 3.0
AWAY_S: Final = 1.0
"""A relay that was not reached is tried again so long after, in the background: who is given one of its exits meanwhile is
given another one at once.
"""
AWAY_KEPT_S: Final = 60.0
"""So long nobody asked for it: whoever asks next waits for it."""
LINK_HIGH_BYTES: Final = 1024 * 1024
LINK_BUFFER_MAX_BYTES: Final = 64 * 1024 * 1024
PING_EVERY_S: Final = 5.0
DEAD_AFTER_S: Final = 15.0

log = logging.getLogger("psx.gateway")


class RelayLink(asyncio.Protocol):
    """One connection to one relay."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        self._reader = mux.LinkReader()
        self._exits: dict[int, StreamExit] = {}
        self._last_id = 0
        self._heard_s = self._loop.time()
        self._cork = Cork(self._loop.call_soon)
        self.outbox = Outbox(self._send)
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.lost = False

    def add(self, exit_: StreamExit) -> int:
        """An id for a tunnel on this link."""
        while True:
            self._last_id = self._last_id % 0xFFFF_FFFF + 1
            if self._last_id not in self._exits:
                self._exits[self._last_id] = exit_
                return self._last_id

    def forget(self, tunnel_id: int) -> None:
        """A tunnel left this link."""
        self._exits.pop(tunnel_id, None)

    @property
    def busy(self) -> bool:
        """Whether it carries tunnels."""
        return bool(self._exits)

    def sweep(self, now_s: float) -> None:
        """Ping; give up a link that does not answer or does not take what is sent."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if now_s - self._heard_s > DEAD_AFTER_S or transport.get_write_buffer_size() > LINK_BUFFER_MAX_BYTES:
            log.warning("link given up", extra={"tunnels": len(self._exits)})
            transport.abort()
        else:
            self._send(mux.header(MuxType.PING, 0), bytes(8))

    def close(self) -> None:
        """This gateway ends."""
        self._cork.flush()
        if self._transport is not None:
            self._transport.close()

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = self._cork.connection = transport
        transport.set_write_buffer_limits(high=LINK_HIGH_BYTES)
        fields = [
            ("Host", "relay"),
            ("Upgrade", mux.LINK_UPGRADE),
            ("Connection", "Upgrade"),
            ("X-PSX-Mesh-Token", self._token),
            (mux.REASONS_HEADER, str(max(mux.MuxReason).value)),
        ]
        transport.write(build_head("GET / HTTP/1.1", fields))

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        if self._head is not None:
            data = self._upgraded(self._head, data)
        try:
            for frame in self._reader.receive(data):
                self._frame(frame)
        except mux.MalformedMux as fault:
            log.error("link broken", extra={"reason": str(fault)})
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.outbox.resume()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.ready.done():
            self.ready.set_exception(LinkLost("link refused"))
            self.ready.exception()
        for exit_ in list(self._exits.values()):
            exit_.path_lost()

    def _upgraded(self, head: bytearray, data: bytes) -> bytes:
        head += data
        try:
            answer = take_response_head(head)
        except HeadError:
            answer = None
            self.close()
        if answer is None:
            return b""
        if answer.status != 101:
            self.close()
            return b""
        rest, self._head = bytes(head), None
        self.ready.set_result(None)
        return rest

    def _frame(self, frame: Frame) -> None:
        exit_ = self._exits.get(frame.tunnel)
        if exit_ is not None:
            exit_.receive(frame)

    def _send(self, head: bytes, payload: Bytes = b"") -> None:
        self._cork.write(mux.link_header(len(head) + len(payload)) + head, payload)


class RelayLinks:
    """This gateway's links, made when first needed.

    `locate` finds where a device is now; `report` hears of devices whose path stays lost.
    """

    def __init__(
        self,
        token: str,
        locate: Callable[[DeviceId], Awaitable[Presence | None]],
        report: Callable[[DeviceId], None],
    ) -> None:
        self._token = token
        self.locate = locate
        self.report = report
        self.windows = Windows()
        self._links: dict[tuple[str, int], asyncio.Task[RelayLink]] = {}
        self._resuming: set[asyncio.Task[None]] = set()
        self._again_s: dict[tuple[str, int], float] = {}

    async def link(self, host: str, port: int) -> RelayLink:
        """The link to a relay. Raises LinkLost, OSError or TimeoutError."""
        task = self._try(host, port)
        return task.result() if task.done() else await asyncio.shield(task)

    def _try(self, host: str, port: int) -> asyncio.Task[RelayLink]:
        """The link that stands, or is being made."""
        address = (host, port)
        task = self._links.get(address)
        if task is None or (task.done() and (task.exception() or task.result().lost)):
            task = self._links[address] = asyncio.get_running_loop().create_task(self._connect(address))
        return task

    async def _connect(self, address: tuple[str, int]) -> RelayLink:
        loop = asyncio.get_running_loop()
        link = RelayLink(self._token)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: link, *address)
                await link.ready
        except BaseException:
            link.close()
            self._again_s[address] = loop.time() + AWAY_S
            raise
        self._again_s.pop(address, None)
        return link

    async def open(
        self, device_id: DeviceId, mesh: tuple[str, int], host: str, port: int, owner: str
    ) -> StreamExit:
        """A tunnel to a target through a device. `owner`: whose windows grow together. Raises LinkRefused, RelayAway, or
        LinkLost.
        """
        again_s = self._again_s.get(mesh)
        if again_s is not None:
            if asyncio.get_running_loop().time() >= again_s:
                self._try(*mesh)
            raise RelayAway("a moment ago")
        try:
            link = await self.link(*mesh)
        except (OSError, TimeoutError) as error:
            raise RelayAway(type(error).__name__) from error
        exit_ = StreamExit(self, device_id, self.windows.share(owner))
        try:
            await exit_.open(link, host, port)
        except BaseException:
            exit_.cut()
            raise
        return exit_

    @property
    def away(self) -> Sequence[str]:
        """Relays that are not reached, for selection to leave out. One that is due to be tried again is not among them:
        whoever is given an exit there has it tried, and is given another one.
        """
        if not self._again_s:
            return ()
        now_s = asyncio.get_running_loop().time()
        return tuple(
            mesh_address(*address)
            for address, again_s in self._again_s.items()
            if now_s < again_s or (address in self._links and not self._links[address].done())
        )

    @property
    def busy(self) -> bool:
        """Whether any tunnel still has something to deliver."""
        links = (task.result() for task in self._links.values() if task.done() and not task.exception())
        return bool(self._resuming) or any(link.busy for link in links)

    def resume(self, exit_: StreamExit, within_s: float) -> None:
        """Bring a tunnel back in the background, or cut it."""
        task = asyncio.get_running_loop().create_task(exit_.resume_somewhere(within_s))
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def sweep_for_ever(self) -> None:
        """Ping all links; the one timer of this module."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_EVERY_S)
            for address, again_s in list(self._again_s.items()):
                if loop.time() > again_s + AWAY_KEPT_S:
                    del self._again_s[address]
            for address, task in list(self._links.items()):
                if not task.done():
                    continue
                if task.exception() is not None or task.result().lost:
                    del self._links[address]
                else:
                    task.result().sweep(loop.time())

    def close(self) -> None:
        """This gateway ends."""
        for task in (*self._links.values(), *self._resuming):
            if task.done() and task in self._links.values() and task.exception() is None:
                cast("asyncio.Task[RelayLink]", task).result().close()
            else:
                task.cancel()
