"""Who is this customer: keys from DynamoDB, cached, and dropped from the cache the moment a revocation is heard.

While the store is down known keys go on for `STALE_MAX_S`, unknown ones are refused. Failed attempts are limited per
address and per account (not for the house account, which strangers share), over all gateways; a secret that is in the cache
is never blocked by somebody else's failures.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from gateway_node.history import KeyHistory
from shared.access import table as access
from shared.access.live import Limit, count_calls
from shared.access.model import Pak
from shared.access.rules import authenticate, is_expired, network_of, standing
from shared.access.secrets import SecretBox
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.redis import AsyncRedis

FRESH_S: Final = 60.0
STALE_MAX_S: Final = 900.0
KNOWN_READ_MAX_S: Final = 0.75
"""So long a customer of a known key waits for its being read again; then what is known holds, up to `STALE_MAX_S`."""
READ_AGAIN_AFTER_S: Final = 5.0
"""After a read that told nothing."""
CACHE_MAX_KEYS: Final = 100_000
HASHES_KEPT: Final = 4096
"""Of passwords that came lately, as are the heads they came in (`wire/http1.py`): a customer sends one each time."""
CHANGED_MAX: Final = 10_000
CHANGED_KEPT_S: Final = 60.0
"""Longer than any read takes: so long it is remembered that a key changed, for those who were reading it."""
FAILURE_WINDOW_S: Final = 60.0
ADDRESS_BANS: Final = ((30, 300.0), (10, 30.0))
ACCOUNT_BANS: Final = ((60, 300.0), (25, 30.0))
"""(failures within the window, ban in seconds), the harder one first."""
TRACKED_MAX: Final = 100_000
"""Addresses, or accounts, whose failures are remembered; beyond it who failed longest ago is forgotten."""


@dataclass(slots=True)
class _Entry:
    """A key as it was read, and when it may be asked for again: one read of a key is under way at a time."""

    pak: Pak
    read_s: float
    again_s: float


@dataclass(slots=True)
class _Failures:
    """When somebody failed, the latest last, and until when they have to wait."""

    at_s: deque[float]
    banned_until_s: float = 0.0


class FailureLimiter:
    """Failed authentications of whoever is counted (addresses, accounts), over a sliding minute."""

    def __init__(
        self, now_s: Callable[[], float], bans: tuple[tuple[int, float], ...] = ADDRESS_BANS
    ) -> None:
        self._now_s = now_s
        self.bans = bans
        self._tracked: OrderedDict[str, _Failures] = OrderedDict()

    def banned(self, who: str) -> bool:
        """Whether somebody has to wait."""
        failures = self._tracked.get(who)
        return failures is not None and self._now_s() < failures.banned_until_s

    def failed(self, who: str) -> None:
        """Count a failure, and ban when there were too many."""
        now = self._now_s()
        failures = self._tracked.get(who)
        if failures is None:
            if len(self._tracked) >= TRACKED_MAX:
                self._tracked.popitem(last=False)
            failures = self._tracked[who] = _Failures(deque(maxlen=self.bans[0][0]))
        self._tracked.move_to_end(who)
        failures.at_s.append(now)
        while now - failures.at_s[0] > FAILURE_WINDOW_S:
            failures.at_s.popleft()
        for count, ban_s in self.bans:
            if len(failures.at_s) >= count:
                failures.banned_until_s = now + ban_s
                return

    def ban(self, who: str, ban_s: float) -> None:
        """All gateways together counted too many failures of somebody who has just failed here."""
        failures = self._tracked.get(who)
        if failures is not None:
            failures.banned_until_s = max(failures.banned_until_s, self._now_s() + ban_s)


class Authenticator:
    """Passwords to paks."""

    def __init__(
        self,
        dynamo: AsyncDynamo,
        access_table: str,
        box: SecretBox,
        now_s: Callable[[], float],
        now_ms: Callable[[], int],
        met: Callable[[Pak], Awaitable[None]],
        house_account: str = "",
        history: KeyHistory | None = None,
        redis: AsyncRedis | None = None,
    ) -> None:
        """With `redis` failures count over all gateways; without it, or while it is away, over this one."""
        self._dynamo = dynamo
        self._table = access_table
        self._hash = lru_cache(maxsize=HASHES_KEPT)(box.hash)
        self._now_s = now_s
        self._now_ms = now_ms
        self._met = met
        self._cache: dict[str, _Entry] = {}
        self._secret_of: dict[PakId, str] = {}
        self._changed: dict[PakId, float] = {}
        self._reading: set[asyncio.Task[_Entry | None]] = set()
        self._house_account = house_account
        self._history = history
        self._redis = redis
        self._addresses = FailureLimiter(now_s)
        self._accounts = FailureLimiter(now_s, ACCOUNT_BANS)

    async def authenticate(
        self, account_id: AccountId, password: str, address: str, request_id: str = ""
    ) -> Pak | Refusal:
        """The pak of a password, or why it may not pass. Raises StoreUnavailable for a key nobody knows yet."""
        secret_hash = self._hash(password)
        address = network_of(address)
        entry = self._cache.get(secret_hash)
        if entry is None and (self._addresses.banned(address) or self._accounts.banned(account_id)):
            return Refusal.RATE_LIMITED_AUTH
        if entry is None:
            entry = await self._read(secret_hash, None)
        elif self._now_s() >= entry.again_s:
            entry = await self._read_again(secret_hash, entry)
        pak = entry.pak if entry else None
        refusal = authenticate(pak, account_id, self._now_ms())
        if refusal is None and pak is not None:
            if self._history is not None:
                self._history.authenticated(pak, address, request_id)
            return pak
        if self._history is not None:
            self._tell(self._history, account_id, pak, refusal or Refusal.AUTH_INVALID, address, request_id)
        if refusal is Refusal.AUTH_INVALID:
            await self._failed(self._addresses, address)
            if account_id != self._house_account:
                await self._failed(self._accounts, account_id)
        return refusal or Refusal.AUTH_INVALID

    async def _failed(self, limiter: FailureLimiter, who: str) -> None:
        limiter.failed(who)
        if self._redis is None:
            return
        counted_as = hashlib.sha256(who.encode()).hexdigest()[:32]
        try:
            for count, ban_s in limiter.bans:
                limit = Limit(f"auth{count}", count - 1, int(FAILURE_WINDOW_S))
                (allowance,) = await self._redis.run(count_calls([limit], counted_as, self._now_ms()))
                if allowance.wait_ms:
                    limiter.ban(who, ban_s)
                    return
        except StoreUnavailable:
            return  # what was counted here holds

    def _tell(
        self,
        history: KeyHistory,
        account_id: AccountId,
        pak: Pak | None,
        refusal: Refusal,
        address: str,
        request_id: str,
    ) -> None:
        history.failed(account_id, pak, refusal, address, request_id)
        if pak is not None and is_expired(pak, self._now_ms()):
            history.expired(pak)

    async def confirm(self, pak: Pak) -> Pak | Refusal:
        """A key that was let in before, as it is now: it may have changed while its tunnel was being opened. Raises
        StoreUnavailable when it did and nobody knows how."""
        entry = self._cache.get(pak.secret_hash) or await self._read(pak.secret_hash, None)
        refusal = authenticate(entry.pak if entry else None, pak.account_id, self._now_ms())
        return refusal or (entry.pak if entry else Refusal.AUTH_INVALID)

    async def _read_again(self, secret_hash: str, known: _Entry) -> _Entry | None:
        """A known key as it is now, or as it was: no customer of it waits long for a store that is slow, or hangs."""
        known.again_s = known.read_s + STALE_MAX_S
        if self._now_s() >= known.again_s:
            return await self._read(secret_hash, None)
        reading = asyncio.get_running_loop().create_task(self._read(secret_hash, known))
        self._reading.add(reading)
        reading.add_done_callback(partial(self._was_read, known))
        done, _ = await asyncio.wait({reading}, timeout=KNOWN_READ_MAX_S)
        return reading.result() if done else known

    def _was_read(self, known: _Entry, reading: asyncio.Task[_Entry | None]) -> None:
        self._reading.discard(reading)
        known.again_s = self._now_s() + READ_AGAIN_AFTER_S
        if not reading.cancelled():
            reading.exception()  # whoever still waits for it reads it

    async def _read(self, secret_hash: str, known: _Entry | None) -> _Entry | None:
        try:
            while True:
                began_s = self._now_s()
                pak_id = await self._dynamo.run(access.find_secret(self._table, secret_hash))
                pak = await self._dynamo.run(access.get_pak(self._table, pak_id)) if pak_id else None
                if pak is not None:
                    await self._met(pak)
                if pak_id is None or self._changed.get(pak_id, -1.0) < began_s:
                    break  # else it changed while it was read: what was read may be what it was before
        except StoreUnavailable:
            if known is not None and self._now_s() - known.read_s < STALE_MAX_S:
                return known
            raise
        if pak is None:
            self._forget(pak_id, secret_hash)
            return None
        if len(self._cache) >= CACHE_MAX_KEYS:
            oldest = next(iter(self._cache))
            self._forget(self._cache[oldest].pak.pak_id, oldest)
        now_s = self._now_s()
        entry = self._cache[secret_hash] = _Entry(pak, now_s, now_s + FRESH_S)
        self._secret_of[pak.pak_id] = secret_hash
        return entry

    def _forget(self, pak_id: PakId | None, secret_hash: str | None) -> None:
        if secret_hash is not None:
            self._cache.pop(secret_hash, None)
        if pak_id is not None and self._secret_of.get(pak_id) == secret_hash:
            self._secret_of.pop(pak_id, None)

    async def recheck(self, pak_id: PakId) -> Pak | None:
        """A key has changed: forget it and read it again. None when it may no longer carry traffic at all."""
        now_s = self._now_s()
        if len(self._changed) >= CHANGED_MAX:
            self._changed = {p: at for p, at in self._changed.items() if now_s - at < CHANGED_KEPT_S}
        self._changed[pak_id] = now_s
        self._forget(pak_id, self._secret_of.get(pak_id))
        return await self.read(pak_id)

    async def read(self, pak_id: PakId) -> Pak | None:
        """A key as it is now; None when it may carry no traffic. Raises StoreUnavailable, and then forgets nothing."""
        pak = await self._dynamo.run(access.get_pak(self._table, pak_id))
        known = self._secret_of.get(pak_id)
        if known is not None and (pak is None or pak.secret_hash != known or standing(pak, self._now_ms())):
            self._forget(pak_id, known)
        if pak is None:
            return None
        await self._met(pak)
        return None if standing(pak, self._now_ms()) else pak

    def known(self) -> set[PakId]:
        """Keys in the cache, for the sweep after a lost subscription."""
        return set(self._secret_of)
