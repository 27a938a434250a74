"""Enrolment: a device registers, proves itself with tokens that rotate, and is told which relay to go to.

Each registration begins a family of refresh tokens. A spent token of a family that is shown again ends the family and every
token of the device: somebody copied it. Two machines with one identity have a family each; that is seen and told.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from shared.access import table as access
from shared.access.model import Account, AccountKind
from shared.access.secrets import token_hash
from shared.guard.model import AuditEvent
from shared.guard.service import run_audited, write_audited
from shared.kernel.ids import AccountId, DeviceId, agent_device_id
from shared.pool.presence import revoke_device
from shared.runtime.clock import new_id
from shared.runtime.dynamo import Conflict, Contended, RunsDynamo, StoreUnavailable
from shared.runtime.redis import SyncRedis
from shared.supply import owners, tokens
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Family, Kind, Modem, Origin, Owner, Receipt, Region
from shared.supply.rules import (
    COUNT_SHARDS,
    DEVICES_MAX,
    UNPROVEN_MAX,
    are_twins,
    assign_region,
    claimed_country,
    is_withdrawn,
    replaced_families,
    rotated,
    shard_cap,
    slug,
)

REGISTER_ATTEMPTS_MAX: Final = 3
CREATE_ATTEMPTS_MAX: Final = 8
REFRESH_ATTEMPTS_MAX: Final = 8
FAMILY_ID_BYTES: Final = 8
REFRESH_SECRET_BYTES: Final = 24
FIRST_ANSWER_LOST_MAX_MS: Final = 86_400_000
"""So long whoever began a device without an API key may ask for the first answer again."""
EVENT_ATTEMPTS: Final = 2
"""One for a stream that is new, one for that of a device which was forgotten and comes back."""


class EnrolFault(StrEnum):
    """Why a device is not enrolled or its token not renewed."""

    NAME_TAKEN = "this device id belongs to another account, or to another kind of device"
    DEVICE_LIMIT = f"this account has {DEVICES_MAX} devices, which is the most"
    UNPROVEN_LIMIT = (
        f"{UNPROVEN_MAX} devices of this account are not verified and never served; no more until some do"
    )
    CONSENT_WITHDRAWN = "consent was withdrawn for this device; its owner has to give it again"
    REFRESH_INVALID = "the refresh token is not known; the device must register"
    REFRESH_REUSED = "a spent refresh token was used again; the device must register anew"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Who registers, from where, and what they say. The address alone decides country, class and relay.

    `proven`: they showed the account's API key. A wallet is public: knowing one proves nothing. `attempt` is the device's
    own name for this registration, a secret: whoever began is known by it when the answer was lost. `event` is written in
    the same transaction, in the stream of the device that this turns out to be. `apart`: it asks for tokens of its own when
    its owner decides something, so those that its relays see shall decide nothing.
    """

    account_id: AccountId
    device_id: DeviceId
    name: str
    kind: Kind
    address: str
    proven: bool
    event: AuditEvent
    consent: Consent | None = None
    claimed_consent_ms: int = 0
    wallet: str | None = None
    claimed_country: str = ""
    attempt: str = ""
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device and the tokens it goes on with."""

    device: Device
    owner: Owner
    token: str
    refresh_token: str
    relay: str
    relays: tuple[str, ...]
    created: bool


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Registers devices; wired once."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: Callable[[str], str]
    origin: Callable[[str], Origin]
    regions: Callable[[], tuple[Region, ...]]
    private_key: str
    now_ms: Callable[[], int]

    def register(self, arrival: Arrival) -> Enrolled | EnrolFault:
        """Enrol a device, or find it again. Raises StoreUnavailable."""
        table = self.table("devices")
        owner = self.dynamo.run(owners.get_owner(table, arrival.account_id))
        for _ in range(REGISTER_ATTEMPTS_MAX):  # what was there may be forgotten in this moment
            found = self._by_name(arrival)
            if found is None:
                created = self._create(arrival, owner)
                if created is not None:
                    return created
                found = self._by_name(arrival) or self.dynamo.run(
                    devices.get_device(table, arrival.device_id)
                )
            if found is None:
                continue
            if found.account_id != arrival.account_id or found.kind is not arrival.kind:
                return EnrolFault.NAME_TAKEN
            again = self._again(found, arrival, owner)
            if again is not None:
                return again
        raise Contended("devices: contended")

    def knows(self, account_id: AccountId, name: str) -> bool:
        """Whether a device of this name has registered."""
        return self.dynamo.run(devices.find_name(self.table("devices"), account_id, name)) is not None

    def _by_name(self, arrival: Arrival) -> Device | None:
        table = self.table("devices")
        known = self.dynamo.run(devices.find_name(table, arrival.account_id, arrival.name))
        return None if known is None else self.dynamo.run(devices.get_device(table, known))

    def _create(self, arrival: Arrival, owner: Owner) -> Enrolled | EnrolFault | None:
        """A new device; None when its name or its id is taken, perhaps by another machine in this moment."""
        now = self.now_ms()
        family_id, refresh, family = self._family(owner, now, owned=True, apart=arrival.apart)
        origin = self.origin(arrival.address)
        device = Device(
            device_id=arrival.device_id,
            account_id=arrival.account_id,
            name=arrival.name,
            kind=arrival.kind,
            origin=origin,
            carrier=slug(origin.isp),
            region=assign_region(origin.country, self.regions()).name,
            created_at_ms=now,
            listing_wanted=owner.auto_list,
            listing_set_at_ms=now,
            consent=arrival.consent,
            wallet=arrival.wallet,
            claimed_country=claimed_country(arrival.claimed_country, origin),
            begun_with="" if arrival.proven else _begun_with(arrival),
            families={family_id: family},
        )
        fault = self._put_new(device, arrival)
        if fault is not None:
            return None if fault is EnrolFault.NAME_TAKEN else fault
        return self._enrolled(device, owner, family, refresh, created=True)

    def _put_new(self, device: Device, arrival: Arrival) -> EnrolFault | None:
        """Write a new device, its consent's receipt and the event that tells of both, within the caps of its account."""
        table, audit, receipt = self.table("devices"), self.table("audit"), _receipt(arrival)
        event = _event(arrival, device.device_id)
        kept = [owners.receipt_item(table, receipt, new_id())] if receipt is not None else []

        def write(placed: Device) -> Conflict | None:
            items = [*devices.creation(table, placed), *kept]
            return write_audited(self.dynamo, audit, event, items, begins=True, attempts=EVENT_ATTEMPTS)

        return self._counted(device, write)

    def _counted(self, device: Device, write: Callable[[Device], Conflict | None]) -> EnrolFault | None:
        """`write` a device into a shard of its account's counts that has room; None when it was written.

        NAME_TAKEN when something else than the counts stood against it. Raises StoreUnavailable.
        """
        shard = int(token_hash(device.device_id)[:8], 16) % COUNT_SHARDS
        for attempt in range(CREATE_ATTEMPTS_MAX):
            try:
                conflict = write(replace(device, shard=shard))
            except Contended:
                shard = (shard + 1) % COUNT_SHARDS
                continue
            if conflict is None:
                return None
            if set(conflict.failed) != {devices.COUNT_ITEM}:
                return EnrolFault.NAME_TAKEN
            counts = self.dynamo.run(devices.read_counts(self.table("devices"), device.account_id))
            room = _shards_with_room(counts)
            if not room:
                total = sum(count for count, _ in counts.values())
                return EnrolFault.DEVICE_LIMIT if total >= DEVICES_MAX else EnrolFault.UNPROVEN_LIMIT
            shard = room[attempt % len(room)]
        raise Contended("devices: contended")

    def _again(self, found: Device, arrival: Arrival, owner: Owner) -> Enrolled | EnrolFault | None:
        """A known device registers again: another family beside those that other machines may hold. None: it is gone.

        Whoever proves nothing may go on serving, and neither agrees nor decides in its owner's place.
        """
        if is_withdrawn(found, owner):
            return EnrolFault.CONSENT_WITHDRAWN
        fault = self._count_again(found)
        if fault is not None:
            return fault
        now = self.now_ms()
        repeats = bool(found.begun_with) and found.begun_with == _begun_with(arrival)
        owned = arrival.proven or (repeats and now - found.created_at_ms <= FIRST_ANSWER_LOST_MAX_MS)
        family_id, refresh, family = self._family(owner, now, owned=owned, apart=arrival.apart)
        fields = self._seen_at(arrival.address, arrival.claimed_country or found.claimed_country)
        given, receipt = arrival.consent if owned else None, None
        if given is not None and (
            found.consent is None or found.consent.terms_version != given.terms_version
        ):
            receipt = _receipt(replace(arrival, device_id=found.device_id))
            fields["consent"] = devices.consent_row(given)
        if arrival.wallet and found.wallet is None:
            fields["wallet"] = arrival.wallet
        replaced = replaced_families(found.families)
        table, event = self.table("devices"), _event(arrival, found.device_id)
        write = devices.begin_family(table, found.device_id, family_id, family, replaced, fields)
        kept = [owners.receipt_item(table, receipt, new_id())] if receipt is not None else []
        changed = run_audited(self.dynamo, self.table("audit"), event, write, kept)
        if changed is None:
            return None
        return self._enrolled(changed, owner, family, refresh)

    def _count_again(self, found: Device) -> EnrolFault | None:
        """A device whose place was released comes back within the caps; another machine may be first, which is as good."""
        if found.released_at_ms is None:
            return None
        table = self.table("devices")
        fault = self._counted(found, lambda placed: self.dynamo.run(devices.count_again(table, placed)))
        return None if fault is EnrolFault.NAME_TAKEN else fault

    def _family(self, owner: Owner, now: int, *, owned: bool, apart: bool) -> tuple[str, str, Family]:
        """(id, first refresh token, row) of a new family."""
        family_id = new_id(FAMILY_ID_BYTES)
        refresh = f"{family_id}.{new_id(REFRESH_SECRET_BYTES)}"
        return family_id, refresh, Family(token_hash(refresh), now, now, owner.generation, owned, apart=apart)

    def _seen_at(self, address: str, claimed: str) -> dict[str, Any]:
        """Fields that follow from the address a device calls from."""
        origin = self.origin(address)
        return {
            **devices.origin_row(origin),
            "carrier": slug(origin.isp),
            "region": assign_region(origin.country, self.regions()).name,
            "claimed_country": claimed_country(claimed, origin),
        }

    def _enrolled(
        self,
        device: Device,
        owner: Owner,
        family: Family,
        refresh: str,
        *,
        created: bool = False,
        for_owner: bool = False,
    ) -> Enrolled:
        regions = self.regions()
        relays = tuple(region.url for region in regions)
        relay = assign_region(device.origin.country, regions).url
        claims = tokens.Claims(
            device_id=device.device_id,
            account_id=device.account_id,
            generation=device.generation,
            account_generation=owner.generation,
            owned=family.owned,
            decides=for_owner or not family.apart,
            relays=relays,
        )
        audience = tokens.OWNER_AUDIENCE if for_owner else tokens.AUDIENCE
        token = tokens.issue(claims, self.private_key, self.now_ms() // 1000, audience)
        return Enrolled(device, owner, token, refresh, relay, relays, created)

    def refresh(
        self, device_id: DeviceId, refresh_token: str, address: str, *, for_owner: bool = False
    ) -> Enrolled | EnrolFault:
        """The next token and refresh token; for a lost answer another one. A token that was copied ends its family.

        `for_owner`: a token that only the API takes, and that decides what an owner's does.
        """
        table, family_id = self.table("devices"), refresh_token.partition(".")[0]
        fresh = f"{family_id}.{new_id(REFRESH_SECRET_BYTES)}"
        for _ in range(
            REFRESH_ATTEMPTS_MAX
        ):  # a condition that failed says nothing of the token: the row does
            device = self.dynamo.run(devices.get_device(table, device_id))
            if device is None or family_id not in device.families:
                return EnrolFault.REFRESH_INVALID
            owner = self.dynamo.run(owners.get_owner(table, device.account_id))
            held, now = device.families[family_id], self.now_ms()
            if held.refresh_hash == token_hash(fresh):  # written, and the store's answer was lost
                return self._enrolled(device, owner, held, fresh, for_owner=for_owner)
            renewed = rotated(held, token_hash(refresh_token), token_hash(fresh), now)
            if renewed is None:
                return self._reused(device_id, family_id)
            if held.account_generation < owner.generation:
                return EnrolFault.REFRESH_INVALID
            if is_withdrawn(device, owner):
                return EnrolFault.CONSENT_WITHDRAWN
            fields = self._seen_at(address, device.claimed_country)
            if are_twins(device.families, family_id):
                fields["twins_ms"] = now
            request = devices.rotate_refresh(table, device_id, family_id, renewed, held.refresh_hash, fields)
            changed = self.dynamo.run(request)
            if changed is not None:
                return self._enrolled(changed, owner, renewed, fresh, for_owner=for_owner)
        raise Contended("devices: contended")

    def _reused(self, device_id: DeviceId, family_id: str) -> EnrolFault:
        ended = self.dynamo.run(devices.end_family(self.table("devices"), device_id, family_id))
        with contextlib.suppress(StoreUnavailable):  # the listing run takes it off sale
            self.tell(ended)
        return EnrolFault.REFRESH_REUSED

    def add_modem(
        self,
        account_id: AccountId,
        name: str,
        origin: Origin,
        carrier: str,
        seal: Callable[[DeviceId], Modem],
        event: AuditEvent,
    ) -> Device | EnrolFault:
        """A farm's modem, found again by its name; `seal` gives where it listens, sealed for its id."""
        table = self.table("devices")
        known = self.dynamo.run(devices.find_name(table, account_id, name))
        device_id = known or DeviceId(f"modem_{new_id()}")
        modem = seal(device_id)
        if known is not None:
            held = self.dynamo.run(devices.get_device(table, known))
            if held is None or held.kind is not Kind.MODEM:
                return EnrolFault.NAME_TAKEN
            fields = {"modem": devices.modem_row(modem), "carrier": carrier, **devices.origin_row(origin)}
            change = devices.change(table, known, fields)
            return run_audited(self.dynamo, self.table("audit"), event, change) or EnrolFault.NAME_TAKEN
        now = self.now_ms()
        device = Device(
            device_id=device_id,
            account_id=account_id,
            name=name,
            kind=Kind.MODEM,
            origin=origin,
            carrier=carrier,
            region="",
            created_at_ms=now,
            listing_set_at_ms=now,
            consent=Consent("farm-agreement", "api", now),
            modem=modem,
        )

        def write(placed: Device) -> Conflict | None:
            items = devices.creation(table, placed)
            return write_audited(self.dynamo, self.table("audit"), event, items, attempts=EVENT_ATTEMPTS)

        return self._counted(device, write) or device

    def wallet_account(self, wallet: str) -> tuple[AccountId, bool]:
        """The account of whoever registers with a wallet and no key, and whether it is a new one."""
        account_id = AccountId("psx_w" + token_hash(wallet_key(wallet))[:24])
        account = Account(account_id, AccountKind.WALLET, self.now_ms(), wallet)
        return account_id, self.dynamo.run(access.put_account(self.table("access"), account))

    def tell(self, revoked: Device | None) -> None:
        """Make relays close the sockets of a device whose tokens ended. Raises StoreUnavailable: its sockets stand then,
        and serve nobody from the next listing run on.
        """
        if revoked is not None:
            for call in revoke_device(revoked.device_id, revoked.generation):
                self.redis.run(call)


def _begun_with(arrival: Arrival) -> str:
    return token_hash(f"attempt:{arrival.attempt}") if arrival.attempt else ""


def _event(arrival: Arrival, device_id: DeviceId) -> AuditEvent:
    return replace(arrival.event, stream=f"dev#{device_id}")


def _receipt(arrival: Arrival) -> Receipt | None:
    """The receipt of the consent that came with a registration, if any did."""
    consent = arrival.consent
    if consent is None:
        return None
    return Receipt(
        subject=f"dev#{arrival.device_id}",
        action="accepted",
        terms_version=consent.terms_version,
        method=consent.method,
        by=f"device {arrival.device_id}",
        at_ms=consent.accepted_at_ms,
        claimed_at_ms=arrival.claimed_consent_ms,
    )


def _shards_with_room(counts: Mapping[int, tuple[int, int]]) -> list[int]:
    """Shards that another device fits in, the emptiest first."""
    room = []
    for shard in range(COUNT_SHARDS):
        count, unproven = counts.get(shard, (0, 0))
        left = min(shard_cap(DEVICES_MAX, shard) - count, shard_cap(UNPROVEN_MAX, shard) - unproven)
        if left > 0:
            room.append((-left, shard))
    return [shard for _, shard in sorted(room)]


def wallet_key(wallet: str) -> str:
    """A wallet in one spelling: EVM addresses differ by letter case only for people."""
    return wallet.lower() if wallet.startswith("0x") else wallet


def device_id_for(api_key: str, name: str) -> DeviceId:
    """The id of an agent that registers for the first time."""
    return agent_device_id(api_key, name)
