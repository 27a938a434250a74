"""Shapes of the live settings, checked before one is written: a slip in a price must not reach a buyer. Pure."""

from collections.abc import Mapping
from typing import Any, Final

CONFIRMATIONS_MAX: Final = 1000
BASIS_POINTS_MAX: Final = 1000
_RATED: Final = ("mobile", "residential", "datacenter", "unknown")
_COMMITMENTS: Final = frozenset({"confirmed", "finalized"})


def setting_fault(name: str, value: Mapping[str, Any]) -> str | None:
    """What is wrong with a setting, naming the field; None when it may be written."""
    if name == "prices":
        return _prices_fault(value)
    if name == "confirmations":
        return _confirmations_fault(value)
    if name == "rates":
        return _rates_fault(value)
    if name == "terms":
        return _terms_fault(value)
    return None


def _rates_fault(value: Mapping[str, Any]) -> str | None:
    """Every class has a rate, and what nobody knows is never paid like a phone or a home: that would invite lies."""
    overrides = value.get("overrides", {})
    if not isinstance(overrides, Mapping) or not all(isinstance(o, Mapping) for o in overrides.values()):
        return "overrides: an object of account -> class -> rate"
    for where, rates in (
        ("", value),
        *((f"overrides.{account}.", {**value, **own}) for account, own in overrides.items()),
    ):
        for name in _RATED:
            if not _whole(rates.get(name), 0):
                return f"{where}{name}: must be whole micro-USDC per GB"
        if rates["unknown"] > min(rates["mobile"], rates["residential"]):
            return f"{where}unknown: must not exceed mobile or residential"
    return None


def _terms_fault(value: Mapping[str, Any]) -> str | None:
    accepted = value.get("accepted")
    if not isinstance(accepted, list) or not all(isinstance(v, str) and v for v in accepted):
        return "accepted: a list of versions"
    return None if value.get("current") in accepted else "current: must be one of accepted"


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
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
