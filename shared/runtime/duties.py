"""How long a process runs: until it is told to stop, or a task breaks that it cannot do without. Such a break is a bug, and
the process must not go on half alive.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("psx.runtime")


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from here on. Of the running loop."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


class Duties:
    """Background tasks of a process; `stopping` is set when one breaks, so that the process drains and is started anew."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._tasks: list[asyncio.Task[None]] = []
        self.broken = False

    def start(self, *duties: Coroutine[Any, Any, None]) -> None:
        """Run them until `end`; one may return when there is nothing for it to do."""
        for duty in duties:
            task = asyncio.get_running_loop().create_task(duty)
            task.add_done_callback(self._over)
            self._tasks.append(task)

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("a background task broke, this process ends", exc_info=task.exception())
            self.broken = True
            self._stopping.set()

    async def end(self) -> None:
        """Cancel them all, and wait until they are gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
