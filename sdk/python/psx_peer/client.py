"""The peer as a whole: one identity, several relay sockets, redials, redirects, and a stop that works."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Final

from psx_peer.identity import ApiRefused, Identity, IdentityKeeper
from psx_peer.limits import allowance, on_charger
from psx_peer.options import Options
from psx_peer.own import OwnNetworks
from psx_peer.relay import RelaySocket
from psx_peer.streams import StreamTable
from psx_peer.tunnels import Dialer, DirectDialer
from psx_peer.wire import egress, websocket

API_RETRY_MAX_S: Final = 60.0
HURRY_MIN_S: Final = 0.05
HURRY_MAX_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
ROTATION_MAX_S: Final = 80.0
"""From the question to the answer; a relay waits for ten seconds more."""
ALLOWED_CHECK_S: Final = 20.0
"""So often schedule and charger are looked at."""

log = logging.getLogger("psx_peer")


class Peer:
    """Runs until `stop` is called. `dialer` is how targets are reached; the default obeys the egress policy.

    `rotate` gives this device another address, and raises when it cannot; a peer without it says that it does not.
    """

    def __init__(
        self,
        options: Options,
        dialer: Dialer | None = None,
        keeper: IdentityKeeper | None = None,
        rotate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        policy = egress.EgressPolicy(lab_allow=options.lab_allow)
        self._options = options
        self._own = OwnNetworks()
        self._dialer = dialer or DirectDialer(
            policy, options.bind, options.lab_hosts, options.times.dial, self._own
        )
        self._keeper = keeper or IdentityKeeper(options)
        self._rotate = rotate
        self._rotating: asyncio.Task[None] | None = None
        self._sockets: set[RelaySocket] = set()
        self._table = StreamTable(allowance(options.limit_mbit), options.times.resume)
        self._stopping = asyncio.Event()
        self._relay: str | None = None
        self._redirected_s: float | None = None

    async def run(self) -> None:
        """Serve until stopped; share only while the owner's schedule and charger let."""
        while not self._stopping.is_set():
            if self._allowed():
                await self._serve()
            else:
                log.info("[PAUSED] outside the owner's hours or off the charger")
                await self._until(self._allowed)

    async def _serve(self) -> None:
        """All sockets, until the owner stops or pauses them."""
        lines = [asyncio.ensure_future(self._line()) for _ in range(self._options.connections)]
        paused = asyncio.ensure_future(self._until(lambda: not self._allowed()))
        done, _ = await asyncio.wait([*lines, paused], return_when=asyncio.FIRST_COMPLETED)
        self._table.stop()
        for socket in list(self._sockets):
            socket.stop()
        for task in (*lines, paused, *([self._rotating] if self._rotating else [])):
            task.cancel()
        await asyncio.gather(*lines, paused, return_exceptions=True)
        for task in done:
            task.result()

    def _allowed(self) -> bool:
        options = self._options
        if options.only_charging and on_charger() is False:
            return False
        return options.schedule is None or options.schedule.open_at(datetime.now().astimezone())

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or for the stop."""
        while not self._stopping.is_set() and not condition():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALLOWED_CHECK_S):
                    await self._stopping.wait()

    def stop(self) -> None:
        """End every tunnel and socket at once; `run` returns."""
        self._stopping.set()

    async def _line(self) -> None:
        """One of the parallel sockets, for ever.

        It goes to another relay at once, but in a row to no more than there are: who is sent round waits like others.
        """
        identity = await self._identity()
        hurried = False
        failures = hops = 0
        while True:
            url, began_s = self._relay or identity.relay, time.monotonic()
            socket = RelaySocket(
                self._options,
                identity,
                self._dialer,
                self._table,
                partial(self._may_follow, identity, url),
                partial(self._move_on, identity, url),
                self._own.told,
                self._rotation_asked,
            )
            self._sockets.add(socket)
            try:
                code = await socket.run(url)
            except (OSError, TimeoutError) as error:
                log.warning("relay not reached: %s", type(error).__name__)
                self._move_on(identity, url)
                code = 1006
            finally:
                self._sockets.discard(socket)
            failures = 0 if socket.connected.is_set() else failures + 1
            if time.monotonic() - began_s > self._options.times.redial_max:
                hops = 0
            hops += 1
            if (self._relay or identity.relay) != url and max(hops, failures) <= len(identity.relays):
                continue
            hops = 0
            if code in {websocket.CloseCode.IDENTITY_INVALID, websocket.CloseCode.IDENTITY_REVOKED}:
                identity = await self._identity(identity)
            hurried = bool(len(self._table)) and not hurried
            await asyncio.sleep(self._pause_s(hurried=hurried, failures=failures))

    def _pause_s(self, *, hurried: bool, failures: int) -> float:
        """How long to wait before dialling again: hurried while tunnels wait to be resumed, but never twice in a row; with
        full jitter, and ever longer while no relay answers.
        """
        times = self._options.times
        low, high = (HURRY_MIN_S, HURRY_MAX_S) if hurried else (times.redial_min, times.redial_max)
        if failures > 1:
            high = max(high, min(BACKOFF_MAX_S, times.redial_max * 2 ** min(failures - 1, 10)))
        return random.uniform(low, max(low, high))  # noqa: S311 - jitter, not a secret

    def _rotation_asked(self, request_id: str) -> None:
        """A relay asks for another address; one change at a time."""
        if self._rotating is None or self._rotating.done():
            self._rotating = asyncio.get_running_loop().create_task(self._rotated(request_id))

    async def _rotated(self, request_id: str) -> None:
        """Change the address and say how that went, on a socket that was dialled from the new one."""
        error = "" if self._rotate else "not_supported"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROTATION_MAX_S):
                try:
                    if self._rotate is not None:
                        await self._rotate()
                        for socket in list(self._sockets):
                            socket.lose()
                except Exception as failed:  # noqa: BLE001 - whatever the device's own code raises is its answer
                    error = type(failed).__name__
                while not (connected := [s for s in self._sockets if s.is_connected]):  # noqa: ASYNC110 - any of several
                    await asyncio.sleep(HURRY_MIN_S)
                connected[0].tell_rotated(request_id, error)

    def _may_follow(self, identity: Identity, url: str, target: str) -> bool:
        """Only elsewhere, to relays that the API named, and once a minute; the other sockets follow the first one. A pinned
        relay is kept.
        """
        if target == url or self._options.relay is not None:
            return False
        if target == self._relay:
            return True
        now = time.monotonic()
        recent = self._redirected_s is not None and now - self._redirected_s < self._options.times.redirect
        if target not in identity.relays or recent:
            return False
        self._redirected_s = now
        self._relay = target
        log.info("moving to relay %s", target)
        return True

    def _move_on(self, identity: Identity, url: str) -> None:
        """A relay goes away or is not reached: every socket tries the next one that the API named."""
        relays = identity.relays
        if self._options.relay is not None or (self._relay or identity.relay) != url or len(relays) < 2:
            return
        following = relays.index(url) + 1 if url in relays else 0
        self._relay = relays[following % len(relays)]
        self._redirected_s = time.monotonic()
        log.info("moving on to relay %s", self._relay)

    async def _identity(self, stale: Identity | None = None) -> Identity:
        """The identity, however long the API takes; a refusal that will not change ends the peer."""
        wait_s = 1.0
        while True:
            try:
                return await (self._keeper.renew(stale) if stale else self._keeper.get())
            except ApiRefused as refusal:
                if not refusal.passes:
                    raise
                log.warning("API: %s", refusal)
            except (OSError, http.client.HTTPException) as error:
                log.warning("API not reached: %s", type(error).__name__)
            await asyncio.sleep(random.uniform(0, 2 * wait_s))  # noqa: S311 - full jitter
            wait_s = min(wait_s * 2, API_RETRY_MAX_S)
