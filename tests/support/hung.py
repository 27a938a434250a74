"""Tells where a test hangs, before its time is up and the process is ended without a word.

The time limit ends the process (a loop in C cannot be interrupted by a signal), and a parallel worker's last words are
lost with it. So a while earlier the stacks of all threads, and of every task of every loop, go to the real standard error.
"""

import asyncio
import faulthandler
import gc
import os
import threading
from collections.abc import Generator
from typing import TextIO

import pytest

TELL_BEFORE_END_S = 10

_stderr: TextIO | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error: while tests run, output is captured."""
    global _stderr  # noqa: PLW0603
    _stderr = os.fdopen(os.dup(2), "w")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch one test."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0]) if marker and marker.args else float(item.config.getini("timeout"))
    timer = threading.Timer(max(limit_s - TELL_BEFORE_END_S, 1), _tell, [item.nodeid])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def _tell(nodeid: str) -> None:
    if _stderr is None:
        return
    print(f"\n{nodeid} hangs:", file=_stderr, flush=True)
    faulthandler.dump_traceback(_stderr, all_threads=True)
    for loop in (o for o in gc.get_objects() if isinstance(o, asyncio.AbstractEventLoop) and o.is_running()):
        for task in asyncio.all_tasks(loop):
            task.print_stack(file=_stderr)
    _stderr.flush()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what `pytest_configure` opened."""
    if _stderr is not None:
        _stderr.close()
