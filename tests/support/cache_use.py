"""What functions and nodes do in the cache while tests drive them, done as the user that they are deployed with.

A call made in the name of a function or node (`permissions.py`) goes to the server as that role's user, so the access list
of `infra/network.yml` is what decides. A call that it refuses fails the test; after a whole run (`./psx test`), so does a
grant that nothing used. Leaves out which keys a script computes by itself, but for the kinds that its text names.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

from local.cache_users import access_list, access_strings
from local.tables import read_serverless
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, RedisCall, SyncRedis

PASSWORDS: Final = {user: f"password of {user}" for user in access_strings()}
REFUSED: Final = "redis: NoPermissionError"
EVERYBODY: Final = frozenset({"on", "-@all", "+command", "+client|setinfo", "+cluster|slots"})
"""What clients do when they connect."""
_COMMAND: Final = re.compile(r"redis\.call\(\s*'([A-Z]+)'")
_COMPUTED: Final = re.compile(r"\.\. '([a-z_-]+)(:?)'?")
_TAGS: Final = ("{mbl}:", "{peer}:")

known_servers: set[str] = set()
"""URLs of servers that have the users; on any other one calls are made as they are."""
used: dict[str, set[str]] = {}
refused: dict[str, set[str]] = {}
_sync: Any = SyncRedis
_async: Any = AsyncRedis
_originals: Final = {
    (kind, name): getattr(kind, name)
    for kind, names in (
        (_sync, ("__init__", "run", "close")),
        (_async, ("__init__", "run", "messages", "close")),
    )
    for name in names
}


def users_file() -> str:
    """The access list of a server for tests: the deployed users, and everything for who names nobody."""
    return access_list(PASSWORDS)


def login_settings(user: str, url: str) -> dict[str, str]:
    """Environment of a process that is one of the users, on a server that has them."""
    named = {"PSX_REDIS_USER": user, "PSX_REDIS_PASSWORD": PASSWORDS[user]}
    return named if url in known_servers else {}


def user_of(name: str | None, stage: str) -> str | None:
    """The user of a function or of a node; None for nobody, and for who has none."""
    if name is None:
        return None
    if name.endswith("-node"):
        return name.removesuffix("-node")
    found: str | None = read_serverless(stage)["functions"][name].get("environment", {}).get("PSX_REDIS_USER")
    return found


def grants(user: str) -> frozenset[str]:
    """What a user may do, one by one, without what everybody needs."""
    return frozenset(access_strings()[user].split()) - EVERYBODY


def needs(call: RedisCall[Any]) -> tuple[set[str], set[str]]:
    """Commands (`+get`) and keys of a call, as far as it and its script's text tell."""
    if call.script is None:
        name, *rest = call.command
        return {f"+{str(name).lower()}"}, {str(part) for part in rest}
    commands = {*call.script.commands(), *_COMMAND.findall(call.script.text)}
    kinds = {f"{kind}:x" if colon else kind for kind, colon in _COMPUTED.findall(call.script.text)}
    keys = {*call.keys, *(str(a) for a in call.args if isinstance(a, str) and a.startswith("{"))}
    prefixes = {*_TAGS, *(key for key in keys if key.endswith(":"))}
    return {f"+{name.lower()}" for name in commands}, keys | {
        tag + kind for tag in prefixes for kind in kinds
    }


def _record(user: str, commands: Iterable[str], keys: Iterable[str], channels: Iterable[str] = ()) -> None:
    found, allowed = used.setdefault(user, set()), grants(user)
    found.update(allowed.intersection(commands))
    patterns = {g: g.partition("~")[2] for g in allowed if "~" in g and g not in found}
    found.update(g for g, pattern in patterns.items() if any(_matches(key, pattern) for key in keys))
    found.update(allowed.intersection(f"&{channel}" for channel in channels))


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern)


def unused() -> dict[str, list[str]]:
    """User -> grants that nothing made use of."""
    rest = {user: sorted(grants(user) - used.get(user, set())) for user in access_strings()}
    return {user: found for user, found in rest.items() if found}


def install(current: Callable[[], str | None]) -> None:
    """Make calls as the user that `current` names at that moment."""

    def remember(self: Any, url: str, login: Any = None) -> None:
        _originals[type(self), "__init__"](self, url, login)
        self.url, self.by_user = url, {}

    def as_user(self: Any) -> tuple[str, Any] | None:
        user = current()
        if user is None or self.url not in known_servers:
            return None
        if user not in self.by_user:
            self.by_user[user] = type(self)(self.url, (user, PASSWORDS[user]))
        return user, self.by_user[user]

    def run(self: Any, call: RedisCall[Any]) -> Any:
        if (made := as_user(self)) is None:
            return _originals[_sync, "run"](self, call)
        _noted(made[0], call)
        try:
            return _originals[_sync, "run"](made[1], call)
        except StoreUnavailable as error:
            _told(made[0], call, error)
            raise

    async def run_async(self: Any, call: RedisCall[Any], unheard: Any = None) -> Any:
        if (made := as_user(self)) is None:
            return await _originals[_async, "run"](self, call, unheard)
        _noted(made[0], call)
        try:
            return await _originals[_async, "run"](made[1], call, unheard)
        except StoreUnavailable as error:
            _told(made[0], call, error)
            raise

    def messages(self: Any, *channels: str) -> AsyncIterator[tuple[str, str]]:
        made = as_user(self)
        if made is not None:
            _record(made[0], {"+subscribe", "+ping"}, (), channels)
        found: AsyncIterator[tuple[str, str]] = _originals[_async, "messages"](
            made[1] if made else self, *channels
        )
        return found

    def close(self: Any) -> None:
        for other in (*self.by_user.values(), self):
            _originals[_sync, "close"](other)

    async def close_async(self: Any) -> None:
        for other in (*self.by_user.values(), self):
            await _originals[_async, "close"](other)

    _sync.__init__, _sync.run, _sync.close = remember, run, close
    _async.__init__, _async.run, _async.messages, _async.close = remember, run_async, messages, close_async


def uninstall() -> None:
    """Leave the executors as they were."""
    for (kind, name), original in _originals.items():
        setattr(kind, name, original)


def _noted(user: str, call: RedisCall[Any]) -> None:
    commands, keys = needs(call)
    channels = [str(call.command[1])] if call.command[:1] == ("PUBLISH",) else []
    _record(user, commands, keys, channels)


def _told(user: str, call: RedisCall[Any], error: StoreUnavailable) -> None:
    if str(error) == REFUSED:
        what = call.script.name if call.script else str(call.command[0])
        refused.setdefault(user, set()).add(f"{what} {list(call.keys)[:3] or call.command[1:2]}")
