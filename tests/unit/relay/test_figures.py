"""What a relay counts is what its metrics show."""

import pytest
from prometheus_client import REGISTRY, generate_latest

from relay_node.figures import DOWN, UP, Reason, count


def shown(line: str) -> float:
    """The value of one line of the metrics page; 0 where there is none."""
    found = [text for text in generate_latest(REGISTRY).decode().splitlines() if text.startswith(line)]
    return float(found[0].split()[-1]) if found else 0.0


def test_bytes_are_shown_by_direction() -> None:
    lines = [f'psx_relay_bytes_total{{direction="{way}"}}' for way in ("to_peer", "from_peer")]
    before = [shown(line) for line in lines]
    UP.inc(5)
    UP.inc(2)
    DOWN.inc(3)
    assert [shown(line) - was for line, was in zip(lines, before, strict=True)] == [7, 3]


@pytest.mark.parametrize("reason", [Reason.IDLE, Reason.DRAIN])
def test_an_end_is_counted_once_under_its_reason(reason: Reason) -> None:
    line = f'psx_relay_ended_total{{reason="{reason.value}",what="tunnel"}}'
    before = shown(line)
    count("tunnel", reason)
    assert shown(line) == before + 1
