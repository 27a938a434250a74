"""`python -m tests.conformance.public_home FOLDER SDK`, in a namespace of its own: a home whose addresses are public.

Services that its firewall would hide listen there, and a relay asks the device for each of them. Prints what came of it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from local.sdks import Sdk
from shared.wire import mux
from tests.conformance.device import Rig
from tests.conformance.relay import WAIT_S, within
from tests.conformance.targets import Target

INTERFACE_ADDRESSES: Final = ("91.198.174.192", "2a02:8108:1:2::5")
NEIGHBOUR: Final = "91.198.174.7"
PREFIXES: Final = (24, 64)
CLOSED_PORT: Final = 9


def _furnish() -> None:
    for address, prefix in zip(INTERFACE_ADDRESSES, PREFIXES, strict=True):
        subprocess.run(["ip", "address", "add", f"{address}/{prefix}", "dev", "lo", "nodad"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


async def _asked(rig: Rig) -> dict[str, str]:
    socket, found = await rig.relay.socket(), {}
    services = [Target(address) for address in INTERFACE_ADDRESSES]
    for service in services:
        await service.start()
    doors = [(service.host, service.port) for service in services]
    for tunnel, (host, port) in enumerate([*doors, (NEIGHBOUR, CLOSED_PORT)], 1):
        socket.send(socket.open_frame(tunnel, host, port))
        frame = await within(socket.frames.setdefault(tunnel, asyncio.Queue()).get(), host, WAIT_S)
        refused = frame.type is mux.MuxType.REFUSED
        found[host] = mux.read_reason(frame.body).name if refused else frame.type.name
    for service in services:
        await service.stop()
    return found


async def main(folder: Path, sdk: Sdk) -> None:
    """One device, asked for each door of its own home."""
    await asyncio.to_thread(_furnish)
    rig = Rig(sdk, folder)
    await rig.start()
    try:
        await rig.device()
        sys.stdout.write(json.dumps(await _asked(rig)))
    finally:
        await rig.stop()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    asyncio.run(main(Path(sys.argv[1]), Sdk(given["name"], tuple(given["command"]), given["environment"])))
