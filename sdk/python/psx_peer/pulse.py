"""When a relay socket should speak, and when its path counts as dead. No I/O, no clock: times are arguments.

A device that slept has a path that is probably gone, though its own clock hardly moved. A tick that comes much later than
it should, by the wall clock, means such a sleep: the path then has `wake` seconds to prove itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Waits in seconds; `dead` and one `tick` make the 45 s within which a dead path is noticed.

    A lab may shorten them (`PSX_LAB_TIMES`), nobody else.
    """

    redial_min: float = 5.0
    redial_max: float = 7.0
    heartbeat: float = 30.0
    dead: float = 40.0
    streams_dead: float = 15.0
    tick: float = 5.0
    wake: float = 10.0
    idle: float = 960.0
    redirect: float = 60.0
    resume: float = 20.0
    dial: float = 8.0


@dataclass(frozen=True)
class Beat:
    """What a tick asks for."""

    heartbeat: bool = False
    ping: bool = False
    dead: bool = False


class Pulse:
    """The life of one socket."""

    def __init__(self, times: Times, now_s: float, wall_s: float) -> None:
        self._times = times
        self._heard_s = now_s
        self._beat_s = now_s
        self._wall_s = wall_s

    @property
    def tick_s(self) -> float:
        """How often to ask."""
        return min(self._times.tick, self._times.heartbeat)

    def heard(self, now_s: float) -> None:
        """Something came."""
        self._heard_s = now_s

    def tick(self, now_s: float, wall_s: float, *, streams: bool, reading: bool) -> Beat:
        """What to do now; `reading` is false while a target of v1 holds the socket up."""
        dead_after_s = self._times.streams_dead if streams else self._times.dead
        slept = wall_s - self._wall_s - self.tick_s > self._times.wake
        self._wall_s = wall_s
        if slept:
            self._heard_s = now_s - max(0.0, dead_after_s - self._times.wake)
        silent_s = now_s - self._heard_s
        if reading and silent_s > dead_after_s:
            return Beat(dead=True)
        beat = slept or now_s - self._beat_s >= self._times.heartbeat - self.tick_s / 2
        if beat:
            self._beat_s = now_s
        return Beat(heartbeat=beat, ping=streams and silent_s >= self._times.tick)
