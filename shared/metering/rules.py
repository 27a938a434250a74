"""How counted lines are cut into batches, and what batches add up to. No I/O."""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta

from shared.kernel.ids import GatewayId, PakId
from shared.metering.model import (
    ID_MAX_CHARS,
    LINE_MAX_BYTES,
    MAX_LINES_PER_BATCH,
    TIME_MAX_MS,
    FlushBatch,
    UsageLine,
)


def batches(
    gateway_id: GatewayId, first_sequence: int, at_ms: int, lines: tuple[UsageLine, ...]
) -> Iterator[FlushBatch]:
    """Lines as batches that fit one transaction each, numbered from `first_sequence`."""
    for index in range(0, len(lines), MAX_LINES_PER_BATCH):
        sequence = first_sequence + index // MAX_LINES_PER_BATCH
        yield FlushBatch(gateway_id, sequence, at_ms, lines[index : index + MAX_LINES_PER_BATCH])


def batch_fault(batch: FlushBatch) -> str | None:
    """Why a batch must not be applied: a gateway that is broken or not ours may have written it."""
    if len(batch.lines) > MAX_LINES_PER_BATCH:
        return "too many lines"
    if not _is_count(batch.at_ms, TIME_MAX_MS):
        return "no time"
    for line in batch.lines:
        key = line.key
        ids = (key.pak_id, key.account_id, key.device_id, key.supplier_id)
        if not all(isinstance(name, str) and 0 < len(name) <= ID_MAX_CHARS for name in ids):
            return "a line without its ids"
        if not all(_is_count(size, LINE_MAX_BYTES) for size in (line.up_bytes, line.down_bytes)):
            return "a line without its bytes"
    return None


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


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
