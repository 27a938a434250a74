"""What a gateway has counted, in a memory-mapped file: a killed process loses no byte, its next life goes on from it.

Every line (key, device, ...) has a slot with its count so far, stored twice in turn with a check word, so that a torn write
shows and costs one read. A cut freezes all counts as batches with fixed sequences; they stay pending until the stores have
them, and meanwhile bytes go on counting in the slots: however long a store is away, the file does not grow.

File, in native 8-byte words: a page with two headers in turn, then slots of 512 bytes (no slot crosses a page).
  header  magic, writes, generation, pending (0/1), first sequence, next sequence, at ms, crc of the words before
  slot    key length and crc (0 = free) | two marks, by parity of generation: generation, up, down
          | two counts, in turn: up, down, check | key
The mark of the header's generation is what the stores confirmed; with `pending`, the mark of the next one is being written.
Leaves out the loss of a whole machine: nothing is forced to disk, marks of the wrong generation are dropped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.rules import batches

SLOTS_MAX: Final = 32_768
_MAGIC: Final = 0x7073_786A_0001
_PAGE_WORDS: Final = 512
_SLOT_WORDS: Final = 64
_KEY_WORD: Final = 16
_KEY_MAX_BYTES: Final = (_SLOT_WORDS - _KEY_WORD) * 8
_MARK: Final = (1, 4)
_COUNT: Final = (7, 10)
_WORD_BYTES: Final = 8
_COUNT_WORDS: Final = struct.Struct("QQQ")
_FRESH_WORDS: Final = struct.Struct("12Q")
_KEY_JSON: Final = json.JSONEncoder(separators=(",", ":"))
_HEADER: Final = (0, 64)
_HEADER_FIELDS: Final = 7
_MASK: Final = (1 << 64) - 1

log = logging.getLogger("psx.gateway")


class JournalBusy(Exception):
    """Another process has this journal: two gateways would run under one id."""


class Line:
    """The count of one key through one device; `add` is on the byte path."""

    __slots__ = ("_words", "confirmed", "cut", "down", "key", "slot", "tunnels", "turn", "up")

    def __init__(self, key: LineKey, words: memoryview, slot: int) -> None:
        self.key = key
        self.slot = slot
        self._words = words
        self.up = self.down = self.turn = self.tunnels = 0
        self.confirmed = (0, 0)
        self.cut = (0, 0)

    def add(self, up_bytes: int, down_bytes: int) -> None:
        """Count bytes, in memory and in the file."""
        self.up = up = self.up + up_bytes
        self.down = down = self.down + down_bytes
        slot = self.slot
        if slot:
            at = (slot + _COUNT[self.turn]) * _WORD_BYTES
            self.turn ^= 1
            _COUNT_WORDS.pack_into(self._words, at, up, down, (up * 3 + down * 5 + slot) & _MASK)

    def place(self, slot: int, generation: int) -> None:
        """Count in a free slot of the file from now on; both marks and both counts begin with nothing."""
        self.slot = slot
        even, odd = generation + (generation & 1), generation | 1
        check = _check(0, 0, slot)
        words = (even, 0, 0, odd, 0, 0, 0, 0, check, 0, 0, check)
        _FRESH_WORDS.pack_into(self._words, (slot + _MARK[0]) * _WORD_BYTES, *words)

    def mark(self, generation: int, counts: tuple[int, int]) -> None:
        """Note what was counted when a generation was cut; the number goes last, so that half a mark is none."""
        if self.slot:
            at = self.slot + _MARK[generation & 1]
            self._words[at + 1], self._words[at + 2] = counts
            self._words[at] = generation


def _check(up: int, down: int, slot: int) -> int:
    return (up * 3 + down * 5 + slot) & _MASK


class Journal:
    """All counts of one gateway. Without a path they live in memory alone."""

    def __init__(self, gateway_id: GatewayId, path: Path | None = None) -> None:
        """Raises JournalBusy, or OSError when there is no room for the file."""
        self._gateway_id = gateway_id
        size = (_PAGE_WORDS + SLOTS_MAX * _SLOT_WORDS) * 8
        self._file = -1 if path is None else _open(path, size)
        self._map = mmap.mmap(self._file, size)
        self._words = memoryview(self._map).cast("Q")
        self._lines: dict[LineKey, Line] = {}
        self._free: list[int] = []
        self._writes = self._generation = 0
        self.next_sequence = 0
        self.pending: tuple[FlushBatch, ...] = ()
        self.dropped_lines = 0
        self._recover()

    # counting

    def line(self, key: LineKey) -> Line:
        """The line of a key. Beyond `SLOTS_MAX` lines it counts in memory alone."""
        line = self._lines.get(key)
        if line is None:
            line = Line(key, self._words, 0)
            text = _key_text(key)
            if self._free and len(text) <= _KEY_MAX_BYTES:
                self._place(line, self._free.pop(), text)
            self._lines[key] = line
        return line

    def lines(self) -> tuple[Line, ...]:
        """Every line in use."""
        return tuple(self._lines.values())

    @property
    def full(self) -> bool:
        """Whether new lines would not survive the process."""
        return not self._free

    def _place(self, line: Line, slot: int, text: bytes) -> None:
        line.place(slot, self._generation)
        start = (slot + _KEY_WORD) * _WORD_BYTES
        self._map[start : start + len(text)] = text
        self._words[slot] = len(text) << 32 | zlib.crc32(text)

    # cutting

    def cut(self, now_ms: int) -> bool:
        """Freeze what was counted as pending batches; False when there is nothing new. One cut at a time."""
        if self.pending:
            raise RuntimeError("the last cut is still pending")
        if all((line.up, line.down) == line.confirmed for line in self._lines.values()):
            return False
        for line in self._lines.values():
            line.cut = (line.up, line.down)
            line.mark(self._generation + 1, line.cut)
        first = self.next_sequence
        self.pending = self._batches(first, now_ms)
        self.next_sequence = first + len(self.pending)
        self._write_header(pending=True, first=first, at_ms=now_ms)
        return True

    def confirm(self) -> None:
        """The stores have every pending batch: forget them, and lines that nobody counts on."""
        self._generation += 1
        self.pending = ()
        self._write_header()
        for line in list(self._lines.values()):
            line.confirmed = line.cut
            if not line.tunnels and line.confirmed == (line.up, line.down):
                del self._lines[line.key]
                if line.slot:
                    self._words[line.slot] = 0
                    self._free.append(line.slot)

    def _batches(self, first: int, at_ms: int) -> tuple[FlushBatch, ...]:
        lines = (line for line in sorted(self._lines.values(), key=lambda line: line.slot))
        usage = (
            UsageLine(line.key, line.cut[0] - line.confirmed[0], line.cut[1] - line.confirmed[1])
            for line in lines
            if line.cut != line.confirmed
        )
        return tuple(batches(self._gateway_id, first, at_ms, tuple(usage)))

    def number_from(self, newest_sequence: int) -> bool:
        """Go on numbering after what the store has. False when it has more than this journal knows: another life wrote
        it, this file is an old one, and its counts are dropped rather than billed again."""
        stale = newest_sequence >= self.next_sequence
        dropped = stale and bool(self._lines)
        if dropped:
            self.dropped_lines += len(self._lines)
            self.pending = ()
            for line in self._lines.values():
                self._words[line.slot] = 0
                self._free.append(line.slot)
            self._lines.clear()
        self.next_sequence = max(self.next_sequence, newest_sequence + 1)
        if not self.pending:  # what is pending was numbered by this file, and its header says so
            self._write_header()
        return not dropped

    # the file

    def _write_header(self, *, pending: bool = False, first: int = 0, at_ms: int = 0) -> None:
        self._writes += 1
        fields = (
            _MAGIC,
            self._writes,
            self._generation,
            int(pending),
            first,
            self.next_sequence,
            at_ms,
        )
        at = _HEADER[self._writes & 1]
        for offset, field in enumerate((*fields, _crc(fields))):
            self._words[at + offset] = field

    def _recover(self) -> None:
        """Take over what the last life left."""
        found = [fields for at in _HEADER if (fields := self._read_header(at)) is not None]
        pending, first, at_ms = False, 0, 0
        if found:
            _, self._writes, self._generation, flag, first, self.next_sequence, at_ms = max(found)
            pending = bool(flag)
        for slot in range(_PAGE_WORDS, len(self._words), _SLOT_WORDS):
            line = self._read_slot(slot, pending=pending) if self._words[slot] and found else None
            if line is None:
                self.dropped_lines += bool(self._words[slot])
                self._words[slot] = 0
                self._free.append(slot)
            else:
                self._lines[line.key] = line
        self._free.reverse()
        if pending:
            self.pending = self._batches(first, at_ms)
        else:
            self._write_header()
            self._write_header()

    def _read_header(self, at: int) -> tuple[int, ...] | None:
        fields = tuple(self._words[at : at + _HEADER_FIELDS])
        right = fields[0] == _MAGIC and self._words[at + _HEADER_FIELDS] == _crc(fields)
        return fields if right else None

    def _read_slot(self, slot: int, *, pending: bool) -> Line | None:
        """None for a slot that was torn, or that belongs to another generation."""
        words, start = self._words, (slot + _KEY_WORD) * 8
        text = self._map[start : start + min(words[slot] >> 32, _KEY_MAX_BYTES)]
        if zlib.crc32(text) != words[slot] & 0xFFFF_FFFF:
            return None
        marks = {words[slot + at]: (words[slot + at + 1], words[slot + at + 2]) for at in _MARK}
        confirmed = marks.get(self._generation)
        if confirmed is None:
            return None
        line = Line(_read_key(text), words, slot)
        line.confirmed = confirmed
        line.cut = marks.get(self._generation + 1, confirmed) if pending else confirmed
        counts = [
            (words[at], words[at + 1])
            for at in (slot + _COUNT[0], slot + _COUNT[1])
            if words[at + 2] == _check(words[at], words[at + 1], slot)
        ]
        line.up, line.down = max((*counts, line.cut), key=sum)
        return line

    def close(self) -> None:
        """Let the file go; what is pending stays in it."""
        self._words.release()
        self._map.close()
        if self._file >= 0:
            os.close(self._file)


def open_journal(gateway_id: GatewayId, folder: Path | None) -> Journal:
    """The journal of a gateway in a folder of this machine. Raises JournalBusy."""
    if folder is None:
        log.warning("no journal: a killed process loses what it has not flushed")
        return Journal(gateway_id)
    return Journal(gateway_id, folder / f"{gateway_id}.journal")


def _open(path: Path, size: int) -> int:
    """The file, locked for this process, with all its blocks there: a full disk must not show as a crash later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(opened, 0, size)
    except OSError as error:
        os.close(opened)
        if isinstance(error, BlockingIOError):
            raise JournalBusy(f"{path} belongs to a running gateway") from None
        raise
    return opened


def _crc(fields: tuple[int, ...]) -> int:
    return zlib.crc32(b"".join(field.to_bytes(8, "little") for field in fields))


def _key_text(key: LineKey) -> bytes:
    fields = (key.pak_id, key.account_id, key.device_id, key.supplier_id, key.country, key.pool, key.ip_type)
    return _KEY_JSON.encode(fields).encode()


def _read_key(text: bytes) -> LineKey:
    pak, account, device, owner, country, pool, ip_type = json.loads(text)
    return LineKey(
        PakId(pak),
        AccountId(account),
        DeviceId(device),
        AccountId(owner),
        Country(country),
        Pool(pool),
        IpType(ip_type),
    )
