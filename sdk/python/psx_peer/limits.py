"""What the owner allows: how fast, and when. Pure but for reading whether a Linux machine is on its charger."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Final

POWER_SUPPLIES: Final = Path("/sys/class/power_supply")
BURST_S: Final = 0.25
"""So much of a second's allowance may be spent at once."""
BITS: Final = 8
_SPAN: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Allowance:
    """A token bucket over both directions of all tunnels; without a rate it never asks to wait."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = bytes_per_s
        self._left = (bytes_per_s or 0) * BURST_S
        self._at_s: float | None = None

    def spend(self, size: int, now_s: float) -> float:
        """Take what was just carried; answers for how many seconds nothing more should be."""
        if self._rate is None:
            return 0.0
        if self._at_s is not None:
            self._left = min(self._rate * BURST_S, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        self._left -= size
        return max(0.0, -self._left / self._rate)


def allowance(megabits_per_s: float | None) -> Allowance:
    """An allowance of so many megabits (10^6 bits) a second."""
    return Allowance(None if megabits_per_s is None else megabits_per_s * 1_000_000 / BITS)


class Schedule:
    """Hours of the day, in the device's own time; over midnight when the end is before the start."""

    def __init__(self, text: str) -> None:
        found = _SPAN.fullmatch(text)
        if found is None:
            raise ValueError("a schedule is HH:MM-HH:MM")
        first, second, third, fourth = (int(part) for part in found.groups())
        self._from, self._to = first * 60 + second, third * 60 + fourth

    def open_at(self, when: datetime) -> bool:
        """Whether sharing is allowed now. A span that ends where it begins is the whole day."""
        minute = when.hour * 60 + when.minute
        if self._from < self._to:
            return self._from <= minute < self._to
        return minute >= self._from or minute < self._to


def on_charger(supplies: Path = POWER_SUPPLIES) -> bool | None:
    """Whether the machine has mains power; None where the platform does not say."""
    online = [_word(path) for path in supplies.glob("*/online")]
    if online:
        return "1" in online
    batteries = [_word(path) for path in supplies.glob("BAT*/status")]
    return None if not batteries else "Discharging" not in batteries


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
