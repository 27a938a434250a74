"""Reaching an exit: a peer of v2 over a link, a peer of v1 through its relay's CONNECT, a modem through its own port.

Exit faults and target faults are told apart here, because only the former count against an exit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway_node.exits import ConnectExit
from gateway_node.links import RelayLinks
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Target
from gateway_node.splice import Splices
from gateway_node.stream_exit import LinkRefused, RelayAway
from gateway_node.tunnel import ExitPath
from shared.access.secrets import SealBroken, SecretBox
from shared.kernel.codes import Pool, Refusal
from shared.kernel.ids import DeviceId
from shared.pool.model import Acquired, Endpoint
from shared.runtime.deadlines import Deadlines
from shared.wire import mux
from shared.wire.http1 import ResponseHead, basic_header, connect_head
from shared.wire.mux import MuxReason

EXIT_CONNECT_TIMEOUT_S: Final = 5.0
EXIT_ANSWER_TIMEOUT_S: Final = 12.0
OPENED_KEPT: Final = 10_000


class Fault(StrEnum):
    """Whose fault a failed open is."""

    EXIT = "exit"
    EITHER = "exit_or_target"
    RELAY = "relay"


@dataclass(frozen=True, slots=True)
class ExitFailed:
    """This exit did not open the tunnel: another one may."""

    fault: Fault
    reason: str
    moving: bool = False
    """The device is on its way to another relay, or full: it will be back in a moment."""


_TARGET_REASONS: Final = {
    "connection_refused": RefusedRequest(Refusal.TARGET_REFUSED, "the target refused the connection"),
    "dns_failed": RefusedRequest(Refusal.TARGET_DNS, "the target's name does not resolve"),
    "timeout": RefusedRequest(Refusal.TARGET_TIMEOUT, "the target did not answer in time"),
}


_STREAM_REASONS: Final = {
    MuxReason.CONNECTION_REFUSED: _TARGET_REASONS["connection_refused"],
    MuxReason.DNS_FAILED: _TARGET_REASONS["dns_failed"],
    MuxReason.TIMEOUT: _TARGET_REASONS["timeout"],
    MuxReason.EGRESS_POLICY: RefusedRequest(
        Refusal.SSRF_BLOCKED, "where the exit is, the target is in a private, local or reserved network"
    ),
}


_FAULTS: Final = {
    MuxReason.UNREACHABLE: Fault.EITHER,
    MuxReason.DRAINING: Fault.RELAY,
    MuxReason.OVERLOADED: Fault.RELAY,
    MuxReason.TOO_MANY_TUNNELS: Fault.RELAY,
}
"""Whose fault a refusal is that is not the exit's; no peer can say what relays say of themselves (`relay_node/forward`)."""


class ExitDialer:
    """Opens tunnels through acquired endpoints."""

    def __init__(self, mesh_token: str, box: SecretBox, links: RelayLinks) -> None:
        self._mesh_token = mesh_token
        self._box = box
        self._links = links
        self._opened: dict[str, str] = {}
        self._deadlines = Deadlines()
        self.splices = Splices()

    @property
    def away(self) -> Sequence[str]:
        """Relays whose exits had better not be chosen now."""
        return self._links.away

    async def open(
        self, acquired: Acquired, target: Target, request_id: str, owner: str
    ) -> ExitPath | ExitFailed | RefusedRequest:
        """A connected exit whose next bytes are the target's. Cancelling closes what was opened.

        `owner`: whose windows grow together.
        """
        if acquired.protocol == mux.PROTOCOL:
            return await self._stream(acquired, target, owner)
        endpoint = acquired.endpoint
        if endpoint.pool is Pool.PEER:
            host, exit_port = acquired.mesh_host, acquired.mesh_port
            headers = [
                ("X-PSX-Mesh-Token", self._mesh_token),
                ("X-PSX-Device", endpoint.endpoint_id),
                ("X-Request-ID", request_id),
            ]
        else:
            host, exit_port = endpoint.modem_host, endpoint.modem_port
            try:
                headers = [("Proxy-Authorization", self._modem_header(endpoint))]
            except SealBroken:
                return ExitFailed(Fault.EXIT, "modem_credentials_unreadable")
        request = connect_head(target.address, target.port, headers)
        exit_ = ConnectExit(request, self.splices, carries_eof=endpoint.pool is Pool.MBL)
        loop = asyncio.get_running_loop()
        asked = False
        try:
            with self._deadlines.within(EXIT_CONNECT_TIMEOUT_S) as bound:
                await loop.create_connection(lambda: exit_, host, exit_port)
                bound.reschedule(EXIT_ANSWER_TIMEOUT_S)
                asked = True
                answer = await exit_.answer
        except (OSError, TimeoutError) as error:
            exit_.cut()
            # a modem's proxy may wait for a dead target for longer than we wait for the proxy
            waits = asked and isinstance(error, TimeoutError) and endpoint.pool is Pool.MBL
            lost = endpoint.pool is Pool.PEER and not asked  # its relay is away: it dials another one now
            fault = Fault.EITHER if waits else Fault.RELAY if lost else Fault.EXIT
            return ExitFailed(fault, f"exit_{type(error).__name__.lower()}", moving=lost)
        except asyncio.CancelledError:
            exit_.cut()
            raise
        if answer.status // 100 == 2:
            return exit_
        exit_.cut()
        return _refused(answer, endpoint.pool)

    def _modem_header(self, endpoint: Endpoint) -> str:
        """The modem's own credentials; opened once, because each opening costs as much as a dial. Raises SealBroken."""
        sealed = endpoint.modem_credentials_sealed
        header = self._opened.get(sealed)
        if header is None:
            username, _, password = self._box.open(sealed, f"modem#{endpoint.endpoint_id}").partition(":")
            header = basic_header(username, password)
            if len(self._opened) >= OPENED_KEPT:
                self._opened.clear()
            self._opened[sealed] = header
        return header

    async def _stream(
        self, acquired: Acquired, target: Target, owner: str
    ) -> ExitPath | ExitFailed | RefusedRequest:
        """Peers of v2 check what they dial, so they are told the name and find the address that is near them."""
        device_id, mesh = DeviceId(acquired.endpoint.endpoint_id), (acquired.mesh_host, acquired.mesh_port)
        try:
            with self._deadlines.within(EXIT_ANSWER_TIMEOUT_S):
                return await self._links.open(device_id, mesh, target.host, target.port, owner)
        except LinkRefused as refused:
            known = _STREAM_REASONS.get(refused.reason)
            if known is not None:
                return known
            fault = _FAULTS.get(refused.reason, Fault.EXIT)
            moving = fault is Fault.RELAY or refused.reason is MuxReason.UNKNOWN_DEVICE
            return ExitFailed(fault, refused.reason.name.lower(), moving=moving)
        except RelayAway:
            return ExitFailed(Fault.RELAY, "relay_away", moving=True)
        except (OSError, TimeoutError) as error:
            moving = isinstance(error, ConnectionError)
            return ExitFailed(Fault.EXIT, f"exit_{type(error).__name__.lower()}", moving=moving)


def _refused(answer: ResponseHead, pool: Pool) -> ExitFailed | RefusedRequest:
    if pool is Pool.MBL:
        # A modem's proxy says 502 or 504 for a dead target and for a dead uplink alike, and 403 for a port that it forbids.
        fault = Fault.EXIT if answer.status == 407 else Fault.EITHER
        return ExitFailed(fault, f"modem_{answer.status}")
    reason = answer.header("x-psx-reason") or f"relay_{answer.status}"
    if reason in {"draining", "too_many_tunnels"}:
        return ExitFailed(Fault.RELAY, reason, moving=True)
    if reason == "unknown_device":
        return ExitFailed(Fault.EXIT, reason, moving=True)
    if answer.status in {502, 504} and reason in _TARGET_REASONS:
        return _TARGET_REASONS[reason]
    if answer.status == 502 and reason != "peer_gone":
        return ExitFailed(Fault.EITHER, reason)
    return ExitFailed(Fault.EXIT, reason)
