"""Enrolment: a device registers, proves itself with tokens that rotate, and is due for a probe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from shared.access import table as access
from shared.access.model import Account, AccountKind
from shared.access.secrets import token_hash
from shared.kernel.ids import AccountId, DeviceId, agent_device_id
from shared.pool.live import revoke_device
from shared.runtime.clock import new_id
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable
from shared.runtime.redis import SyncRedis
from shared.supply import table as devices
from shared.supply import tokens
from shared.supply.model import Consent, Device, Kind, Modem, Origin, Region
from shared.supply.rules import assign_region, slug


class EnrolFault(StrEnum):
    """Why a device is not enrolled or its token not renewed."""

    NAME_TAKEN = "this device id belongs to another account"
    REFRESH_INVALID = "the refresh token is not the current one"
    REFRESH_REUSED = "an older refresh token was used again; the device must register anew"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device and the tokens it goes on with."""

    device: Device
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
    regions: tuple[Region, ...]
    private_key: str
    now_ms: Callable[[], int]

    def register(
        self,
        account_id: AccountId,
        device_id: DeviceId,
        name: str,
        kind: Kind,
        address: str,
        consent: Consent | None,
        wallet: str | None,
    ) -> Enrolled | EnrolFault:
        """Enrol a device, or find it again. The address alone decides country, class and relay."""
        table = self.table("devices")
        refresh = new_id(24)
        known = self.dynamo.run(devices.find_name(table, account_id, name))
        found = self.dynamo.run(devices.get_device(table, known or device_id))
        if found is None:
            device = self._new(account_id, device_id, name, kind, address, consent, wallet, refresh)
            if self.dynamo.run(devices.create(table, device)) is None:
                return self._enrolled(device, refresh, created=True)
            known = self.dynamo.run(devices.find_name(table, account_id, name))
            found = self.dynamo.run(devices.get_device(table, known or device_id))
        if found is None or found.account_id != account_id:
            return EnrolFault.NAME_TAKEN
        return self._enrolled(self._renewed(found, address, consent, wallet, refresh), refresh, created=False)

    def _new(
        self,
        account_id: AccountId,
        device_id: DeviceId,
        name: str,
        kind: Kind,
        address: str,
        consent: Consent | None,
        wallet: str | None,
        refresh: str,
    ) -> Device:
        origin = self.origin(address)
        return Device(
            device_id=device_id,
            account_id=account_id,
            name=name,
            kind=kind,
            origin=origin,
            carrier=slug(origin.isp),
            region=assign_region(origin.country, self.regions).name,
            created_at_ms=self.now_ms(),
            consent=consent,
            wallet=wallet,
            refresh_hash=token_hash(refresh),
        )

    def _renewed(
        self, found: Device, address: str, consent: Consent | None, wallet: str | None, refresh: str
    ) -> Device:
        origin = self.origin(address)
        region = assign_region(origin.country, self.regions).name
        fields: dict[str, object] = {
            "refresh_hash": token_hash(refresh),
            "country": origin.country,
            "ip_type": origin.ip_type.value,
            "asn": origin.asn,
            "isp": origin.isp,
            "carrier": slug(origin.isp),
            "region": region,
        }
        if consent is not None:
            fields["consent"] = {
                "version": consent.terms_version,
                "method": consent.method,
                "at_ms": consent.accepted_at_ms,
            }
        if wallet and found.wallet is None:
            fields["wallet"] = wallet
        changed = self.dynamo.run(devices.change(self.table("devices"), found.device_id, fields))
        return changed or replace(found, origin=origin, region=region)

    def _enrolled(self, device: Device, refresh: str, *, created: bool) -> Enrolled:
        relays = tuple(region.url for region in self.regions)
        relay = next(r.url for r in self.regions if r.name == device.region)
        claims = tokens.Claims(device.device_id, device.account_id, device.generation)
        token = tokens.issue(claims, relays, self.private_key, self.now_ms() // 1000)
        return Enrolled(device, token, refresh, relay, relays, created)

    def refresh(self, device_id: DeviceId, refresh_token: str) -> Enrolled | EnrolFault:
        """The next token and refresh token. A spent one used again revokes the device: it was copied."""
        table = self.table("devices")
        spent, fresh = token_hash(refresh_token), new_id(24)
        changed = self.dynamo.run(devices.rotate_refresh(table, device_id, spent, token_hash(fresh)))
        if changed is not None:
            return self._enrolled(changed, fresh, created=False)
        device = self.dynamo.run(devices.get_device(table, device_id))
        if device is not None and device.spent_refresh_hash == spent:
            self._tell(self.dynamo.run(devices.revoke(table, device_id)))
            return EnrolFault.REFRESH_REUSED
        return EnrolFault.REFRESH_INVALID

    def add_modem(
        self,
        account_id: AccountId,
        name: str,
        origin: Origin,
        carrier: str,
        seal: Callable[[DeviceId], Modem],
    ) -> Device | EnrolFault:
        """A farm's modem, found again by its name; `seal` gives where it listens, sealed for its id."""
        table = self.table("devices")
        known = self.dynamo.run(devices.find_name(table, account_id, name))
        device_id = known or DeviceId(f"modem_{new_id()}")
        modem = seal(device_id)
        if known is not None:
            fields = {
                "modem": {
                    "host": modem.host,
                    "port": modem.port,
                    "credentials_sealed": modem.credentials_sealed,
                },
                "carrier": carrier,
            }
            changed = self.dynamo.run(devices.change(table, known, fields))
            return changed or EnrolFault.NAME_TAKEN
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
            consent=Consent("farm-agreement", "api", now),
            modem=modem,
        )
        return device if self.dynamo.run(devices.create(table, device)) is None else EnrolFault.NAME_TAKEN

    def wallet_account(self, wallet: str) -> AccountId:
        """The account of whoever registers with a wallet and no key."""
        account_id = AccountId("psx_w" + token_hash(wallet.lower())[:24])
        account = Account(account_id, AccountKind.WALLET, self.now_ms(), wallet)
        self.dynamo.run(access.put_account(self.table("access"), account))
        return account_id

    def _tell(self, revoked: Device | None) -> None:
        if revoked is None:
            return
        try:
            for call in revoke_device(revoked.device_id, revoked.generation):
                self.redis.run(call)
        except StoreUnavailable:
            return


def device_id_for(api_key: str, name: str) -> DeviceId:
    """The id of an agent that registers for the first time."""
    return agent_device_id(api_key, name)
