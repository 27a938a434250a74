"""`python -m infra.nodes.lifecycle`: tells AWS that this node serves, and leaves in order when it is to go.

Auto scaling says through the instance's metadata that it wants to terminate it, and waits (the hook in `nodes.yml`). Then
the programs are stopped, which is their drain; a gateway that did not end well is started and stopped again, because its
journal may hold counts and goes with the machine; the node is removed from the mesh, when nothing runs over it any more;
and AWS is told to go on. If anything fails, AWS goes on by itself when the hook's time is over.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from infra.mesh.model import Role
from infra.mesh.table import read_node, remove
from infra.nodes.boot import READY, UNITS, Metadata
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable, SyncDynamo
from shared.runtime.log import configure

POLL_S: Final = 5.0
HEALTH_TIMEOUT_S: Final = 3
READY_TIMEOUT_S: Final = 600.0
REPEAT_READY_S: Final = 20.0
LEAVE_MAX_S: Final = 840.0
"""From the beginning of the drain; after it no gateway is started again. Less than the hook's `HeartbeatTimeout`."""
LEAVING: Final = "Terminated"
COUNTS: Final = "psx-gateway"
DRAINED_LAST: Final = ("psx-mesh", "psx-firewall", "psx-lifecycle")
HOOK: Final = "psx-drain"

log = logging.getLogger("psx.lifecycle")


def served_by(role: str) -> tuple[str, ...]:
    """The units whose stop is a drain, in the order in which they are stopped."""
    return tuple(name for name in reversed(UNITS[role]) if name not in DRAINED_LAST)


def leave(role: str, node_id: str, table: str, dynamo: RunsDynamo, stop: Callable[[str], None]) -> None:
    """Drain, then be no part of the mesh any more, if it was one. Raises StoreUnavailable."""
    for unit in served_by(role):
        log.info("draining", extra={"unit": unit})
        stop(unit)
    if "psx-mesh" not in UNITS[role]:
        return
    node = dynamo.run(read_node(table, Role(role), node_id))
    if node is not None and not node.removed:
        dynamo.run(remove(table, node, now_ms()))
    stop("psx-mesh")
    log.info("left", extra={"node": node_id})


class Units(Protocol):
    """systemd, as far as leaving needs it. `ended_well`: the unit's last end was neither a failure nor forced on it."""

    def start(self, unit: str) -> None: ...
    def stop(self, unit: str) -> None: ...
    def ended_well(self, unit: str) -> bool: ...


def stop_flushed(
    units: Units,
    unit: str,
    serves: Callable[[], bool],
    give_up_s: float,
    now_s: Callable[[], float] = time.monotonic,
) -> None:
    """Stop a unit; the one that counts is started and stopped until it has written its counts, up to a time of `now_s`."""
    units.stop(unit)
    written = unit != COUNTS or units.ended_well(unit)
    while not written and now_s() < give_up_s:
        log.warning("counts are not written yet, once more", extra={"unit": unit})
        units.start(unit)
        served = serves()  # one that was stopped before it began ends well too
        units.stop(unit)
        written = served and units.ended_well(unit)
    if not written:
        log.error("counts that were not written are lost with this machine", extra={"unit": unit})


def is_healthy(url: str) -> bool:
    """Whether the node's own program says that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=HEALTH_TIMEOUT_S) as answer:  # noqa: S310 - this machine's own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until(
    holds: Callable[[], bool], timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Look every few seconds; answers whether it came to hold in time."""
    for _ in range(max(int(timeout_s / POLL_S), 1)):
        if holds():
            return True
        sleep(POLL_S)
    return False


def is_leaving(metadata: Callable[[], Metadata] = Metadata) -> bool:
    """Whether auto scaling wants this instance to go; a silent metadata service wants nothing."""
    try:
        return metadata().get("autoscaling/target-lifecycle-state") == LEAVING
    except (urllib.error.URLError, OSError):
        return False


def signal_ready(client: Any, environment: Mapping[str, str], healthy: bool) -> None:
    """Tell the stack's update that this instance serves, or that it does not: then the update is taken back."""
    client.signal_resource(
        StackName=environment["PSX_NODE_STACK"],
        LogicalResourceId=environment["PSX_NODE_GROUP"],
        UniqueId=environment["PSX_NODE_INSTANCE"],
        Status="SUCCESS" if healthy else "FAILURE",
    )


def complete_leaving(client: Any, environment: Mapping[str, str]) -> None:
    """Tell auto scaling that it need not wait any longer."""
    client.complete_lifecycle_action(
        LifecycleHookName=HOOK,
        AutoScalingGroupName=environment["PSX_NODE_GROUP_NAME"],
        InstanceId=environment["PSX_NODE_INSTANCE"],
        LifecycleActionResult="CONTINUE",
    )


class Systemd:
    """The machine's own."""

    def start(self, unit: str) -> None:
        """Returns when it runs, or does not."""
        subprocess.run(["systemctl", "start", unit], check=False)

    def stop(self, unit: str) -> None:
        """Returns when it has ended."""
        subprocess.run(["systemctl", "stop", unit], check=False)

    def ended_well(self, unit: str) -> bool:
        """What systemd says of the last end."""
        asked = ["systemctl", "show", "--property=Result", "--value", unit]
        said = subprocess.run(asked, check=False, stdout=subprocess.PIPE)
        return bool(said.stdout.strip() == b"success")


def main() -> int:
    """Until this node has left; answers the exit status."""
    import boto3  # noqa: PLC0415 - the rules above are read without it
    import botocore.exceptions as failures  # noqa: PLC0415

    configure("lifecycle")
    environment = os.environ
    role, node_id, region = (environment[f"PSX_NODE_{name}"] for name in ("ROLE", "INSTANCE", "REGION"))
    wait_until(lambda: is_healthy(READY[role]) or is_leaving(), READY_TIMEOUT_S)
    healthy = is_healthy(READY[role])
    log.info("node serves" if healthy else "node does not serve", extra={"node": node_id})
    try:
        signal_ready(boto3.client("cloudformation", region_name=region), environment, healthy)
    except failures.ClientError as error:  # no update waits for it: the usual case when the group grows
        log.info("no update waits", extra={"code": error.response["Error"]["Code"]})
    while not wait_until(is_leaving, READY_TIMEOUT_S):
        pass  # as long as the machine serves: asked every few seconds, never twice at once
    units, give_up_s = Systemd(), time.monotonic() + LEAVE_MAX_S

    def stop(unit: str) -> None:
        stop_flushed(
            units, unit, lambda: wait_until(lambda: is_healthy(READY[role]), REPEAT_READY_S), give_up_s
        )

    try:
        leave(role, node_id, f"{environment['PSX_TABLE_PREFIX']}mesh", SyncDynamo(), stop)
    except StoreUnavailable as error:
        log.warning("not removed from the mesh", extra={"reason": str(error)})
    complete_leaving(boto3.client("autoscaling", region_name=region), environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
