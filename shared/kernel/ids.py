"""Identifiers as distinct types, so that one cannot be passed for another."""

import hashlib
import re
from typing import Final, NewType

AccountId = NewType("AccountId", str)
"""`psx_<a-z0-9>`: an account, and the account part of a proxy username. Not secret."""
PakId = NewType("PakId", str)
"""Opaque id of a pool access key. Not secret; the key's secret is the proxy password."""
DeviceId = NewType("DeviceId", str)
"""`agent_<hex>` for agents, `modem_<hex>` for modems, else what an SDK device sent. Never a credential."""
EndpointId = NewType("EndpointId", str)
"""What selection chooses: today one endpoint per device, with the device's id."""
GatewayId = NewType("GatewayId", str)
RelayId = NewType("RelayId", str)
Country = NewType("Country", str)
"""ISO 3166-1 alpha-2, lower case; `zz` where the address tells nothing."""
UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01T00:00:00Z."""

UNKNOWN_COUNTRY: Final = Country("zz")
ACCOUNT_ID: Final = re.compile(r"psx_[a-z0-9]{1,64}")
PAK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
DEVICE_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")


def pin_id(device_id: str) -> str:
    """A device id as a proxy username can carry it: usernames are lower case and split at hyphens."""
    return re.sub(r"[^a-z0-9_]", "", device_id.lower())


def agent_device_id(api_key: str, name: str) -> DeviceId:
    """The id of the device that first registered as (key, name): the same pair gives the same id for ever."""
    return DeviceId("agent_" + hashlib.sha256(f"{api_key}:{name}".encode()).hexdigest()[:32])
