"""Shapes of the live settings, checked before one is written: a slip in a price must not reach a buyer. Pure."""

import re
from collections.abc import Mapping
from typing import Any, Final

PROMISE_S: Final = 3600
"""How long the terms hold that somebody was told: the life of a quote."""
CONFIRMATIONS_MAX: Final = 1000
BASIS_POINTS_MAX: Final = 1000
WHOLE_MAX: Final = 10**15
STEPS_MAX: Final = 20
RECIPIENTS_MAX: Final = 8
VALIDATED_MAX_MS: Final = 300_000
"""How long a validation holds. It is made each minute; the kill switch stops that, and what serves late payments."""
NOT_VALIDATED: Final = "not validated yet"
STALE: Final = f"not validated for {VALIDATED_MAX_MS // 60_000} minutes: the validation is stopped, or fails"
_CLASSES: Final = frozenset({"mobile", "residential", "datacenter", "unknown"})
_ADDRESS: Final = {
    "base": re.compile(r"0x[0-9a-fA-F]{40}"),
    "solana": re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}"),
}
_COMMITMENTS: Final = frozenset({"confirmed", "finalized"})


def setting_fault(name: str, value: Mapping[str, Any]) -> str | None:
    """What is wrong with a setting, naming the field; None when it may be written."""
    fault = _FAULTS.get(name)
    return fault(value) if fault else None


def sale_faults(found: Mapping[str, Any], now_ms: int) -> list[str]:
    """Why the sale is closed, from what the validation wrote last; empty while it is open."""
    if found.get("ok") is not True:
        return list(found.get("faults") or [NOT_VALIDATED])
    return [] if now_ms - found.get("at_ms", 0) <= VALIDATED_MAX_MS else [STALE]


def _rates_fault(value: Mapping[str, Any]) -> str | None:
    overrides = value.get("overrides", {})
    if not isinstance(overrides, Mapping) or not all(isinstance(o, Mapping) for o in overrides.values()):
        return "overrides: an object of accounts and their own rates"
    own = {f"overrides.{account}.": rates for account, rates in overrides.items()}
    plain = {kind: rate for kind, rate in value.items() if kind != "overrides"}
    missing = sorted(_CLASSES - plain.keys())
    if missing:
        return f"{missing[0]}: must be set: bytes of a class without a rate can be paid to nobody"
    for prefix, rates in {"": plain, **own}.items():
        for kind, rate in rates.items():
            if kind not in _CLASSES:
                return f"{prefix}{kind}: rates are for {', '.join(sorted(_CLASSES))}"
            if not _whole(rate, 0):
                return f"{prefix}{kind}: must be a whole number of micro-USDC per GB"
        merged = {**plain, **rates}
        if merged.get("unknown", 0) > min(merged.get("mobile", 0), merged.get("residential", 0)):
            return f"{prefix}unknown: must not exceed mobile or residential: that would invite lies"
    return None


def _terms_fault(value: Mapping[str, Any]) -> str | None:
    accepted = value.get("accepted")
    if not isinstance(accepted, list) or not all(isinstance(v, str) and v for v in accepted):
        return "accepted: a list of versions"
    return None if value.get("current") in accepted else "current: must be one of accepted"


def _wholesale_fault(value: Mapping[str, Any]) -> str | None:
    steps = value.get("steps")
    if not isinstance(steps, list) or not 0 < len(steps) <= STEPS_MAX:
        return f"steps: a list of 1 to {STEPS_MAX} pairs of GB and micro-USDC per GB"
    for step in steps:
        right = isinstance(step, list) and len(step) == 2 and _whole(step[0], 0) and _whole(step[1], 1)
        if not right:
            return "steps: each is a pair of whole numbers: from how many GB on, micro-USDC per GB"
    return None if any(step[0] == 0 for step in steps) else "steps: one begins at 0 GB"


def _recipients_fault(value: Mapping[str, Any]) -> str | None:
    """Shape only: that they are addresses with right checksums is validated by the function that knows chains."""
    for network, shape in _ADDRESS.items():
        rows = value.get(network)
        if not isinstance(rows, list) or not 0 < len(rows) <= RECIPIENTS_MAX:
            return f"{network}: 1 to {RECIPIENTS_MAX} addresses, the offered one first"
        if not all(isinstance(row, str) and shape.fullmatch(row) for row in rows):
            return f"{network}: not an address of that network"
    return None if value.keys() == _ADDRESS.keys() else f"only {', '.join(_ADDRESS)}"


def _prices_fault(value: Mapping[str, Any]) -> str | None:
    tiers = value.get("tiers")
    if not isinstance(tiers, Mapping) or value.get("default_tier") not in tiers:
        return "default_tier: must be one of tiers"
    ports = value.get("ports", {})
    if not isinstance(ports, Mapping) or not ports.keys() <= {"shared", "private"}:
        return "ports: shared, private or both"
    rows = {f"tiers.{t}": row for t, row in tiers.items()} | {f"ports.{t}": row for t, row in ports.items()}
    for name, row in rows.items():
        fault = _tier_fault(row)
        if fault:
            return f"{name}{fault}"
    if ports.keys() & tiers.keys() or "ip_type" in tiers[value["default_tier"]]:
        return "tiers: named otherwise than ports, and the default one without ip_type"
    for field in ("duration_default_s", "duration_max_s"):
        if not _whole(value.get(field), 1):
            return f"{field}: must be a whole number above 0"
    if not _whole(value.get("tolerance_bp"), 0) or value["tolerance_bp"] > BASIS_POINTS_MAX:
        return f"tolerance_bp: must be 0 to {BASIS_POINTS_MAX}"
    return None


def _tier_fault(row: object) -> str | None:
    if not isinstance(row, Mapping):
        return ": must be an object"
    for field in ("price_micro_per_gb", "min_bytes", "max_bytes"):
        if not _whole(row.get(field), 1):
            return f".{field}: must be a whole number above 0"
    if row["min_bytes"] > row["max_bytes"]:
        return ".min_bytes: must not exceed max_bytes"
    if row.get("ip_type", "mobile") not in {"mobile", "residential"}:
        return ".ip_type: mobile or residential, for a tier of peers"
    return None if isinstance(row.get("quality"), str) else ".quality: must be text"


def _confirmations_fault(value: Mapping[str, Any]) -> str | None:
    for network in ("base", "solana"):
        bands = value.get(network)
        if not isinstance(bands, list) or not bands or not all(isinstance(b, Mapping) for b in bands):
            return f"{network}: must be a list of bands"
        limits = [band.get("up_to_micro") for band in bands]
        if limits[-1] is not None or not all(_whole(limit, 1) for limit in limits[:-1]):
            return f"{network}.up_to_micro: whole numbers, and none in the last band"
        if limits[:-1] != sorted(set(limits[:-1])):
            return f"{network}.up_to_micro: must rise from band to band"
        for band in bands:
            deep = band.get("confirmations", 1)
            if not _whole(deep, 1) or deep > CONFIRMATIONS_MAX:
                return f"{network}.confirmations: 1 to {CONFIRMATIONS_MAX}"
            if not _whole(band.get("quorum", 1), 1):
                return f"{network}.quorum: a whole number above 0"
            if band.get("commitment", "confirmed") not in _COMMITMENTS:
                return f"{network}.commitment: {', '.join(sorted(_COMMITMENTS))}"
    return None


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= WHOLE_MAX


def _purchases_fault(value: Mapping[str, Any]) -> str | None:
    """What the synthetic customer may spend; 0 a day turns it off."""
    for field, least in (("each_micro", 1), ("day_micro", 0), ("every_s", 300)):
        if not _whole(value.get(field), least):
            return f"{field}: must be a whole number of {least} or more"
    return None if len(value) == 3 else "only each_micro, day_micro and every_s"


def _leases_fault(value: Mapping[str, Any]) -> str | None:
    """How many devices an account may reserve, how often each may be asked for another address, and how much of a country
    may be reserved."""
    for field, least in (("per_account", 0), ("rotations_per_hour", 1), ("share_percent", 1)):
        if not _whole(value.get(field), least):
            return f"{field}: must be a whole number of {least} or more"
    return None if len(value) == 3 else "only per_account, rotations_per_hour and share_percent"


_FAULTS: Final = {
    "leases": _leases_fault,
    "prices": _prices_fault,
    "confirmations": _confirmations_fault,
    "rates": _rates_fault,
    "terms": _terms_fault,
    "wholesale": _wholesale_fault,
    "recipients": _recipients_fault,
    "purchases": _purchases_fault,
}
