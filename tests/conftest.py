"""Makes the shared fixtures known to every test; those of slow tests by `loaded`."""

import asyncio
import gc
import signal
from collections.abc import Iterator

import pytest

pytest_plugins = [
    "tests.support.examples",
    "tests.support.hung",
    "tests.support.lab",
    "tests.support.loaded",
    "tests.support.measured",
    "tests.support.order",
    "tests.support.permissions",
    "tests.support.stores",
]


# Chains and clouds load a quarter of a million objects that stay: looking through them as often as an empty process does
# took a third of the time of many tests.
gc.set_threshold(50_000, 10, 20)

# A shell that runs this in the background has SIGINT ignored, and programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _main_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Own the main thread's first loop: the async runner asks for one, puts its own there, and forgets to close it."""
    loop = asyncio.get_event_loop_policy().get_event_loop()
    yield loop
    loop.close()


@pytest.fixture(autouse=True)
def _thread_loop(_main_loop: asyncio.AbstractEventLoop) -> None:
    """Give the main thread its loop back: async tests leave it without one, and whoever asks then makes one."""
    policy = asyncio.get_event_loop_policy()
    if getattr(getattr(policy, "_local", None), "_loop", None) is None:
        asyncio.set_event_loop(_main_loop)
