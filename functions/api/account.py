"""What an account sees of itself: live sessions, credentials, traffic. A key of another account is not there."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Request

from functions.api.audit import tell_first
from functions.api.auth import caller, fresh
from functions.api.desk import Desk
from functions.api.history import record_of_key
from functions.api.paging import PART_MAX, own_cursor, part, write_cursor
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access.model import ApiKey, DisabledReason, Pak, Scope
from shared.access.table import get_pak, list_paks
from shared.kernel.codes import Pool
from shared.kernel.ids import PAK_ID, PakId
from shared.kernel.money import gb_number
from shared.kernel.traffic import traffic_unit
from shared.metering.rules import day_of
from shared.metering.table import usage_days
from shared.pool.sessions import (
    LiveSession,
    close_session,
    leave_word,
    parse_session_key,
    publish_closed,
    sessions_of,
)
from shared.runtime.clock import now_ms

STATS_DAYS_MAX: Final = 90
CREDENTIALS_MAX: Final = 100
CLOSING_PASSES_MAX: Final = 4
"""A list holds 250 sessions of a pool; who makes new ones meanwhile is not waited for."""
DAY_MS: Final = 86_400_000


class AccountView(Desk):
    """Routes' work."""

    def own_key(self, key: ApiKey, pak_id: str) -> Pak | None:
        """A key of the caller's account, or None."""
        if PAK_ID.fullmatch(pak_id) is None:
            return None
        pak = self.w.dynamo.run(get_pak(self.w.settings.table("access"), PakId(pak_id)))
        gone = pak is None or pak.disabled_reason is DisabledReason.DELETED
        return None if gone or pak is None or pak.account_id != key.account_id else pak

    def sessions(self, key: ApiKey, pak_id: str | None) -> list[LiveSession]:
        """Live sessions over both pools, of one key if asked."""
        if pak_id is not None and self.own_key(key, pak_id) is None:
            return []
        now, wanted = now_ms(), PakId(pak_id) if pak_id is not None else None
        found = (self.w.redis.run(sessions_of(pool, key.account_id, now, wanted)) for pool in Pool)
        return sorted((s for some in found for s in some), key=lambda s: -s.seen_at_ms)

    def shown(self, key: ApiKey, session: LiveSession) -> dict[str, Any]:
        """A session for its owner: bytes and requests as gateways told them, at most two seconds ago."""
        settings = self.w.settings
        country = session.country or "any"
        username = f"{key.account_id}-{session.pool.value}-{country}-sid-{session.session_id}"
        return {
            "sessionKey": session.key,
            "accountId": key.account_id,
            "pakKeyId": session.pak_id,
            "sessionId": session.session_id,
            "pool": session.pool.value,
            "country": session.country,
            "carrier": session.carrier,
            "currentIp": session.address or None,
            "createdAt": session.created_at_ms,
            "lastActivityAt": session.seen_at_ms,
            "expiresAt": session.ends_at_ms,
            "requestCount": session.requests,
            "bytesIn": session.down_bytes,
            "bytesOut": session.up_bytes,
            "endpointId": session.endpoint_id,
            "rotation": session.rotation or None,
            "ttl": max(session.ends_at_ms - session.created_at_ms, 0) // 1000,
            "proxyUrl": f"http://{username}@{settings.gateway_host}:{settings.gateway_http_port}",
            "socks5Url": f"socks5://{username}@{settings.gateway_host}:{settings.gateway_socks_port}",
            "isSynthesizedSid": False,
        }

    def close_one(self, request: Request, key: ApiKey, session_key: str, pak_id: str | None) -> bool:
        """Close a session of the caller's own: its device is forgotten, its open tunnels end within a second."""
        parsed = parse_session_key(session_key)
        if parsed is None or (pak_id is not None and parsed[1] != pak_id):
            return False
        pool, owner, sid = parsed
        if all(session.key != session_key for session in self.sessions(key, owner)):
            return False
        tell_first(self.w, request)
        closed = self.w.redis.run(close_session(pool, key.account_id, owner, sid, now_ms()))
        if closed:
            self.w.redis.run(publish_closed(f"session:{session_key}"))
        return closed

    def close_all(self, request: Request, key: ApiKey, pak_id: str | None) -> int:
        """Close every session of the account or of one key, and cut every tunnel, of a named session or not."""
        if pak_id is not None and self.own_key(key, pak_id) is None:
            return 0
        tell_first(self.w, request)
        name = f"account:{key.account_id}" if pak_id is None else f"key:{pak_id}"
        now, closed = now_ms(), 0
        for pool in Pool:
            self.w.redis.run(leave_word(pool, name, now))
        for _ in range(CLOSING_PASSES_MAX):
            found = self.sessions(key, pak_id)
            calls = (close_session(s.pool, key.account_id, s.pak_id, s.session_id, now) for s in found)
            gone = sum(self.w.redis.run(call) for call in calls)
            closed += gone
            if not gone:
                break
        self.w.redis.run(publish_closed(name))
        return closed

    def credentials(self, request: Request, key: ApiKey, pak_id: str | None, cursor: str) -> dict[str, Any]:
        """Where and as whom to connect; with a key's id its password too, on record as a reveal."""
        settings = self.w.settings
        answer: dict[str, Any] = {
            "accountId": key.account_id,
            "username": key.account_id,
            "usernameTemplate": f"{key.account_id}-<pool>-<country>[-sid-<session>][-rot-<rotation>]",
            "host": settings.gateway_host,
            "httpPort": settings.gateway_http_port,
            "socksPort": settings.gateway_socks_port,
        }
        if pak_id is None:
            start = own_cursor(cursor, key.account_id)
            page = self.w.dynamo.run(
                list_paks(settings.table("access"), key.account_id, CREDENTIALS_MAX, start)
            )
            answer["nextCursor"] = write_cursor(page.next_key) if page.next_key else None
            answer["keys"] = [
                {"id": p.pak_id, "label": p.label, "enabled": p.enabled}
                for p in page.rows
                if p.disabled_reason is not DisabledReason.DELETED
            ]
            return answer
        pak = self.own_key(key, pak_id)
        if pak is None:
            raise ProblemError(404, "NOT_FOUND", "there is no such key")
        if Scope.RESELL not in key.scopes:
            raise ProblemError(403, "SCOPE_MISSING", "an API key that may only look is told no passwords")
        record_of_key(self.w, request, fresh(self.w, request, key), pak, "reveal")
        return answer | {"password": self.w.box.open(pak.secret_sealed, f"pak#{pak.pak_id}")}

    def stats(self, key: ApiKey, days: int) -> dict[str, Any]:
        """Traffic of the whole account by day, and what is live now."""
        now, bound = now_ms(), max(1, min(days, STATS_DAYS_MAX))
        since = day_of(now - (bound - 1) * DAY_MS)
        table = self.w.settings.table("usage")
        page = self.w.dynamo.run(usage_days(table, f"acct#{key.account_id}", since, STATS_DAYS_MAX))
        total = sum(up + down for _, up, down in page.rows)
        return {
            "accountId": key.account_id,
            "activeSessions": len(self.sessions(key, None)),
            "totalBytes": total,
            "totalGB": gb_number(total),
            "days": [{"day": day, "bytesOut": up, "bytesIn": down} for day, up, down in page.rows],
            "trafficUnit": traffic_unit(),
            "generatedAt": now,
        }


def _place(session: LiveSession) -> str:
    """The latest used first."""
    return f"{10**13 - session.seen_at_ms:014d}:{session.key}"


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of an account's own view."""
    routes = Routes()
    view = AccountView(wiring)

    def me(request: Request) -> ApiKey:
        return caller(view.w, request, Scope.RESELL)

    @routes.get("/v1/gateway/pool/my-sessions")
    def my_sessions(
        request: Request, pakId: str | None = None, limit: int = PART_MAX, cursor: str = ""
    ) -> dict[str, Any]:
        key = me(request)
        page, following = part(view.sessions(key, pakId), limit, cursor, _place)
        found = [view.shown(key, session) for session in page]
        return {"sessions": found, "count": len(found), "nextCursor": following}

    @routes.delete("/v1/gateway/pool/my-sessions")
    def close_all(request: Request, pakId: str | None = None) -> dict[str, Any]:
        return {"closed": view.close_all(request, me(request), pakId)}

    @routes.delete("/v1/gateway/pool/my-sessions/{session_key}")
    def close_one(request: Request, session_key: str, pakId: str | None = None) -> dict[str, Any]:
        if not view.close_one(request, me(request), session_key, pakId):
            raise ProblemError(404, "NOT_FOUND", "there is no such session")
        return {"sessionKey": session_key, "closed": True}

    @routes.get("/v1/gateway/credentials")
    def credentials(request: Request, pakId: str | None = None, cursor: str = "") -> dict[str, Any]:
        return view.credentials(request, me(request), pakId, cursor)

    @routes.get("/v1/gateway/pool/my-stats")
    def my_stats(request: Request, days: int = 30) -> dict[str, Any]:
        return view.stats(me(request), days)

    return routes
