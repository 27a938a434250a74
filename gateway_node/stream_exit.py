"""The gateway's end of a tunnel of binary-v2, over a link and over lost paths.

A tunnel whose path is lost (the peer's socket, the relay, the link) waits, looks its device up in Redis, and resumes
where the device is now; the customer sees a pause. After `RESUME_TRY_S` it is cut, after `GONE_TRY_S` when the peer's
socket ended without a word, at once when the peer has stopped or no longer knows it. An end's rules: `wire/stream.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter

from gateway_node.tunnel import Place, Tunnel
from shared.kernel.ids import DeviceId
from shared.runtime.dynamo import StoreUnavailable
from shared.wire import mux
from shared.wire.mux import Bytes, Frame, MuxReason, MuxType
from shared.wire.stream import FlowViolation, SentTooOften, Stream, WindowRoom

if TYPE_CHECKING:
    from gateway_node.links import RelayLink, RelayLinks

RESUME_TRY_S: Final = 15.0
GONE_TRY_S: Final = 5.0
"""A peer that lives dials again within half a second: the rest is for slow handshakes. Most that end so are dead, and their
customers had better be told.
"""
REPORT_AFTER_S: Final = 1.0
"""A path that is back sooner was a handover, and nothing to probe for."""
RESUME_POLL_MIN_S: Final = 0.05
RESUME_POLL_MAX_S: Final = 1.0
RESUME_ANSWER_TIMEOUT_S: Final = 5.0
FINISH_WITHIN_S: Final = 60.0
LIGHT_BYTES: Final = 4 * 1024
LIGHT_LOOK_S: Final = 5.0
"""What is on its way at the end is no more than this for most tunnels: such a one gives its place back without waiting for
the peer's word, and is looked at sooner because it counts nowhere.
"""
FINISH_LOOK_S: Final = 30.0
"""How long a peer may take what was sent before the tunnel ended; whose target takes nothing from one look to the next is
not waited for: nobody is there for its answer. (Peers acknowledge each half of a window, 128 KB and more, and the end.)
"""

_NOT_THE_EXITS: Final = frozenset({MuxReason.TARGET_RESET, MuxReason.TIMEOUT, MuxReason.OVERLOADED})
"""Of an open tunnel: its target broke it off, nothing had passed for so long that the peer gave it up, or a relay did."""

RESUMED = Counter("psx_gateway_resumed", "Tunnels that lost their path, by outcome", ["outcome"])

log = logging.getLogger("psx.gateway")


class LinkRefused(Exception):
    """A tunnel was not opened; `detail` is the other end's word for it."""

    def __init__(self, reason: MuxReason, detail: str = "") -> None:
        super().__init__(detail or reason.name.lower())
        self.reason = reason


class LinkLost(ConnectionError):
    """There is no link to that relay any more."""


class RelayAway(ConnectionError):
    """No link to a relay was made: nothing is known of its devices."""


class StreamExit:
    """The gateway's end of one tunnel of binary-v2."""

    carries_eof: Final = True

    def __init__(self, links: RelayLinks, device_id: DeviceId, windows: WindowRoom) -> None:
        self._links = links
        self._device_id = device_id
        self.place = Place()
        self._stream = Stream(self, os.urandom(mux.TOKEN_BYTES), windows)
        self._link: RelayLink | None = None
        self._id = 0
        self._opening: asyncio.Future[None] | None = None
        self._resuming: asyncio.Future[Frame] | None = None
        self._refused = MuxReason.UNKNOWN
        self._tunnel: Tunnel | None = None
        self._early: list[Bytes] = []
        self._eof_early = False
        self._finishing = False
        self._taken = 0
        self._late: asyncio.TimerHandle | None = None
        self._over = self._forgotten = False

    async def open(self, link: RelayLink, host: str, port: int) -> None:
        """Raises LinkRefused, or LinkLost when the path goes before the answer."""
        self._link, self._id = link, link.add(self)
        self._opening = asyncio.get_running_loop().create_future()
        frame = mux.open_frame(self._id, self._stream.token, self._stream.told_limit, host, port)
        link.outbox.send(mux.for_device(frame, self._device_id))
        await self._opening

    def attach(self, tunnel: Tunnel) -> None:
        """The tunnel stands: what came early goes first."""
        self._tunnel = tunnel
        early, self._early = self._early, []
        for data in early:
            tunnel.to_customer(data)
        if self._stream.held:
            tunnel.exit_full()
        if self._eof_early:
            tunnel.exit_ended()
        if self._over:  # the target reset it in the same breath as it accepted, or so the exit says
            tunnel.exit_reset(by_target=True)

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
                received, limit = mux.read_window(frame.body)
                self._stream.on_window(received, limit)
                self._taken = max(self._taken, received)
                self._close_if_over()
                if self._finishing and self._stream.delivered:
                    self.cut()
                elif self._finishing:
                    self._leave_if_light()
            case MuxType.EOF if opened:
                self._stream.on_eof(closes=True)
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
        if reason is MuxReason.PATH_LOST or reason is MuxReason.PEER_GONE:
            self.path_lost(peer_gone=reason is MuxReason.PEER_GONE)
        else:
            self._broke(by_exit=reason not in _NOT_THE_EXITS)

    def path_lost(self, *, peer_gone: bool = False) -> None:
        """The way to the peer is gone, or so it seems the peer itself; an open tunnel looks for another one."""
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
            self._links.resume(self, GONE_TRY_S if peer_gone else RESUME_TRY_S)

    # resumption

    async def resume_somewhere(self, within_s: float) -> None:
        """Try where the device is, until it answers or time is over. The customer's bytes wait meanwhile."""
        report = asyncio.get_running_loop().call_later(REPORT_AFTER_S, self._links.report, self._device_id)
        try:
            async with asyncio.timeout(within_s):
                wait_s = RESUME_POLL_MIN_S
                while not self._over and not await self._resume_once():
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, RESUME_POLL_MAX_S)
        except (TimeoutError, LinkRefused, FlowViolation, mux.MalformedMux) as fault:
            RESUMED.labels("given_up").inc()
            log.info("not resumed", extra={"device": self._device_id, "reason": str(fault)})
            by_others = self._refused in _NOT_THE_EXITS or isinstance(fault, SentTooOften)
            self._broke(by_exit=not by_others)
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
            self._refused = mux.read_reason(answer.body)
            if self._refused is MuxReason.UNKNOWN_TUNNEL:
                raise LinkRefused(self._refused)
            return False
        self._refused = MuxReason.UNKNOWN
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

    def try_again(self) -> None:
        self._stream.try_again()

    def forget(self) -> None:
        self._forgotten = True
        self._give_back_windows()

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
            self._leave_if_light()
            self._wait_for_last_bytes(asyncio.get_running_loop().time() + FINISH_WITHIN_S)

    @property
    def _is_light(self) -> bool:
        return self._stream.all_sent and self._stream.unacked_bytes <= LIGHT_BYTES

    def _leave_if_light(self) -> None:
        if self._is_light:
            self.place.leave()

    def _wait_for_last_bytes(self, until_s: float, taken_before: int = -1) -> None:
        """A path that is lost meanwhile has bounds of its own."""
        loop, taken = asyncio.get_running_loop(), self._taken if self._stream.attached else -1
        if loop.time() >= until_s or taken == taken_before >= 0:
            self.cut()
        else:
            look_s = LIGHT_LOOK_S if self._is_light else FINISH_LOOK_S
            self._late = loop.call_later(look_s, self._wait_for_last_bytes, until_s, taken)

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
        tunnel = self._tunnel
        self._say(mux.reset_frame(self._id, MuxReason.CUSTOMER_RESET))
        self._leave()
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(LinkRefused(MuxReason.UNKNOWN, "reset before the tunnel opened"))
        if tunnel is not None:
            tunnel.exit_reset(by_target=not by_exit)

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
        self._stream.end()
        self._give_back_windows()
        self._leave_link()
        self.place.leave()

    def _give_back_windows(self) -> None:
        """Not while what they let in waits for the customer."""
        if self._over and (self._forgotten or self._tunnel is None):
            self._stream.close()
            self._tunnel = None  # no cycle is left for the collector
