"""Addresses of names, asked of the machine's name servers without a thread for each: what nobody answers costs a few KB.

`/etc/hosts`, then the servers of `/etc/resolv.conf`, which is read again when it changes; never its search domains, because
a customer's name is whole. Nothing else that nsswitch knows is asked. Source: decision 0099.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

import aiodns
import pycares

FIRST_TRY_S: Final = 1.0
"""Before a server has been met; then five times what it took lately, at least a quarter of a second. Each try has twice as
long as the one before it."""
TRIES_MAX: Final = 5
"""4 to 8 s in all."""
_FLAGS: Final = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_EDNS


class Names:
    """The machine's name servers, or these (`address:port`). Belongs to the loop that is running when it is first asked."""

    def __init__(self, servers: list[str] | None = None) -> None:
        self._servers = servers
        self._dns: aiodns.DNSResolver | None = None

    async def addresses(self, host: str) -> list[str]:
        """Addresses of a name, IPv4 first: not every device has IPv6. None where nobody knows the name, or answers.

        Shorthand of an address (`127.1`, `0x7f.1`) is that address, as `getaddrinfo` has it.
        """
        with contextlib.suppress(OSError, ValueError):
            return [socket.inet_ntoa(socket.inet_aton(host))]
        if self._dns is None:
            loop = asyncio.get_running_loop()
            self._dns = aiodns.DNSResolver(
                self._servers, loop, timeout=FIRST_TRY_S, tries=TRIES_MAX, flags=_FLAGS
            )
        try:
            name = host.encode("idna").decode("ascii")
            found = await self._dns.getaddrinfo(name)
        except (aiodns.error.DNSError, UnicodeError):
            return []
        ordered = sorted(found.nodes, key=lambda node: node.family != socket.AF_INET)
        return list(dict.fromkeys(node.addr[0].decode("ascii") for node in ordered))

    async def close(self) -> None:
        """What is still asked is answered with nothing."""
        if self._dns is not None:
            await self._dns.close()
