"""`psx-peer` and `psx-peer fleet`: run the reference peer, or several of them, until Ctrl-C."""

import asyncio
import http.client
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from psx_peer.client import Peer
from psx_peer.consent import WITHDRAWN_TEXT
from psx_peer.identity import ApiRefused, ConsentWithdrawn, IdentityKeeper
from psx_peer.options import TERMS_TEXT, Options, read_options
from psx_peer.state import InUse, hold, release

log = logging.getLogger("psx_peer")


def stop(peers: list[Peer]) -> None:
    """As the owner wants it."""
    for peer in peers:
        peer.stop()


async def serve(devices: list[Options]) -> None:
    """Run peers that SIGINT and SIGTERM stop. The first one that the API refuses stops them all.

    One whose owner withdrew ends alone; ConsentWithdrawn is raised when none is left.
    """
    peers = [Peer(options) for options in devices]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, peers)
    running = [loop.create_task(_share(peer, options)) for peer, options in zip(peers, devices, strict=True)]
    try:
        withdrawn = [refusal for refusal in await asyncio.gather(*running) if refusal]
    finally:
        stop(peers)
        await asyncio.gather(*running, return_exceptions=True)
    if len(withdrawn) == len(peers):
        raise withdrawn[0]


async def _share(peer: Peer, options: Options) -> ConsentWithdrawn | None:
    try:
        await peer.run()
    except ConsentWithdrawn as refusal:
        log.warning("%s: %s", options.name, WITHDRAWN_TEXT)
        return refusal
    return None


def withdraw(devices: list[Options]) -> int:
    """Take the agreement back for each of them, whatever became of the others; returns the worst exit status."""
    return max(_withdraw_one(options) for options in devices)


def _withdraw_one(options: Options) -> int:
    try:
        IdentityKeeper(options).withdraw()
    except KeyError:
        sys.stderr.write(f"psx-peer: {options.state_file} holds no registered device of this name\n")
        return 2
    except (ApiRefused, OSError, http.client.HTTPException) as fault:
        sys.stderr.write(f"psx-peer: {options.name}: not withdrawn: {fault}\n")
        return 1
    sys.stdout.write(f"{options.name}: withdrawn, nothing of it is shared any more\n")
    return 0


def main() -> int:
    """Entry point; returns the exit status."""
    options = read_options()
    devices = [options] if options.instances == 1 and not _is_fleet() else _fleet(options)
    if options.dry_run:
        sys.stdout.write(TERMS_TEXT)
        plans = [_plan(device) for device in devices]
        sys.stdout.write(json.dumps(plans if options.instances > 1 else plans[0], indent=2) + "\n")
        return 0
    if options.withdraw:
        return withdraw(devices)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    locks = []
    try:
        locks += [hold(device.state_file) for device in devices if device.keep_state]
        _run(serve(devices))
    except ConsentWithdrawn:
        sys.stderr.write(f"psx-peer: {WITHDRAWN_TEXT}\n")
        return 2
    except ApiRefused as refusal:
        sys.stderr.write(f"psx-peer: the API refused this device: {refusal}\n")
        return 1
    except (InUse, OSError) as fault:
        sys.stderr.write(f"psx-peer: {fault}\n")
        return 1
    finally:
        for lock in locks:
            release(lock)
    return 0


def _is_fleet() -> bool:
    return sys.argv[1:2] == ["fleet"]


def _fleet(options: Options) -> list[Options]:
    return [options.instance(number + 1) for number in range(options.instances)]


def _plan(options: Options) -> dict[str, Any]:
    """What a dry run shows; no secret."""
    return {
        "name": options.name,
        "api": options.api,
        "connections": options.connections,
        "protocol": options.protocol,
        "state": str(options.state_file),
        "relay": options.relay,
        "limitMbit": options.limit_mbit,
        "termsAccepted": options.consent.terms_version,
    }


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
