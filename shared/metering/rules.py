"""How counted lines are cut into batches, and what batches add up to. No I/O."""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta

from shared.kernel.ids import GatewayId, PakId
from shared.metering.model import MAX_LINES_PER_BATCH, FlushBatch, UsageLine


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


def day_after(day: str) -> str:
    """The day after a `yyyy-mm-dd`."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def day_of(at_ms: int) -> str:
    """The UTC day of a time, `yyyy-mm-dd`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")
