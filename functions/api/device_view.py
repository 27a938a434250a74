"""What is told of a device: its class and rate as they are paid, whether it is connected, verified and on sale."""

from typing import Any, Final

from functions.api.desk import Desk
from functions.http import ProblemError
from shared.grading.conduct import ADVICE as CONDUCT_ADVICE
from shared.grading.conduct import CHECK, is_barred
from shared.grading.live import next_probe
from shared.grading.model import PROBE_MODE, Grade
from shared.grading.offer import Classes, exits_from
from shared.grading.rules import ADVICE, exit_was_seen, is_verified, stability_score
from shared.grading.table import get_grade
from shared.kernel.codes import IpType
from shared.kernel.ids import pin_id
from shared.kernel.traffic import traffic_unit
from shared.pool.model import Presence
from shared.pool.presence import read_presence
from shared.runtime.clock import now_ms
from shared.settlement.rules import RateMissing, rate_for
from shared.supply.live import read_crowded
from shared.supply.model import Device, Kind, Owner
from shared.supply.owners import get_owner
from shared.supply.rules import (
    TERMS,
    TWINS_TOLD_MS,
    has_consent,
    network_of,
    override_for,
    wallet_now,
    wants_listing,
)
from shared.supply.tokens import TOKEN_LIFE_S

MICRO_PER_USDC: Final = 1_000_000
IN_USE_MS: Final = 2 * TOKEN_LIFE_S * 1000


class DeviceView(Desk):
    """Reads what is needed and puts it into words."""

    table_name = "devices"

    def owner(self, device: Device) -> Owner:
        """What the device's owner decided."""
        return self.w.dynamo.run(get_owner(self.table, device.account_id))

    def grade(self, device: Device) -> Grade | None:
        """What probes add up to."""
        return self.w.dynamo.run(get_grade(self.w.settings.table("grades"), device.device_id))

    def presence(self, device: Device) -> Presence | None:
        """Where the device is connected; modems are not."""
        return None if device.kind is Kind.MODEM else self.w.redis.run(read_presence(device.device_id))

    def consented(self, device: Device, owner: Owner) -> bool:
        """Whether the device may serve."""
        return has_consent(device, owner, self.w.live.get("terms") or TERMS)

    def ip_type(self, device: Device) -> IpType:
        """The class that the device is paid as: of its probed exit, or of its address before the first probe."""
        return self._class_of(device, self.grade(device), self.presence(device))

    def _class_of(self, device: Device, grade: Grade | None, presence: Presence | None) -> IpType:
        overrides = self.w.live.get("ip_classes")
        if grade is not None and exit_was_seen(grade):
            return Classes(overrides, self.w.redis.run(read_crowded())).of(grade, presence)
        said = override_for(overrides, presence.ip if presence else "", device.origin.asn)
        return said or device.origin.ip_type

    def rate(self, device: Device, ip_type: IpType) -> int:
        """What a class earns this owner now, in micro-USDC per GB; 503 while nobody has set rates."""
        try:
            return rate_for(self.w.live.get("rates"), ip_type, device.account_id)
        except RateMissing:
            raise ProblemError(503, "RATES_NOT_SET", "rates are not set yet; please retry later") from None

    def status(self, device: Device) -> dict[str, Any]:
        """Whether a device is connected, verified and on sale, and what to do if not."""
        grade, presence, owner = self.grade(device), self.presence(device), self.owner(device)
        ip_type = self._class_of(device, grade, presence)
        now = now_ms()
        return {
            "deviceId": device.device_id,
            "pinId": pin_id(device.device_id),
            "name": device.name,
            "online": device.kind is Kind.MODEM or presence is not None,
            "verified": is_verified(grade),
            "listed": bool(grade and grade.listed),
            "listingReason": grade.reason if grade else "not_probed",
            "listingWanted": wants_listing(device, owner),
            "consentRecorded": self.consented(device, owner),
            "speedTier": grade.tier.value if grade else "unknown",
            "ipType": ip_type.value,
            "country": device.origin.country.upper(),
            "claimedCountry": device.claimed_country.upper() or None,
            "earningsPerGB": self.rate(device, ip_type) / MICRO_PER_USDC,
            "trafficUnit": traffic_unit(),
            "proven": device.proven_at_ms is not None,
            "registrationsInUse": sum(now - f.used_at_ms < IN_USE_MS for f in device.families.values()),
            "flags": self._flags(device, presence, grade, now),
            **wallet_facts(device, now),
            "probe": _probe(grade),
            "verification": self._verification(device, grade),
        }

    def _verification(self, device: Device, grade: Grade | None) -> dict[str, Any]:
        """The failing check, when the next probe comes (null: when the device is back), and what its owner can do."""
        latest = grade.latest if grade else None
        failure = latest.failure if latest else None
        barred = grade is not None and is_barred(grade.bar, now_ms())
        return {
            "failingCheck": failure.phase.value if failure else CHECK if barred else None,
            "whatToDo": ADVICE[failure] if failure else CONDUCT_ADVICE if barred else None,
            "offSaleUntil": grade.bar.until_ms if grade and barred else None,
            "nextProbeAt": self.w.redis.run(next_probe(device.device_id)),
            "consecutivePasses": grade.passes if grade else 0,
            "consecutiveFailures": grade.failures if grade else 0,
            "seenFrom": list(grade.vantages) if grade else [],
            "quarantined": bool(grade and grade.quarantined),
            "stabilityScore": stability_score(grade.stability) if grade else None,
            "exitDiffersIn": [name for name in (latest.differs if latest else "").split(",") if name],
        }

    def _flags(self, device: Device, presence: Presence | None, grade: Grade | None, now: int) -> list[str]:
        flags = []
        if device.twins_at_ms is not None and now - device.twins_at_ms < TWINS_TOLD_MS:
            flags.append("identity_used_by_two_machines")
        networks = {network_of(presence.ip)} if presence is not None else set()
        if grade is not None and grade.latest is not None:
            networks.add(exits_from(grade.latest))
        crowded = self.w.redis.run(read_crowded())
        if networks & crowded:
            flags.append("crowded_network")
        return flags


def wallet_facts(device: Device, now: int) -> dict[str, Any]:
    """The wallet that is paid to now, and the one that will replace it, with when."""
    pending = device.pending_wallet
    waits = pending is not None and pending.from_ms > now
    return {
        "walletAddress": wallet_now(device, now),
        "pendingWalletAddress": pending.wallet if pending and waits else None,
        "walletChangesAt": pending.from_ms if pending and waits else None,
    }


def _probe(grade: Grade | None) -> dict[str, Any] | None:
    latest = grade.latest if grade else None
    if latest is None:
        return None
    return {
        "probeMode": PROBE_MODE,
        "at": latest.at_ms,
        "failureReason": latest.failure.value if latest.failure else None,
        "connectMs": latest.connect_ms,
        "tlsHandshakeMs": latest.tls_handshake_ms,
        "ttfbMs": latest.ttfb_ms,
        "throughputKBps": latest.throughput_kbps,
    }
