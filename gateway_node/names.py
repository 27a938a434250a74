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
ADDRESSES_MAX: Final = 16
"""Of one name; a tunnel tries fewer."""
KEPT_MAX_S: Final = 5.0
KEPT_MAX: Final = 256
"""So long, and so many, answers stay with c-ares, which would keep all of them for their time to live, up to an hour."""
_FLAGS: Final = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_EDNS


class Names:
    """The machine's name servers, or these (`address:port`). Belongs to the loop that is running when it is first asked."""

    def __init__(self, servers: list[str] | None = None) -> None:
        self._servers = servers
        self._dns: aiodns.DNSResolver | None = None
        self._kept = 0
        self._forgetting: asyncio.TimerHandle | None = None

    async def addresses(self, host: str) -> list[str]:
        """Addresses of a name, IPv4 first: not every device has IPv6. None where nobody knows the name, or answers.

        Shorthand of an address (`127.1`, `0x7f.1`) is that address, as `getaddrinfo` has it.
        """
        with contextlib.suppress(OSError, ValueError):
            return [socket.inet_ntoa(socket.inet_aton(host))]
        loop = asyncio.get_running_loop()
        if self._dns is None:
            self._dns = aiodns.DNSResolver(
                self._servers, loop, timeout=FIRST_TRY_S, tries=TRIES_MAX, flags=_FLAGS
            )
        try:
            name = host.encode("idna").decode("ascii")
            found = await self._dns.getaddrinfo(name)
        except (aiodns.error.DNSError, UnicodeError):
            return []
        finally:
            self._count_kept(loop)
        ordered = sorted(found.nodes, key=lambda node: node.family != socket.AF_INET)
        return list(dict.fromkeys(node.addr[0].decode("ascii") for node in ordered))[:ADDRESSES_MAX]

    def _count_kept(self, loop: asyncio.AbstractEventLoop) -> None:
        self._kept += 1
        if self._dns is None:
            return
        if self._kept >= KEPT_MAX:
            self._forget()
        elif self._forgetting is None:
            self._forgetting = loop.call_later(KEPT_MAX_S, self._forget)

    def _forget(self) -> None:
        """Empty c-ares' cache, which has no bound of its own and cannot be left out. What is being asked goes on."""
        self._kept = 0
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        if self._dns is not None:
            with contextlib.suppress(pycares.AresError):
                self._dns._channel.reinit()

    async def close(self) -> None:
        """What is still asked is answered with nothing."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        dns, self._dns = self._dns, None
        if dns is not None:
            await dns.close()
