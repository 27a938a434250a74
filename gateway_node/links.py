"""Links to relays, and tunnels of binary-v2 over them: one TCP connection per relay for all its peers.

A tunnel whose path is lost (the peer's socket, the relay, this link) waits, looks its device up in Redis, and resumes
where the device is now; the customer sees a pause. After `RESUME_TRY_S` it is cut. An end's rules: `wire/stream.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

from prometheus_client import Counter

from gateway_node.tunnel import Tunnel
from shared.kernel.ids import DeviceId
from shared.pool.model import Presence
from shared.runtime.dynamo import StoreUnavailable
from shared.wire import mux
from shared.wire.cork import Cork
from shared.wire.http1 import HeadError, build_head, take_response_head
from shared.wire.mux import Bytes, Frame, MuxReason, MuxType
from shared.wire.stream import FlowViolation, Outbox, Stream, WindowBudget

CONNECT_TIMEOUT_S: Final = 3.0
LINK_HIGH_BYTES: Final = 1024 * 1024
LINK_BUFFER_MAX_BYTES: Final = 64 * 1024 * 1024
PING_EVERY_S: Final = 5.0
DEAD_AFTER_S: Final = 15.0
RESUME_TRY_S: Final = 15.0
REPORT_AFTER_S: Final = 1.0
"""A path that is back sooner was a handover, and nothing to probe for."""
RESUME_POLL_MIN_S: Final = 0.05
RESUME_POLL_MAX_S: Final = 1.0
RESUME_ANSWER_TIMEOUT_S: Final = 5.0
FINISH_WITHIN_S: Final = 60.0
WINDOWS_MAX_BYTES: Final = 1024 * 1024 * 1024
"""What all windows of this gateway may grow by together."""

RESUMED = Counter("psx_gateway_resumed", "Tunnels that lost their path, by outcome", ["outcome"])

log = logging.getLogger("psx.gateway")


class LinkRefused(Exception):
    """A tunnel was not opened; `detail` is the other end's word for it."""

    def __init__(self, reason: MuxReason, detail: str = "") -> None:
        super().__init__(detail or reason.name.lower())
        self.reason = reason


class LinkLost(ConnectionError):
    """There is no link to that relay."""


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
        self._cork = Cork(self._write, self._loop.call_soon)
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
        self._transport = transport
        transport.set_write_buffer_limits(high=LINK_HIGH_BYTES)
        fields = [("Upgrade", mux.LINK_UPGRADE), ("Connection", "Upgrade"), ("X-PSX-Mesh-Token", self._token)]
        transport.write(build_head("GET / HTTP/1.1", [("Host", "relay"), *fields]))

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

    def _write(self, parts: Sequence[Bytes]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._transport.writelines(parts)
        except RuntimeError:  # uvloop raises when the transport closed in this very turn
            return


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
        self.budget = WindowBudget(WINDOWS_MAX_BYTES)
        self._links: dict[tuple[str, int], asyncio.Task[RelayLink]] = {}
        self._resuming: set[asyncio.Task[None]] = set()

    async def link(self, host: str, port: int) -> RelayLink:
        """The link to a relay. Raises LinkLost, OSError or TimeoutError."""
        address = (host, port)
        task = self._links.get(address)
        if task is not None and task.done() and (task.exception() or task.result().lost):
            task = None
        if task is None:
            task = asyncio.get_running_loop().create_task(self._connect(host, port))
            self._links[address] = task
        return await asyncio.shield(task)

    async def _connect(self, host: str, port: int) -> RelayLink:
        loop = asyncio.get_running_loop()
        link = RelayLink(self._token)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: link, host, port)
                await link.ready
        except BaseException:
            link.close()
            raise
        return link

    async def open(self, device_id: DeviceId, mesh: tuple[str, int], host: str, port: int) -> StreamExit:
        """A tunnel to a target through a device. Raises LinkRefused, OSError or TimeoutError."""
        link = await self.link(*mesh)
        exit_ = StreamExit(self, device_id)
        try:
            await exit_.open(link, host, port)
        except BaseException:
            exit_.cut()
            raise
        return exit_

    def resume(self, exit_: StreamExit) -> None:
        """Bring a tunnel back in the background."""
        task = asyncio.get_running_loop().create_task(exit_.resume_somewhere())
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def sweep_for_ever(self) -> None:
        """Ping all links; the one timer of this module."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_EVERY_S)
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


class StreamExit:
    """The gateway's end of one tunnel of binary-v2."""

    carries_eof: Final = True

    def __init__(self, links: RelayLinks, device_id: DeviceId) -> None:
        self._links = links
        self._device_id = device_id
        self._stream = Stream(self, os.urandom(mux.TOKEN_BYTES), links.budget)
        self._link: RelayLink | None = None
        self._id = 0
        self._opening: asyncio.Future[None] | None = None
        self._resuming: asyncio.Future[Frame] | None = None
        self._tunnel: Tunnel | None = None
        self._early: list[Bytes] = []
        self._eof_early = False
        self._finishing = False
        self._late: asyncio.TimerHandle | None = None
        self._over = False

    async def open(self, link: RelayLink, host: str, port: int) -> None:
        """Raises LinkRefused, or LinkLost when the path goes before the answer."""
        self._link, self._id = link, link.add(self)
        self._opening = asyncio.get_running_loop().create_future()
        frame = mux.open_frame(self._id, self._stream.token, self._stream.told_limit, host, port)
        link.outbox.send(mux.for_device(frame, self._device_id))
        await self._opening

    def attach(self, tunnel: Tunnel) -> None:
        """The tunnel stands: what came early goes first."""
        if self._over:  # the target reset it in the same breath as it accepted
            tunnel.cut()
            return
        self._tunnel = tunnel
        early, self._early = self._early, []
        for data in early:
            tunnel.to_customer(data)
        if self._stream.held:
            tunnel.exit_full()
        if self._eof_early:
            tunnel.exit_ended()

    # from the link

    def receive(self, frame: Frame) -> None:
        """A frame for this tunnel. What a peer does wrong ends its tunnel and never the link, which others use."""
        try:
            self._frame(frame)
        except (FlowViolation, mux.MalformedMux) as fault:
            log.warning("exit broke the protocol", extra={"device": self._device_id, "reason": str(fault)})
            self._broke()

    def _frame(self, frame: Frame) -> None:
        opened = self._opening is not None and self._opening.done()
        match frame.type:
            case MuxType.DATA if opened:
                self._stream.on_data(frame.body)
            case MuxType.WINDOW:
                self._stream.on_window(*mux.read_window(frame.body))
                self._close_if_over()
                if self._finishing and self._stream.delivered:
                    self.cut()
            case MuxType.EOF if opened:
                self._stream.on_eof()
                self._close_if_over()
            case MuxType.BLOCKED:
                self._stream.on_blocked(mux.read_limit(frame.body))
            case MuxType.DATA | MuxType.EOF:
                raise mux.MalformedMux("bytes before OPENED")
            case MuxType.RESET:
                self._leave_link()
                self._reset(mux.read_reason(frame.body))
            case MuxType.OPENED | MuxType.REFUSED | MuxType.RESUMED:
                self._answered(frame)

    def _answered(self, frame: Frame) -> None:
        """OPEN or RESUME was answered; what nobody asked for is ignored."""
        opening = self._opening
        if self._resuming is not None:
            if not self._resuming.done() and frame.type is not MuxType.OPENED:
                self._resuming.set_result(frame._replace(body=bytes(frame.body)))
        elif opening is None:
            return
        elif opening.done():
            if (
                frame.type is MuxType.REFUSED
            ):  # the relay has forgotten the tunnel, whatever the peer means by it
                self._leave_link()
                self._broke()
        elif frame.type is MuxType.OPENED:
            if self._link is not None:
                self._stream.attach(self._link.outbox, self._id)
            self._stream.on_opened(mux.read_limit(frame.body))
            opening.set_result(None)
        elif frame.type is MuxType.REFUSED:
            detail = bytes(frame.body[1:]).decode("utf-8", "replace")
            opening.set_exception(LinkRefused(mux.read_reason(frame.body), detail))

    def _reset(self, reason: MuxReason) -> None:
        if reason is MuxReason.PATH_LOST:
            self.path_lost()
        else:
            self._broke(by_exit=reason is not MuxReason.TARGET_RESET)

    def path_lost(self) -> None:
        """The way to the peer is gone; an open tunnel looks for another one."""
        self._link = None
        if self._over:
            return
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(LinkLost("path lost before the tunnel opened"))
        elif self._resuming is not None:
            if not self._resuming.done():
                self._resuming.set_exception(LinkLost("path lost again"))
        elif self._stream.attached:
            self._stream.detach()
            self._links.resume(self)

    # resumption

    async def resume_somewhere(self) -> None:
        """Try where the device is, until it answers or time is over. The customer's bytes wait meanwhile."""
        report = asyncio.get_running_loop().call_later(REPORT_AFTER_S, self._links.report, self._device_id)
        try:
            async with asyncio.timeout(RESUME_TRY_S):
                wait_s = RESUME_POLL_MIN_S
                while not self._over and not await self._resume_once():
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, RESUME_POLL_MAX_S)
        except (TimeoutError, LinkRefused, FlowViolation, mux.MalformedMux) as fault:
            RESUMED.labels("given_up").inc()
            log.info("not resumed", extra={"device": self._device_id, "reason": str(fault)})
            self._broke()
        finally:
            report.cancel()

    async def _resume_once(self) -> bool:
        """False: try again. Raises LinkRefused when the peer no longer knows the tunnel."""
        try:
            presence = await self._links.locate(self._device_id)
            if presence is None or presence.protocol != mux.PROTOCOL:
                return False
            link = await self._links.link(presence.mesh_host, presence.mesh_port)
            if self._is_over():
                return True
            answer = await self._ask(link)
        except (StoreUnavailable, OSError, TimeoutError):
            self._say(
                mux.reset_frame(self._id, MuxReason.PATH_LOST)
            )  # should it still come, it is not wanted
            self._leave_link()
            return False
        if self._is_over():
            return True
        if not self._holds(link):
            return False
        if answer.type is MuxType.REFUSED:
            self._leave_link()
            reason = mux.read_reason(answer.body)
            if reason is MuxReason.UNKNOWN_TUNNEL:
                raise LinkRefused(reason)
            return False
        self._stream.attach(link.outbox, self._id)
        self._stream.resume(*mux.read_window(answer.body))
        RESUMED.labels("resumed").inc()
        self._close_if_over()
        return True

    def _is_over(self) -> bool:
        return self._over

    def _holds(self, link: RelayLink) -> bool:
        """Whether the path stands that was just answered on: it may be lost again, right behind the answer."""
        return self._link is link

    async def _ask(self, link: RelayLink) -> Frame:
        stream = self._stream
        self._link, self._id = link, link.add(self)
        self._resuming = asyncio.get_running_loop().create_future()
        frame = mux.resume_frame(self._id, stream.token, stream.received, stream.told_limit)
        link.outbox.send(mux.for_device(frame, self._device_id))
        try:
            async with asyncio.timeout(RESUME_ANSWER_TIMEOUT_S):
                return await self._resuming
        finally:
            self._resuming = None

    # sink

    def deliver(self, data: Bytes) -> None:
        if self._tunnel is None:
            self._early.append(data)
        else:
            self._tunnel.to_customer(data)

    def ended(self) -> None:
        if self._tunnel is None:
            self._eof_early = True
        else:
            self._tunnel.exit_ended()

    def pause_source(self) -> None:
        if self._tunnel is not None:
            self._tunnel.exit_full()

    def resume_source(self) -> None:
        if self._tunnel is not None:
            self._tunnel.exit_drained()

    # path

    def send(self, data: Bytes) -> None:
        self._stream.write(data)

    def send_eof(self) -> None:
        self._stream.write_eof()

    def hold(self) -> None:
        self._stream.stall()

    def release(self) -> None:
        self._stream.drained()

    def finish(self) -> None:
        """What was sent still reaches the target, over another path if need be, within a bound."""
        self._finishing = True
        self._stream.stall()  # nobody wants what may still come: it is granted nothing
        self._stream.write_eof()
        if self._stream.delivered and not self._stream.eof_received:
            self.cut()
            return
        self._close_if_over()
        if not self._over:
            self._late = asyncio.get_running_loop().call_later(FINISH_WITHIN_S, self.cut)

    def cut(self) -> None:
        if not self._over:
            self._say(mux.reset_frame(self._id, MuxReason.CUSTOMER_RESET))
            self._leave()

    # ends

    def _close_if_over(self) -> None:
        if self._stream.over and not self._over:
            self._say(mux.header(MuxType.CLOSE, self._id))
            self._leave()

    def _broke(self, *, by_exit: bool = True) -> None:
        if self._over:
            return
        self._say(mux.reset_frame(self._id, MuxReason.CUSTOMER_RESET))
        self._leave()
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(LinkLost("reset before the tunnel opened"))
        if self._tunnel is not None:
            self._tunnel.cut(exit_broke=by_exit)

    def _say(self, frame: bytes) -> None:
        if self._link is not None:
            self._link.outbox.send(frame)

    def _leave_link(self) -> None:
        if self._link is not None:
            self._link.forget(self._id)
            self._link = None

    def _leave(self) -> None:
        self._over = True
        if self._late is not None:
            self._late.cancel()
        self._stream.close()
        self._leave_link()
