"""What is the owner's although its address is public: networks of this machine's interfaces, and where relays see it.

A router answers its own public address from inside, and what stands behind it may have public IPv6 addresses.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from psx_peer.wire import egress

FRESH_S: Final = 10.0
"""So long interfaces are not looked at again: a device that changes networks loses its sockets anyway."""
TOLD_MAX: Final = 16
"""Addresses that relays told, the newest: each socket may leave by another one."""
_WITH_LENGTH: Final = sys.platform.startswith(("darwin", "freebsd"))
"""There an address begins with its length; elsewhere with its family, in two bytes."""
_HOST_AT: Final = {int(socket.AF_INET): (4, 4), int(socket.AF_INET6): (8, 16)}
"""Where in a socket address the host stands, and how long it is."""

Interface = tuple[str, int]
"""(address, length of its prefix)"""


class OwnNetworks:
    """Call it for the networks that are this device's own now. `interfaces` is for tests."""

    def __init__(self, interfaces: Callable[[], list[Interface]] | None = None) -> None:
        self._interfaces = interfaces or read_interfaces
        self._told: dict[egress.Network, None] = {}
        self._read: list[egress.Network] = []
        self._read_s: float | None = None

    def told(self, address: str) -> None:
        """A relay says from where it sees this device."""
        network = egress.own_network(address)
        if network is not None:
            self._told.pop(network, None)
            self._told[network] = None
            if len(self._told) > TOLD_MAX:
                del self._told[next(iter(self._told))]

    def __call__(self) -> list[egress.Network]:
        now_s = time.monotonic()
        if self._read_s is None or now_s - self._read_s > FRESH_S:
            found = (egress.own_network(*interface) for interface in self._interfaces())
            self._read, self._read_s = [network for network in found if network is not None], now_s
        return [*self._told, *self._read]


class _Entry(ctypes.Structure):
    """`struct ifaddrs`, as far as it is read."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("mask", ctypes.c_void_p),
]


def read_interfaces() -> list[Interface]:
    """The addresses of this machine's interfaces; where the system has no `getifaddrs`, those of its own name, alone."""
    library = ctypes.util.find_library("c") if sys.platform != "win32" else None
    try:
        system = ctypes.CDLL(library, use_errno=True)
        read, free = system.getifaddrs, system.freeifaddrs
    except (OSError, AttributeError, TypeError):
        return _by_name()
    first = ctypes.POINTER(_Entry)()
    if read(ctypes.byref(first)) != 0:
        return _by_name()
    try:
        return list(_walk(first))
    finally:
        free(first)


def _walk(entry: ctypes._Pointer[_Entry]) -> Iterator[Interface]:
    while entry:
        family, host = _host(entry.contents.address)
        if host:
            _, mask = _host(entry.contents.mask, family)
            yield socket.inet_ntop(family, host), int.from_bytes(mask, "big").bit_count() or 8 * len(host)
        entry = entry.contents.next


def _host(at: int | None, family: int | None = None) -> tuple[int, bytes]:
    """(family, the host's bytes) of a socket address; none for other families. Masks may lack theirs: it is given."""
    if not at:
        return 0, b""
    head = ctypes.string_at(at, 2)
    family = family or (head[1] if _WITH_LENGTH else int.from_bytes(head, sys.byteorder))
    start, size = _HOST_AT.get(family, (0, 0))
    return family, ctypes.string_at(at + start, size)


def _by_name() -> list[Interface]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return []
    return [(str(entry[4][0]), 128 if entry[0] == socket.AF_INET6 else 32) for entry in found]
