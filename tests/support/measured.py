"""Counts covered lines only in tests that call `shared/` directly: elsewhere tracing costs as much as the tests themselves.

The gate (pyproject.toml) is therefore harder than it looks: what only a whole network reaches counts as not covered.
Nothing is traced inside requests of AWS clients either, by moto or not: a tracer is told of every line of theirs, and all
they call of ours is the reader of answers, which a test of its own calls.
"""

import sys
from collections.abc import Generator
from typing import Any, Final

import botocore.endpoint
import coverage
import pytest

FOLDERS: Final = ("tests/unit/", "tests/contract/", "tests/fuzz/")
FILES: Final = tuple(  # the sale is proven on real chain nodes, through its own function
    f"tests/integration/test_{name}.py"
    for name in (
        "binding",
        "exact",
        "exact_settling",
        "leases",
        "owed",
        "ports",
        "probe_dialer",
        "sale_function",
        "sale_rules",
    )
)

_paused: coverage.Coverage | None = None
_Endpoint: Any = botocore.endpoint.Endpoint
_make_request = _Endpoint.make_request


def _untraced_request(endpoint: Any, *args: Any, **kwargs: Any) -> Any:
    """A request of any AWS client. Coverage's tracer stops and goes on in this very frame: it counts calls and returns."""
    tracer: Any = sys.gettrace()
    if not hasattr(tracer, "stop"):
        return _make_request(endpoint, *args, **kwargs)
    tracer.stop()
    try:
        return _make_request(endpoint, *args, **kwargs)
    finally:
        tracer.start()


def pytest_configure() -> None:
    """From now on."""
    _Endpoint.make_request = _untraced_request


def pytest_unconfigure() -> None:
    """Leave the library as it was."""
    _Endpoint.make_request = _make_request


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
