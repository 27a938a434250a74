"""Long transfers inside the kernel: bytes go from one socket to another through a pipe and never come here.

Copying through this process costs more than twice as much per byte. Descriptors are duplicates: the transports keep theirs,
and take over again when the source ends. An error is told only once by a socket, so it is told on. The pipe is filled only
when it is empty, so at most `PIPE_BYTES` are under way, and what has not left it is not counted.
Source: splice(2), pipe(7), epoll(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from collections.abc import Callable
from enum import StrEnum
from typing import Final

AFTER_BYTES: Final = 256 * 1024
"""A tunnel that carried so much will probably carry more; it costs four descriptors and some ten system calls to begin."""
PIPE_BYTES: Final = 512 * 1024
"""What an overdraft may be counts on it (decision 0009). Half of it costs the CPU of copying, measured."""
PIPE_LEAST_BYTES: Final = 64 * 1024
"""Beyond a user's share of pipes (`fs.pipe-user-pages-soft`) new ones hold two pages: copying is cheaper than that."""
AT_ONCE_MAX: Final = 1000
"""So many at once in one process; the others are copied."""
EVENTS_MAX: Final = 64
"""Handled before the loop has its turn again."""
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Over(StrEnum):
    """Why a splice is over."""

    SOURCE_ENDED = "source_ended"
    SOURCE_FAILED = "source_failed"
    SINK_FAILED = "sink_failed"


class Splices:
    """All splices of a process. They wait on an epoll of their own, which the loop watches while there are any: a poller
    of uvloop's tells nobody when its socket was reset."""

    def __init__(self) -> None:
        self._watched: dict[int, Splice] = {}
        self._epoll: select.epoll | None = None
        self.open_count = 0

    def begin(
        self, source: int, sink: int, moved: Callable[[int], None], over: Callable[[Over], None]
    ) -> Splice:
        """Raises OSError when there are no descriptors or pipes left, or too many splices already."""
        if self.open_count >= AT_ONCE_MAX:
            raise OSError("too many splices")
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready, self._epoll)
        self.open_count += 1
        try:
            return Splice(self, source, sink, moved, over)
        except OSError:
            self.ended()
            raise

    def watch(self, fd: int, events: int, splice: Splice) -> None:
        """Call a splice when a descriptor of it is ready, or failed."""
        if self._epoll is not None:
            self._epoll.register(fd, events)
            self._watched[fd] = splice

    def forget(self, fd: int) -> None:
        """Wait for it no longer."""
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def ended(self) -> None:
        """One splice less."""
        self.open_count -= 1
        if not self.open_count and self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _ready(self, epoll: select.epoll) -> None:
        for fd, _ in epoll.poll(0, EVENTS_MAX):
            splice = self._watched.get(fd)  # an earlier one of these may have ended it
            if splice is not None:
                splice.ready()


class Splice:
    """One direction of one tunnel. `moved` hears what left, `over` once why nothing more will, unless it was closed."""

    def __init__(
        self,
        owner: Splices,
        source: int,
        sink: int,
        moved: Callable[[int], None],
        over: Callable[[Over], None],
    ) -> None:
        self._owner = owner
        self._moved = moved
        self._over = over
        self._held_bytes = 0
        self._waits_for: int | None = None
        self._paused = self._closed = False
        with contextlib.ExitStack() as opened:
            self._source, self._sink = (_own(opened, os.dup(fd)) for fd in (source, sink))
            self._out, self._in = (_own(opened, fd) for fd in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            if fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ) < PIPE_LEAST_BYTES:
                raise OSError("no pipes left")
            self._descriptors = opened.pop_all()
        self._watch()

    def pause(self) -> None:
        """Move nothing until `resume`."""
        self._paused = True
        self._watch()

    def resume(self) -> None:
        """Move on."""
        self._paused = False
        self._watch()

    def close(self) -> None:
        """Move nothing more; what is in the pipe is lost with the sink. May be called again."""
        if not self._closed:
            self._closed = True
            self._watch()
            self._descriptors.close()
            self._owner.ended()

    def _watch(self) -> None:
        """Wait for whichever side is next."""
        wanted = None
        if not self._paused and not self._closed:
            wanted = self._sink if self._held_bytes else self._source
        if wanted == self._waits_for:
            return
        if self._waits_for is not None:
            self._owner.forget(self._waits_for)
        self._waits_for = wanted
        if wanted is not None:
            self._owner.watch(wanted, select.EPOLLOUT if self._held_bytes else select.EPOLLIN, self)

    def ready(self) -> None:
        """The side that was waited for can go on, or failed."""
        if self._held_bytes or self._fill():
            self._drain()

    def _fill(self) -> bool:
        try:
            self._held_bytes = os.splice(self._source, self._in, PIPE_BYTES, flags=_FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self._end(Over.SOURCE_FAILED)
            return False
        if not self._held_bytes:
            self._end(Over.SOURCE_ENDED)
        return self._held_bytes > 0

    def _drain(self) -> None:
        try:
            sent = os.splice(self._out, self._sink, self._held_bytes, flags=_FLAGS)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(Over.SINK_FAILED)
            return
        self._held_bytes -= sent
        if sent:
            self._moved(sent)
        self._watch()

    def _end(self, why: Over) -> None:
        self.close()
        self._over(why)


def _own(opened: contextlib.ExitStack, fd: int) -> int:
    opened.callback(os.close, fd)
    return fd
