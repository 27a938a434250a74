"""Several rounds within one minute: schedules fire once a minute at most, and some jobs have to be fresher than that."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

SPAN_MAX_S: Final = 58.0
"""The next minute's run begins then; two that meet do no harm."""


def rounds(event: Mapping[str, Any], every_s: float) -> Iterator[int]:
    """Count rounds `every_s` apart for the event's `span_s` seconds; one round without it."""
    span_s = min(float(event.get("span_s", 0)), SPAN_MAX_S)
    began, number = time.monotonic(), 0
    while True:
        yield number
        number += 1
        wait_s = began + number * every_s - time.monotonic()
        if number * every_s >= span_s:
            return
        time.sleep(max(wait_s, 0.0))
