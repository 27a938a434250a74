"""`python -m psx_peer`: run the reference peer until Ctrl-C."""

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from psx_peer.client import Peer
from psx_peer.identity import ApiRefused
from psx_peer.options import Options, read_options


async def serve(options: Options) -> None:
    """Run a peer that SIGINT and SIGTERM stop."""
    peer = Peer(options)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, peer.stop)
    await peer.run()


def main() -> int:
    """Entry point; returns the exit status."""
    options = read_options()
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        _run(serve(options))
    except ApiRefused as refusal:
        sys.stderr.write(f"psx-peer: the API refused this device: {refusal}\n")
        return 1
    return 0


def _run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop where it is installed: half the CPU per byte."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


if __name__ == "__main__":
    sys.exit(main())
