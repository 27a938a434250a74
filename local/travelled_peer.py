"""`python -m local.travelled_peer RELAY_URL …`: the reference peer, after a journey since it learned its relay.

It dials the one of where it was, and follows when that relay sends it on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from psx_peer.client import Peer
from psx_peer.options import read_options
from psx_peer.tunnels import DirectDialer
from psx_peer.wire import egress


class TravelledPeer(Peer):
    """Begins at a relay of somewhere else."""

    def begin_at(self, relay: str) -> None:
        """Where it believes that its relay is."""
        self._relay = relay


async def main() -> None:
    """Run until stopped."""
    relay = sys.argv.pop(1)
    options = read_options()
    policy = egress.EgressPolicy(lab_allow=options.lab_allow)
    peer = TravelledPeer(options, DirectDialer(policy, options.bind, options.lab_hosts))
    peer.begin_at(relay)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, peer.stop)
    await peer.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(main())
