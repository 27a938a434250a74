"""Where devices are: on which relay, which relays live, whose tokens ended, and what operators tell relays.

A device is where it came to last, and nowhere once its relay is silent. What may be sold of it is in `live.py`.
Key table: docs/architecture.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, RelayId, pin_id
from shared.pool.model import PRESENCE_TTL_S, Presence
from shared.runtime.redis import RedisCall, Script, command, ok, text_map

REVOKE_DEVICE: Final = "revoke:dev"
REVOKE_ACCOUNT: Final = "revoke:acct"
MOVE_PEERS: Final = "move:relay"
REVOKED_TTL_S: Final = 2 * 3600
RELAY_BEAT_S: Final = 1.0
RELAY_ALIVE_TTL_MS: Final = 4_000
"""A relay that is lost takes its devices out of the pool within this time."""

_PREFIX: Final = f"{{{Pool.PEER.value}}}:"
_MAY_SERVE: Final = f"{_PREFIX}may_serve"
_RENEW_PRESENCE: Final = Script.load("shared.pool", "renew_presence")
_PUT_PRESENCE: Final = Script.load("shared.pool", "put_presence")
_DROP_PRESENCE: Final = Script.load("shared.pool", "drop_presence")
_PRESENCES: Final = Script.load("shared.pool", "presences", reads=True)
_BEAT_RELAY: Final = Script.load("shared.pool", "beat_relay")


class RevokedBelow(NamedTuple):
    """Generations below which tokens of a device, and of all devices of its account, are revoked: 0 is none."""

    device: int
    account: int


class Arrival(NamedTuple):
    """A device that is on a relay, with the generations of its token, and whether who holds it showed that it is theirs."""

    presence: Presence
    generation: int = 0
    account_generation: int = 0
    owned: bool = True


def put_presence(
    presence: Presence, generation: int = 0, account_generation: int = 0
) -> RedisCall[RevokedBelow]:
    """The same for one device."""
    asked = put_presences(presence.relay_id, [Arrival(presence, generation, account_generation)])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def put_presences(relay_id: RelayId, arrivals: Sequence[Arrival]) -> RedisCall[list[RevokedBelow]]:
    """Devices are on a relay; run again before `PRESENCE_TTL_S` is over. The relay that a device came to last wins, but a
    stranger's never against the owner's (decision 0033).

    Answers for each which generations are revoked; where its own is one of them nothing is written.
    """
    keys: list[str] = []
    args: list[str | int] = [PRESENCE_TTL_S, relay_id, 0]
    for arrival in arrivals:
        args += _arrival(arrival)
        keys.append(f"{_PREFIX}live:{arrival.presence.device_id}")
    args[2] = (len(args) - 3) // len(arrivals)
    return RedisCall(
        lambda answer: [RevokedBelow(int(told[1]), int(told[2])) for told in answer],
        script=_PUT_PRESENCE,
        keys=keys,
        args=args,
    )


def _other_keys(presence: Presence) -> tuple[str, str, str]:
    """Where it stands what of a device, and of its account, is revoked, and what pins call it by."""
    device_id = presence.device_id
    alias = pin_id(device_id)
    pin = (
        f"{_PREFIX}pin:{presence.account_id}:{alias}" if alias != device_id else f"{_PREFIX}live:{device_id}"
    )
    return _revoked_key(device_id), _revoked_account_key(presence.account_id), pin


def _arrival(arrival: Arrival) -> tuple[str | int, ...]:
    presence = arrival.presence
    return (
        presence.connected_at_ms, arrival.generation, arrival.account_generation,
        *_other_keys(presence), int(arrival.owned), presence.device_id,
        "owned", int(arrival.owned),
        "account_id", presence.account_id,
        "relay_id", presence.relay_id,
        "mesh_host", presence.mesh_host,
        "mesh_port", presence.mesh_port,
        "protocol", presence.protocol,
        "ip", presence.ip,
        "country", presence.country,
        "ip_type", presence.ip_type.value,
        "asn", presence.asn,
        "isp", presence.isp,
        "connected_at_ms", presence.connected_at_ms,
        "relay_life", presence.relay_life,
        "generation", arrival.generation,
        "account_generation", arrival.account_generation,
    )  # fmt: skip


def renew_presence(device_ids: Sequence[DeviceId], relay_id: RelayId) -> RedisCall[list[bool]]:
    """Devices are still on this relay. False for each that Redis has forgotten, or has elsewhere: put it again."""
    keys = [f"{_PREFIX}live:{device_id}" for device_id in device_ids]
    return RedisCall(
        lambda answer: [bool(kept) for kept in answer],
        script=_RENEW_PRESENCE,
        keys=keys,
        args=[relay_id, PRESENCE_TTL_S],
    )


def _revoked_key(device_id: DeviceId) -> str:
    return f"{_PREFIX}revoked:{device_id}"


def _revoked_account_key(account_id: AccountId) -> str:
    return f"{_PREFIX}revoked-account:{account_id}"


def drop_presences(device_ids: Sequence[DeviceId], relay_id: RelayId) -> RedisCall[list[bool]]:
    """Devices left this relay. False for each that is on another one by now, and stays."""
    keys = [f"{_PREFIX}live:{device_id}" for device_id in device_ids]
    return RedisCall(
        lambda answer: [bool(dropped) for dropped in answer],
        script=_DROP_PRESENCE,
        keys=keys,
        args=[relay_id],
    )


def beat_relay(relay_id: RelayId, life: str) -> RedisCall[bool]:
    """A relay lives, in this life of it. False when Redis did not know that: it is new there, or everything was lost."""
    key = f"{_PREFIX}relay:{relay_id}"
    return RedisCall(bool, script=_BEAT_RELAY, keys=[key], args=[life, RELAY_ALIVE_TTL_MS])


def read_presence(device_id: DeviceId) -> RedisCall[Presence | None]:
    """Where a device is now; None when it is on no relay that lives."""
    asked = read_presences([device_id])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def read_presences(device_ids: Sequence[DeviceId]) -> RedisCall[list[Presence | None]]:
    """Where devices are now, in their order; None for one that is on no relay that lives."""

    def parse(answer: Any) -> list[Presence | None]:
        return [_presence(d, text_map(row)) for d, row in zip(device_ids, answer, strict=True)]

    keys = [f"{_PREFIX}live:{device_id}" for device_id in device_ids]
    return RedisCall(parse, script=_PRESENCES, keys=keys, args=[_PREFIX])


def _presence(device_id: DeviceId, row: Mapping[str, str]) -> Presence | None:
    if "relay_id" not in row:
        return None
    return Presence(
        device_id=device_id,
        account_id=AccountId(row["account_id"]),
        relay_id=RelayId(row["relay_id"]),
        mesh_host=row["mesh_host"],
        mesh_port=int(row["mesh_port"]),
        protocol=row["protocol"],
        ip=row["ip"],
        country=Country(row["country"]),
        ip_type=IpType(row["ip_type"]),
        asn=int(row["asn"]),
        isp=row["isp"],
        connected_at_ms=int(row["connected_at_ms"]),
        relay_life=row.get("relay_life", ""),
        generation=int(row.get("generation", "0")),
        account_generation=int(row.get("account_generation", "0")),
    )


def may_serve(device_ids: Sequence[DeviceId]) -> RedisCall[list[bool]]:
    """Whether these peers may serve their owners by pin, in their order: also while they are not on sale."""
    return command("SMISMEMBER", _MAY_SERVE, *device_ids, parse=lambda a: [bool(may) for may in a])


def put_may_serve(device_ids: Sequence[DeviceId]) -> RedisCall[None]:
    """These may."""
    return command("SADD", _MAY_SERVE, *device_ids, parse=ok)


def drop_may_serve(device_ids: Sequence[DeviceId]) -> RedisCall[None]:
    """These may not."""
    return command("SREM", _MAY_SERVE, *device_ids, parse=ok)


# Orders to relays


def revoke_device(device_id: DeviceId, generation: int) -> Sequence[RedisCall[None]]:
    """A device's tokens before `generation` ended: keep that for as long as such a token lives, and tell every relay."""
    return (
        command("SET", _revoked_key(device_id), generation, "EX", REVOKED_TTL_S, parse=ok),
        command("PUBLISH", REVOKE_DEVICE, f"{device_id} {generation}", parse=ok),
    )


def revoke_account(account_id: AccountId, generation: int) -> Sequence[RedisCall[None]]:
    """The same for every device of an account at once."""
    return (
        command("SET", _revoked_account_key(account_id), generation, "EX", REVOKED_TTL_S, parse=ok),
        command("PUBLISH", REVOKE_ACCOUNT, f"{account_id} {generation}", parse=ok),
    )


def publish_move(relay_id: RelayId, url: str) -> RedisCall[None]:
    """An operator's wish: every peer of a relay that follows redirects goes to another one."""
    return command("PUBLISH", MOVE_PEERS, f"{relay_id} {url}", parse=ok)
