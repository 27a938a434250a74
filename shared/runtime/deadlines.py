"""Deadlines by the thousand: one timer for all of them, checked a few times a second.

A timer of its own for each connection and each wait costs as much as a system call, and nearly all are cancelled. These
run out up to `TICK_S` late, which is nothing beside the seconds they bound.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

TICK_S: Final = 0.25


def _nobody() -> None: ...


class Deadline:
    """One of them; `cancel` when what was waited for came."""

    __slots__ = ("_bucket", "callback")

    def __init__(self, callback: Callable[[], None], bucket: set[Deadline]) -> None:
        self.callback = callback
        self._bucket = bucket
        bucket.add(self)

    def cancel(self) -> None:
        """Let it pass, and let go of whoever it would have called. May be called again."""
        self._bucket.discard(self)
        self.callback = _nobody


class Deadlines:
    """All deadlines of one kind of work on one loop; no timer runs while there are none."""

    def __init__(self) -> None:
        self._buckets: defaultdict[int, set[Deadline]] = defaultdict(set)
        self._now_s: Callable[[], float] = time.monotonic
        self._timer: asyncio.TimerHandle | None = None

    def call_after(self, timeout_s: float, callback: Callable[[], None]) -> Deadline:
        """Call back once, after `timeout_s` or up to a tick later."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._now_s, self._timer = loop.time, loop.call_later(TICK_S, self._tick, loop)
        return Deadline(callback, self._buckets[int((self._now_s() + timeout_s) / TICK_S) + 1])

    def within(self, timeout_s: float) -> Within:
        """A bound on what the current task awaits: `with deadlines.within(5): ...` raises TimeoutError."""
        return Within(self, timeout_s)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = int(loop.time() / TICK_S)
        try:
            for number in sorted(n for n in self._buckets if n <= now):
                bucket = self._buckets[number]
                while bucket:  # one that runs out may cancel others
                    bucket.pop().callback()
                del self._buckets[number]
        finally:
            self._timer = loop.call_later(TICK_S, self._tick, loop) if self._buckets else None


class Within:
    """`asyncio.timeout` with these deadlines: the task is cancelled, and the cancellation becomes a TimeoutError."""

    __slots__ = ("_cancelling", "_deadline", "_deadlines", "_expired", "_task", "_timeout_s")

    def __init__(self, deadlines: Deadlines, timeout_s: float) -> None:
        self._deadlines = deadlines
        self._timeout_s = timeout_s
        self._expired = False

    def __enter__(self) -> Within:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be bound")
        self._task: asyncio.Task[Any] = task
        self._cancelling = task.cancelling()
        self._deadline = self._deadlines.call_after(self._timeout_s, self._expire)
        return self

    def reschedule(self, timeout_s: float) -> None:
        """Bound what follows by so much from now."""
        self._deadline.cancel()
        self._deadline = self._deadlines.call_after(timeout_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.cancel()
        own = self._expired and self._task.uncancel() <= self._cancelling
        if own and kind is asyncio.CancelledError:
            raise TimeoutError from error
