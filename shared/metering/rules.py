"""Counting in memory: a gateway's tally between two flushes, and how it is cut into batches. No I/O."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from shared.kernel.ids import GatewayId, PakId
from shared.metering.model import MAX_LINES_PER_BATCH, FlushBatch, LineKey, UsageLine


class Tally:
    """Bytes counted since the last cut. One line is a two-element list, so the byte path only adds."""

    def __init__(self) -> None:
        self._lines: dict[LineKey, list[int]] = {}

    def line(self, key: LineKey) -> list[int]:
        """The [up, down] counter of a key; valid until the next cut, when it must be asked for again."""
        return self._lines.setdefault(key, [0, 0])

    def add(self, key: LineKey, up_bytes: int, down_bytes: int) -> None:
        """Count bytes."""
        line = self.line(key)
        line[0] += up_bytes
        line[1] += down_bytes

    def total_of(self, pak_id: PakId) -> int:
        """Bytes of one key that are not flushed yet."""
        return sum(up + down for key, (up, down) in self._lines.items() if key.pak_id == pak_id)

    def cut(self) -> tuple[UsageLine, ...]:
        """Take everything counted so far and begin anew."""
        lines, self._lines = self._lines, {}
        return tuple(UsageLine(key, up, down) for key, (up, down) in lines.items() if up or down)


def batches(
    gateway_id: GatewayId, first_sequence: int, at_ms: int, lines: tuple[UsageLine, ...]
) -> Iterator[FlushBatch]:
    """Lines as batches that fit one transaction each, numbered from `first_sequence`."""
    for index in range(0, len(lines), MAX_LINES_PER_BATCH):
        sequence = first_sequence + index // MAX_LINES_PER_BATCH
        yield FlushBatch(gateway_id, sequence, at_ms, lines[index : index + MAX_LINES_PER_BATCH])


def totals(batch: FlushBatch) -> Mapping[PakId, int]:
    """Bytes per key."""
    sums: dict[PakId, int] = {}
    for line in batch.lines:
        sums[line.key.pak_id] = sums.get(line.key.pak_id, 0) + line.total_bytes
    return sums


def day_of(at_ms: int) -> str:
    """The UTC day of a time, `yyyy-mm-dd`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")
