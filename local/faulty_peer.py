"""`python -m local.faulty_peer FAULT …`: the reference peer with a dialer that is broken in one of the ways real ones are.

`tls_drop` accepts tunnels and dies at the first bytes; `slow` carries 64 KB/s; `corrupt` alters what comes back.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Final, cast

from psx_peer.client import Peer
from psx_peer.options import read_options
from psx_peer.tunnels import DirectDialer
from psx_peer.wire import egress

SLOW_BYTES_PER_S: Final = 64 * 1024
SLOW_PIECE_BYTES: Final = 4 * 1024
ALTER_AFTER_BYTES: Final = 16 * 1024


class Between(asyncio.Protocol):
    """Stands between the target and the tunnel."""

    def __init__(self, side: asyncio.Protocol, fault: str) -> None:
        self._side = side
        self._fault = fault
        self._passed = 0
        self._transport: asyncio.Transport | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._fault == "tls_drop" and self._transport is not None:
            self._transport.abort()
        elif self._fault == "slow" and self._transport is not None:
            self._transport.pause_reading()
            self._drip(data)
        elif self._fault == "corrupt":
            self._passed += len(data)
            late = self._passed > ALTER_AFTER_BYTES
            self._side.data_received(bytes((data[0] ^ 0xFF, *data[1:])) if late else data)

    def _drip(self, data: bytes) -> None:
        """Pass a piece now and the rest later; read on when all has passed."""
        if self._lost:
            return
        self._side.data_received(data[:SLOW_PIECE_BYTES])
        rest = data[SLOW_PIECE_BYTES:]
        if rest:
            asyncio.get_running_loop().call_later(SLOW_PIECE_BYTES / SLOW_BYTES_PER_S, self._drip, rest)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool | None:
        return self._side.eof_received()

    def pause_writing(self) -> None:
        self._side.pause_writing()

    def resume_writing(self) -> None:
        self._side.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._side.connection_lost(exc)


class FaultyDialer(DirectDialer):
    """Dials as the policy allows, then misbehaves."""

    fault = ""

    async def __call__(self, side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        return await super().__call__(Between(side, self.fault), host, port)


async def main() -> None:
    """Run until stopped."""
    fault = sys.argv.pop(1)
    options = read_options()
    policy = egress.EgressPolicy(lab_allow=options.lab_allow)
    dialer = FaultyDialer(policy, options.bind, options.lab_hosts)
    dialer.fault = fault
    peer = Peer(options, dialer)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, peer.stop)
    await peer.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(main())
