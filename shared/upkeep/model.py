"""What the watchdog sees and says."""

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """What the watchdog tries, as a customer or as an auditor."""

    CONTROL = "control_target"
    API = "reseller_api"
    OWN_KEY = "own_key"
    HTTP = "http"
    SOCKS = "socks5"
    STICKY = "sticky"
    COUNTRY = "country"
    SUSPENDED = "suspended_key"
    BILLING = "billing"
    PURCHASE = "purchase"
    RELAY = "relay_port"
    RECIPIENTS = "recipients"
    SCHEDULES = "schedules"
    RECOVERY = "table_recovery"
    CERTIFICATE = "certificate"


class Scope(StrEnum):
    """How far a fault reaches. The widest that explains what was seen is told, and not its parts."""

    WATCHDOG = "watchdog"
    FLEET = "fleet"
    GATEWAY = "gateway"
    RELAY = "relay"
    COUNTRY = "country"
    SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class Observation:
    """One try: by which gateway, relay or in which country, as far as it concerns one."""

    check: Check
    ok: bool
    gateway: str = ""
    country: str = ""
    relay: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong; `name` tells which gateway, relay, country or setting."""

    scope: Scope
    check: Check
    name: str = ""
    detail: str = ""

    @property
    def key(self) -> str:
        """By which a finding of this run and one of the next are known to be one."""
        return f"{self.scope.value}.{self.check.value}.{self.name}"
