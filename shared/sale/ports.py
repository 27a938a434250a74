"""Dedicated ports: the lease of a sold key, its device, and the free replacements when that device goes offline.

The row is the truth and is written by the transaction that mints the key; what gateways read is the hold in Redis, which
can be written again from the row at any time. Source: the v1 contract of `/v1/x402/proxy`; decision 0012.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

from shared.guard.model import AuditEvent
from shared.guard.service import write_audited
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool.ports import PortWish, could_hold, hold_port, is_held, is_listed, is_paused, let_go
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    Page,
    RunsDynamo,
    StoreUnavailable,
    TransactItem,
    get_item,
    key,
    query,
    transact_put,
    transact_update,
    update,
)
from shared.runtime.redis import RedisCall, SyncRedis
from shared.sale.model import Terms

REPLACEMENTS_MAX: Final = 3
PAGE: Final = 100
EXTENDABLE_MS: Final = 7 * 86_400_000
"""How long after its end a port stays in the list: its holder may still add time."""
RUN_EVERY_MS: Final = 60_000
_FIRSTS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
"""What comes after the "l" of a lease: a run begins at another one of them than the run before."""
_LISTED: Final = "ports"
PRIVATE: Final = "private"
DEVICE_WAIT_MS: Final = 3_600_000


class NoDevice(StoreUnavailable):
    """No device of that kind is free now. Who paid for one waits up to `DEVICE_WAIT_MS`."""


class NotReplaced(StrEnum):
    """Why a port keeps its device."""

    ONLINE = "DEVICE_IS_ONLINE"
    USED_UP = "REPLACEMENTS_USED_UP"
    NONE_FREE = "NO_DEVICE_FREE"
    CHANGED = "CHANGED_MEANWHILE"


@dataclass(frozen=True, slots=True)
class PortLease:
    """One dedicated port. `replaced` counts free replacements. A device is held for as long as the catalogue allows after
    it was last paid for (`paid_at_ms`): free time does not hold it for ever.
    """

    lease_id: str
    pak_id: PakId
    tier: str
    country: Country | None
    carrier: str
    city: str
    endpoint_id: EndpointId
    expires_at_ms: int
    replaced: int = 0
    paid_at_ms: int = 0

    @property
    def wish(self) -> PortWish:
        """What its device must be."""
        return PortWish(Pool.MBL, self.country, self.carrier, self.city, self.tier == PRIVATE)


def wish_of(terms: Terms) -> PortWish:
    """What the device of a port of these terms must be."""
    return PortWish(Pool.MBL, terms.country, terms.carrier, terms.city, terms.tier == PRIVATE)


@dataclass(frozen=True, slots=True)
class HeldAgain:
    """Holds that were put back, and what went wrong with others."""

    put_back: int
    faults: tuple[str, ...] = ()


def lease_items(table: str, lease: PortLease) -> list[TransactItem]:
    """A new port, for the transaction that mints its key; also in the list that lost holds are put back from."""
    return [
        transact_put(table, {"pk": f"port#{lease.lease_id}", "sk": "-", **asdict(lease)}),
        transact_put(table, {"pk": _LISTED, "sk": lease.lease_id}),
    ]


def listed_leases(table: str, limit: int, start: Any = None) -> DynamoRequest[Page[str]]:
    """Ports that are held, or were until a while ago."""

    def parse(row: Item) -> str:
        return str(row["sk"])

    return query(table, "pk = :pk", {":pk": _LISTED}, parse=parse, limit=limit, start=start)


def unlist_lease(table: str, lease_id: str) -> DynamoRequest[None]:
    """A port's time is over: nothing is held for it any more."""
    params = {"TableName": table, "Key": key(_LISTED, lease_id)}
    return DynamoRequest("delete_item", params, lambda _: None)


def place_lease(table: str, lease: PortLease, endpoint_id: EndpointId) -> DynamoRequest[PortLease | None]:
    """The device that a port is on; the holder has used up no replacement by it."""
    return update(
        table,
        f"port#{lease.lease_id}",
        "-",
        "SET endpoint_id = :new",
        {":new": endpoint_id, ":before": lease.replaced},
        parse=_read,
        condition="replaced = :before",
    )


def _read(row: Item) -> PortLease:
    known: dict[str, Any] = {"country": None} | {
        f.name: row[f.name] for f in fields(PortLease) if f.name in row
    }
    return PortLease(**known)


def get_lease(table: str, lease_id: str) -> DynamoRequest[PortLease | None]:
    """A port."""
    return get_item(table, f"port#{lease_id}", parse=_read)


def move_item(table: str, lease: PortLease, endpoint_id: EndpointId) -> TransactItem:
    """Another device, one replacement less; fails when that happened in the same moment."""
    return transact_update(
        table,
        f"port#{lease.lease_id}",
        "-",
        "SET endpoint_id = :new ADD replaced :one",
        {":new": endpoint_id, ":one": 1, ":before": lease.replaced},
        condition="replaced = :before",
    )


def extend_lease(
    table: str, lease_id: str, expires_at_ms: int, paid_at_ms: int
) -> DynamoRequest[PortLease | None]:
    """A later end, and when it was last paid for; None when there is no such port."""
    return update(
        table,
        f"port#{lease_id}",
        "-",
        "SET expires_at_ms = :at, paid_at_ms = :paid",
        {":at": expires_at_ms, ":paid": paid_at_ms},
        parse=_read,
        condition="attribute_exists(pk)",
    )


@dataclass(frozen=True, slots=True)
class Ports:
    """Stores of the ports."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: str
    audit: str
    house: AccountId
    now_ms: Callable[[], int]
    held_share_percent: Callable[[], int]
    """How much of a country's devices new ports and leases may hold alone; what was sold is held again whatever it is."""

    def is_free(self, terms: Terms) -> bool:
        """Whether a port of these terms would find a device now: what `hold` chooses by, and nothing is held."""
        return self.redis.run(could_hold(wish_of(terms), self.now_ms(), self.held_share_percent()))

    def hold(self, terms: Terms, pak_id: PakId, expires_at_ms: int) -> PortLease:
        """A device for a port that is about to be sold; the same one when asked again. Raises NoDevice."""
        endpoint_id = self.redis.run(
            hold_port(
                wish_of(terms),
                terms.lease_id,
                self.house,
                pak_id,
                expires_at_ms,
                self.now_ms(),
                share_percent=self.held_share_percent(),
            )
        )
        if endpoint_id is None:
            raise NoDevice("port: no device is free")
        return PortLease(
            terms.lease_id,
            pak_id,
            terms.tier,
            terms.country,
            terms.carrier,
            terms.city,
            endpoint_id,
            expires_at_ms,
            paid_at_ms=self.now_ms(),
        )

    def let_go(self, lease: PortLease) -> None:
        """It is not sold after all."""
        self.redis.run(let_go(lease.wish.pool, lease.lease_id))

    def abandon(self, lease_id: str) -> None:
        """What a sale that came to nothing may have held is free for others."""
        if self.find(lease_id) is None:
            self.redis.run(let_go(Pool.MBL, lease_id))

    def find(self, lease_id: str) -> PortLease | None:
        """A port by its lease."""
        return self.dynamo.run(get_lease(self.table, lease_id))

    def is_online(self, lease: PortLease) -> bool:
        """Whether its device is on sale and has no fault reported."""
        pool = lease.wish.pool
        return self.redis.run(is_listed(pool, lease.endpoint_id)) and not self.redis.run(
            is_paused(pool, lease.endpoint_id)
        )

    def extend(self, lease: PortLease, expires_at_ms: int, paid_at_ms: int | None = None) -> None:
        """A longer session holds its device longer; also puts a hold back that Redis lost."""
        paid_ms = lease.paid_at_ms if paid_at_ms is None else paid_at_ms
        self.dynamo.run(extend_lease(self.table, lease.lease_id, expires_at_ms, paid_ms))
        self.redis.run(self._hold(replace(lease, expires_at_ms=expires_at_ms)))

    def _hold(self, lease: PortLease, excluded: tuple[EndpointId, ...] = ()) -> RedisCall[EndpointId | None]:
        return hold_port(
            lease.wish,
            lease.lease_id,
            self.house,
            lease.pak_id,
            lease.expires_at_ms,
            self.now_ms(),
            excluded,
            first=lease.endpoint_id,
        )

    def hold_again(self, for_ms: int) -> HeldAgain:
        """Put back the holds that the live network lost, each on its own device unless that was sold meanwhile.

        A port whose device is not on sale fails closed until it is, or until its holder replaces it. After `for_ms` the
        rest is left to the next run, which begins elsewhere in the list. No port holds up another. Raises StoreUnavailable.
        """
        until_ms, put_back, faults = self.now_ms() + for_ms, 0, list[str]()
        for lease_id in self._listed(_FIRSTS[self.now_ms() // RUN_EVERY_MS % len(_FIRSTS)]):
            if self.now_ms() >= until_ms:
                return HeldAgain(put_back, (*faults, "ports: some are left to the next run"))
            try:
                put_back += self._hold_again(lease_id)
            except Exception as error:  # noqa: BLE001 - a fault of one port, whatever it is, is counted and told
                faults.append(f"port: {type(error).__name__}")
        return HeldAgain(put_back, tuple(faults))

    def _listed(self, first: str) -> Iterator[str]:
        """All ports, those from a letter on before the others."""
        passed, start = list[str](), None
        while True:
            page = self.dynamo.run(listed_leases(self.table, PAGE, start))
            passed += [lease_id for lease_id in page.rows if lease_id[1:2] < first]
            yield from (lease_id for lease_id in page.rows if lease_id[1:2] >= first)
            start = page.next_key
            if start is None:
                break
        yield from passed

    def _hold_again(self, lease_id: str) -> bool:
        lease = self.find(lease_id)
        if lease is None or lease.expires_at_ms + EXTENDABLE_MS <= self.now_ms():
            self.dynamo.run(unlist_lease(self.table, lease_id))
            return False
        pool = lease.wish.pool
        if lease.expires_at_ms <= self.now_ms() or self.redis.run(is_held(pool, lease_id)):
            return False
        if not self.redis.run(is_listed(pool, lease.endpoint_id)):
            return False
        found = self.redis.run(self._hold(lease))
        if found is not None and found != lease.endpoint_id:
            self.dynamo.run(place_lease(self.table, lease, found))
        return found is not None

    def replace(self, lease: PortLease) -> PortLease | NotReplaced:
        """Another device for one that went offline, free and at most `REPLACEMENTS_MAX` times."""
        if self.is_online(lease):
            return NotReplaced.ONLINE
        if lease.replaced >= REPLACEMENTS_MAX:
            return NotReplaced.USED_UP
        found = self.redis.run(self._hold(lease, excluded=(lease.endpoint_id,)))
        if found is None:
            return NotReplaced.NONE_FREE
        told = AuditEvent(f"pak#{lease.pak_id}", "port_replace", "x402", self.now_ms(), auth_method="session")
        if write_audited(self.dynamo, self.audit, told, [move_item(self.table, lease, found)]) is not None:
            return NotReplaced.CHANGED
        return self.find(lease.lease_id) or NotReplaced.CHANGED
