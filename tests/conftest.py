"""Makes the shared fixtures known to every test."""

import asyncio
from collections.abc import Iterator

import pytest

pytest_plugins = [
    "tests.support.stores",
    "tests.support.lab",
    "tests.support.chain",
    "tests.support.dataplane",
    "tests.support.gateway",
]


@pytest.fixture(scope="session", autouse=True)
def _thread_loop() -> Iterator[None]:
    """Own the main thread's loop: the async runner asks for one, puts its own there, and forgets to close the first."""
    loop = asyncio.get_event_loop_policy().get_event_loop()
    yield
    loop.close()
