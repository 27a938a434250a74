"""Reaching an exit: a peer through its relay's mesh listener, a modem through its own port. Exit faults and target faults
are told apart here, because only the former count against an exit.
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway_node.refusals import RefusedRequest
from gateway_node.tunnel import ExitSide, reset
from shared.access.secrets import SealBroken, SecretBox
from shared.kernel.codes import Pool, Refusal
from shared.pool.model import Acquired
from shared.wire.http1 import ResponseHead, basic_header, connect_head

EXIT_CONNECT_TIMEOUT_S: Final = 5.0
EXIT_ANSWER_TIMEOUT_S: Final = 12.0


class Fault(StrEnum):
    """Whose fault a failed open is."""

    EXIT = "exit"
    EITHER = "exit_or_target"


@dataclass(frozen=True, slots=True)
class ExitFailed:
    """This exit did not open the tunnel: another one may."""

    fault: Fault
    reason: str


_TARGET_REASONS: Final = {
    "connection_refused": RefusedRequest(Refusal.TARGET_REFUSED, "the target refused the connection"),
    "dns_failed": RefusedRequest(Refusal.TARGET_DNS, "the target's name does not resolve"),
    "timeout": RefusedRequest(Refusal.TARGET_TIMEOUT, "the target did not answer in time"),
}


class ExitDialer:
    """Opens tunnels through acquired endpoints."""

    def __init__(self, mesh_token: str, box: SecretBox) -> None:
        self._mesh_token = mesh_token
        self._box = box

    async def open(
        self, acquired: Acquired, address: str, port: int, request_id: str
    ) -> ExitSide | ExitFailed | RefusedRequest:
        """A connected exit whose next bytes are the target's. Cancelling closes what was opened."""
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
                opened = self._box.open(endpoint.modem_credentials_sealed, f"modem#{endpoint.endpoint_id}")
            except SealBroken:
                return ExitFailed(Fault.EXIT, "modem_credentials_unreadable")
            username, _, password = opened.partition(":")
            headers = [("Proxy-Authorization", basic_header(username, password))]
        side = ExitSide(connect_head(address, port, headers))
        try:
            await self._connect(side, host, exit_port)
            answer = await asyncio.wait_for(side.answer, EXIT_ANSWER_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            reset(side.transport)
            return ExitFailed(Fault.EXIT, f"exit_{type(error).__name__.lower()}")
        except asyncio.CancelledError:
            reset(side.transport)
            raise
        if answer.status // 100 == 2:
            return side
        reset(side.transport)
        return _refused(answer, endpoint.pool)

    async def _connect(self, side: ExitSide, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.create_connection(lambda: side, host, port), EXIT_CONNECT_TIMEOUT_S)


def _refused(answer: ResponseHead, pool: Pool) -> ExitFailed | RefusedRequest:
    if pool is Pool.MBL:
        # A modem's proxy says 502 or 504 for a dead target and for a dead uplink alike.
        fault = Fault.EITHER if answer.status in {502, 503, 504} else Fault.EXIT
        return ExitFailed(fault, f"modem_{answer.status}")
    reason = answer.header("x-psx-reason") or f"relay_{answer.status}"
    if answer.status in {502, 504} and reason in _TARGET_REASONS:
        return _TARGET_REASONS[reason]
    if answer.status == 502 and reason != "peer_gone":
        return ExitFailed(Fault.EITHER, reason)
    return ExitFailed(Fault.EXIT, reason)
