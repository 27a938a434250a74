"""A device leaves the unproven count of its account. Apart from enrolment: jobs prove devices and sign no tokens."""

from shared.runtime.dynamo import Contended, RunsDynamo
from shared.supply.model import Device
from shared.supply.table import prove


def prove_device(dynamo: RunsDynamo, table: str, device: Device, now_ms: int) -> bool:
    """A device served or was verified: it leaves the unproven count. False when it had left, or rows were contended."""
    try:
        return device.proven_at_ms is None and dynamo.run(prove(table, device, now_ms))
    except Contended:
        return False
