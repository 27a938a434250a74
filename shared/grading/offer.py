"""What a device would be sold as, and what is known of it when that is decided. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.grading.model import Grade, ProbeResult
from shared.grading.rules import Listing, stability_score
from shared.kernel.codes import IpType
from shared.kernel.ids import EndpointId
from shared.pool.model import Endpoint, Presence
from shared.supply.model import Device
from shared.supply.rules import network_of, override_for

STABILITY_STEP: Final = 10
"""Scores are sold in steps, because one that fades a little every hour is no change."""


def exits_from(latest: ProbeResult) -> str:
    """The network that an exit was seen in, as crowds are counted; empty where nobody saw it."""
    return f"exit:{latest.exit_network}" if latest.exit_network else ""


@dataclass(frozen=True, slots=True)
class Classes:
    """What decides the class of an exit beside its probe: home networks that are none, unless an operator has spoken.

    What an operator says of the exit's own address is in the probe's result already. The address that a device connects
    from is no proof of where it exits: crowds are counted by both, and a word on that one can only clear its own.
    """

    overrides: Mapping[str, Any]
    crowded: frozenset[str] = frozenset()

    def of(self, grade: Grade, presence: Presence | None) -> IpType:
        """The class that is sold and paid. An exit that no probe has seen is unknown."""
        latest = grade.latest
        seen = latest.exit_ip_type if latest else IpType.UNKNOWN
        if latest is not None and seen is IpType.RESIDENTIAL and exits_from(latest) in self.crowded:
            return IpType.UNKNOWN
        if seen is not IpType.RESIDENTIAL or presence is None or network_of(presence.ip) not in self.crowded:
            return seen
        cleared = override_for(self.overrides, presence.ip, presence.asn) is not None
        return seen if cleared else IpType.UNKNOWN


@dataclass(frozen=True, slots=True)
class Looked:
    """A device with all that decides on its listing, and the decision."""

    device: Device
    grade: Grade | None
    presence: Presence | None
    verdict: Listing
    may_serve: bool = False


def facts_of(looked: Looked) -> list[str]:
    """What a device is counted as."""
    grade = looked.grade
    facts = ["devices", f"verdict.{looked.verdict.value}", f"tier.{grade.tier.value if grade else 'unknown'}"]
    return [*facts, "quarantined"] if grade is not None and grade.quarantined else facts


def endpoint_of(device: Device, grade: Grade, ip_type: IpType) -> Endpoint:
    """A device as selection sees it: what the probes saw of its exit, and nothing that it registered with."""
    latest, modem = grade.latest, device.modem
    score = stability_score(grade.stability)
    return Endpoint(
        endpoint_id=EndpointId(device.device_id),
        pool=device.pool,
        account_id=device.account_id,
        country=latest.exit_country if latest else device.origin.country,
        carrier=device.carrier,
        asn=latest.exit_asn if latest else 0,
        isp=latest.exit_isp if latest else "",
        ip_type=ip_type,
        tier=grade.tier,
        modem_host=modem.host if modem else "",
        modem_port=modem.port if modem else 0,
        modem_credentials_sealed=modem.credentials_sealed if modem else "",
        stability=None if score is None else score // STABILITY_STEP * STABILITY_STEP,
    )
