"""What a GB is: the one place that says it. Every price sheet and every answer that names GB prints it.

It is settled when the software is built, not while it runs: prices, caps, prepaid balances and the ledger's unit rest on it
(decision 0003). What is counted is what `gateway_node/tunnel.py` counts.
"""

from typing import Any, Final

from shared.kernel.money import BYTES_PER_GB

_COUNTED: Final = (
    "what your connection carries after the proxy's answer that opened it: TLS, HTTP heads and bodies"
)
_NOT_COUNTED: Final = (
    "the CONNECT or SOCKS handshake and its answer, TCP and IP headers, refused or failed requests"
)


def traffic_unit() -> dict[str, Any]:
    """What a GB is, as clients are told."""
    return {
        "bytesPerGB": BYTES_PER_GB,
        "directions": "both",
        "counted": _COUNTED,
        "notCounted": _NOT_COUNTED,
    }


def traffic_unit_text() -> str:
    """The same in a sentence."""
    return f"1 GB is {BYTES_PER_GB} bytes, both directions: {_COUNTED}; not counted: {_NOT_COUNTED}."
