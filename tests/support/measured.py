"""Counts covered lines only in tests that call `shared/` directly: elsewhere tracing costs as much as the tests themselves.

The gate (pyproject.toml) is therefore harder than it looks: what only a whole network reaches counts as not covered.
"""

from collections.abc import Generator
from typing import Final

import coverage
import pytest

FOLDERS: Final = ("tests/unit/", "tests/contract/", "tests/fuzz/")
FILES: Final = tuple(  # the sale is proven on real chain nodes, through its own function
    f"tests/integration/test_{name}.py"
    for name in (
        "binding",
        "exact",
        "leases",
        "owed",
        "ports",
        "probe_dialer",
        "sale_function",
        "sale_rules",
    )
)

_paused: coverage.Coverage | None = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Pause or go on, where the kind of test changes."""
    global _paused  # noqa: PLW0603
    measured = item.nodeid.startswith((*FOLDERS, *FILES))
    if measured and _paused is not None:
        _paused.start()
        _paused = None
    elif not measured and _paused is None and (running := coverage.Coverage.current()) is not None:
        running.stop()
        _paused = running
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Whoever started the measuring ends it; it must find it running."""
    global _paused  # noqa: PLW0603
    if _paused is not None:
        _paused.start()
        _paused = None
