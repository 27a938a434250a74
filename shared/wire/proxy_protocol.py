"""PROXY protocol v2: who a connection behind a load balancer really comes from. Bytes in, an address out.

Leaves out v1 (text) and the TLVs. Source: the PROXY protocol specification of HAProxy, section 2.2.
"""

import ipaddress
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
HEADER_BYTES: Final = 16
MAX_BYTES: Final = HEADER_BYTES + 2048
_LOCAL, _PROXY = 0, 1
_ADDRESS_BYTES: Final = {0x11: 4, 0x21: 16}


class NotProxied(ValueError):
    """What came is no PROXY v2 header: the connection does not come from the load balancer."""


class Proxied(NamedTuple):
    """The header was `size` bytes; `address` is the client's, or None for the balancer's own health checks."""

    address: str | None
    size: int


def read_header(data: bytes | bytearray) -> Proxied | None:
    """The header at the front of `data`; None while it is incomplete. Raises NotProxied."""
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise NotProxied("signature")
    if len(data) < HEADER_BYTES:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    size = HEADER_BYTES + int.from_bytes(data[14:16], "big")
    if version != 2 or command not in {_LOCAL, _PROXY} or size > MAX_BYTES:
        raise NotProxied("version, command or length")
    if len(data) < size:
        return None
    if command == _LOCAL:
        return Proxied(None, size)
    width = _ADDRESS_BYTES.get(data[13])
    if width is None or size < HEADER_BYTES + 2 * width + 4:
        raise NotProxied("address family")
    return Proxied(str(ipaddress.ip_address(bytes(data[HEADER_BYTES : HEADER_BYTES + width]))), size)


def missing_bytes(data: bytes) -> int:
    """How many bytes to read next of an incomplete header, and not one more."""
    if len(data) < HEADER_BYTES:
        return HEADER_BYTES - len(data)
    return HEADER_BYTES + int.from_bytes(data[14:16], "big") - len(data)
