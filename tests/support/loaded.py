"""Loads what a run needs and nothing else: imports cost seconds, and every parallel worker pays them.

A run of the fast tests alone (`./psx test --fast`) reads no file that is slow as a whole, and loads no fixture of a chain,
a network or a cloud.
"""

import re
from pathlib import Path
from typing import Final

import pytest

FAST: Final = "not slow"
SLOW_FILE: Final = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)
OF_SLOW_TESTS: Final = tuple(
    f"tests.support.{name}"
    for name in ("chain", "cloud", "dataplane", "functions", "gateway", "packages", "solana", "tenants")
)

pytest.register_assert_rewrite(*OF_SLOW_TESTS)  # they import one another


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures of slow tests where such tests run; and where coverage is counted, in the process that hands
    out: workers begin to count when they have loaded these, so that what they import would be missing.
    """
    hands_out = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
    if config.option.markexpr != FAST and (not hands_out or config.getoption("cov_source", None)):
        for name in OF_SLOW_TESTS:
            config.pluginmanager.import_plugin(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a file alone in which every test would be deselected."""
    if config.option.markexpr != FAST or collection_path.suffix != ".py":
        return None
    return bool(SLOW_FILE.search(collection_path.read_text("utf-8"))) or None
