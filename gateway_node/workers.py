"""One process per core: workers share the customers' ports and have a gateway id and a private port of their own.

The first process only watches. When a worker dies unasked the others are drained and the node ends with a failure, so that
whatever runs it starts it whole again.
"""

import os
import signal
from collections.abc import Callable
from typing import Final

from gateway_node.settings import GatewaySettings
from shared.runtime.settings import listen_address

FAILED: Final = 1


def worker_settings(settings: GatewaySettings, number: int) -> GatewaySettings:
    """Settings of one worker: the first keeps the id and the port, the others count on from there."""
    if number == 0:
        return settings
    host, port = listen_address(settings.gateway_private_listen)
    changed = {
        "gateway_id": f"{settings.gateway_id}-{number + 1}",
        "gateway_private_listen": f"{host}:{port + number}",
    }
    return settings.model_copy(update=changed)


def run_workers(settings: GatewaySettings, run: Callable[[GatewaySettings], None]) -> None:
    """Run one worker in this process, or several in their own. Exits when all have ended."""
    if settings.gateway_workers == 1:
        run(settings)
        return
    children: set[int] = set()
    asked = False

    def pass_on(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        for child in children:
            os.kill(child, number)

    for number in range(settings.gateway_workers):
        child = os.fork()
        if child == 0:
            run(worker_settings(settings, number))
            os._exit(0)
        children.add(child)
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    failed = False
    while children:
        child, status = os.wait()
        children.discard(child)
        if status != 0 or not asked:
            failed = True
            for other in children:
                os.kill(other, signal.SIGTERM)
    raise SystemExit(FAILED if failed else 0)
