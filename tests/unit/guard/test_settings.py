"""Live settings are refused before they can reach a buyer."""

import copy
from typing import Any

import pytest

from local.bootstrap import CONFIRMATIONS, PRICES, RATES
from shared.guard.settings import setting_fault


def test_the_settings_of_a_new_network_are_good() -> None:
    for name, value in (("prices", PRICES), ("confirmations", CONFIRMATIONS), ("rates", RATES)):
        assert setting_fault(name, value) is None


@pytest.mark.parametrize(
    ("name", "path", "value", "field"),
    [
        ("prices", ["default_tier"], "zzz", "default_tier"),
        ("prices", ["tiers"], [], "default_tier"),
        ("prices", ["tiers", "mbl"], 4, "tiers.mbl"),
        ("prices", ["tiers", "mbl", "price_micro_per_gb"], 0, "tiers.mbl.price_micro_per_gb"),
        ("prices", ["tiers", "mbl", "price_micro_per_gb"], "4", "tiers.mbl.price_micro_per_gb"),
        ("prices", ["tiers", "mbl", "min_bytes"], 10**18, "tiers.mbl.min_bytes"),
        ("prices", ["duration_max_s"], True, "duration_max_s"),
        ("prices", ["tolerance_bp"], 10_000, "tolerance_bp"),
        ("confirmations", ["base"], [], "base"),
        ("confirmations", ["base", 0, "up_to_micro"], None, "base.up_to_micro"),
        ("confirmations", ["base", 0, "up_to_micro"], 10**18, "base.up_to_micro"),
        ("confirmations", ["base", 2, "up_to_micro"], 5, "base.up_to_micro"),
        ("confirmations", ["base", 0, "confirmations"], 0, "base.confirmations"),
        ("confirmations", ["base", 0, "quorum"], 0, "base.quorum"),
        ("confirmations", ["solana", 0, "commitment"], "processed", "solana.commitment"),
    ],
)
def test_a_slip_is_named(name: str, path: list[Any], value: Any, field: str) -> None:
    altered: Any = copy.deepcopy(PRICES if name == "prices" else CONFIRMATIONS)
    inner = altered
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    fault = setting_fault(name, altered)
    assert fault is not None
    assert fault.startswith(f"{field}:")


@pytest.mark.parametrize("kind", ["mobile", "residential", "datacenter", "unknown"])
def test_every_class_has_a_rate(kind: str) -> None:
    fault = setting_fault("rates", {k: v for k, v in RATES.items() if k != kind})
    assert fault is not None
    assert fault.startswith(f"{kind}:")
    own = {"overrides": {"psx_vip": {"mobile": 2 * RATES["mobile"]}}}
    assert setting_fault("rates", {**RATES, **own}) is None
