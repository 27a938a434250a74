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

LOOKUP_MAX_S: Final = 8.0
"""Then a lookup is over for whoever asked, whatever the servers and however many they are."""
FIRST_TRY_S: Final = 1.0
"""Before a server has been met; then five times what it took lately, at least a quarter of a second. Each try has twice as
long as the one before it."""
TRIES_MAX: Final = 3
"""Of each server."""
RENEWED_AFTER_S: Final = 60.0
"""What was learnt of the servers, whosever names it was by, is forgotten then."""
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
        self._renew_s = 0.0
        self._kept = 0
        self._forgetting: asyncio.TimerHandle | None = None
        self._ending: dict[aiodns.DNSResolver, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def addresses(self, host: str) -> list[str]:
        """Addresses of a name, IPv4 first: not every device has IPv6. None where nobody knows the name, or answers.

        Shorthand of an address (`127.1`, `0x7f.1`) is that address, as `getaddrinfo` has it.
        """
        with contextlib.suppress(OSError, ValueError):
            return [socket.inet_ntoa(socket.inet_aton(host))]
        loop = asyncio.get_running_loop()
        dns = self._resolver(loop)
        try:
            name = host.encode("idna").decode("ascii")
            async with asyncio.timeout(LOOKUP_MAX_S):
                found = await dns.getaddrinfo(name)
        except (aiodns.error.DNSError, UnicodeError, TimeoutError):
            return []
        finally:
            self._count_kept(loop)
        ordered = sorted(found.nodes, key=lambda node: node.family != socket.AF_INET)
        return list(dict.fromkeys(node.addr[0].decode("ascii") for node in ordered))[:ADDRESSES_MAX]

    def _resolver(self, loop: asyncio.AbstractEventLoop) -> aiodns.DNSResolver:
        dns = self._dns
        if dns is None or loop.time() >= self._renew_s:
            self._renew_s = loop.time() + RENEWED_AFTER_S
            if dns is not None:
                self._end_later(dns, loop)
            dns = self._dns = aiodns.DNSResolver(
                self._servers, loop, timeout=FIRST_TRY_S, tries=TRIES_MAX, flags=_FLAGS
            )
        return dns

    def _end_later(self, dns: aiodns.DNSResolver, loop: asyncio.AbstractEventLoop) -> None:
        """When nobody waits for it any more."""

        def end() -> None:
            del self._ending[dns]
            closing = loop.create_task(dns.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

        self._ending[dns] = loop.call_later(LOOKUP_MAX_S + 1, end)

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
        for timer in self._ending.values():
            timer.cancel()
        ending = [*self._ending, *([dns] if dns is not None else ())]
        self._ending.clear()
        await asyncio.gather(*self._closing, *(each.close() for each in ending))
