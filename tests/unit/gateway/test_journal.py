"""The journal: every counted byte is cut once, whatever moment the process dies at, and a damaged file bills nobody."""

import mmap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_node.journal import Journal, JournalBusy
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import FlushBatch, LineKey

GATEWAY = GatewayId("g")
HEADER_BYTES = 4096
SLOT_BYTES = 512


def key(pak: str, device: str = "d") -> LineKey:
    return LineKey(
        PakId(pak),
        AccountId("psx_a"),
        DeviceId(device),
        AccountId("psx_s"),
        Country("us"),
        Pool.PEER,
        IpType.MOBILE,
    )


def counted(batches: tuple[FlushBatch, ...]) -> dict[str, tuple[int, int]]:
    return {li.key.pak_id: (li.up_bytes, li.down_bytes) for b in batches for li in b.lines}


class Copied:
    """What a kill leaves: the file as it is now, under another name, opened by a new life."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "g.journal"
        self.journal = Journal(GATEWAY, self.path)
        self._lives = 0

    def next_life(self) -> Journal:
        self._lives += 1
        copy = self.folder / f"life-{self._lives}"
        copy.write_bytes(self.path.read_bytes())
        return Journal(GATEWAY, copy)


@pytest.fixture
def copied(tmp_path: Path) -> Copied:
    return Copied(tmp_path)


def test_counts_survive_before_a_cut(copied: Copied) -> None:
    line = copied.journal.line(key("a"))
    line.add(3, 4)
    line.add(0, 6)
    life = copied.next_life()
    assert not life.pending
    assert life.cut(5)
    assert counted(life.pending) == {"a": (3, 10)}
    assert life.pending[0].sequence == 0


def test_a_pending_cut_survives_as_it_was_and_later_bytes_beside_it(copied: Copied) -> None:
    journal = copied.journal
    for n in range(45):
        journal.line(key(f"p{n}")).add(n + 1, 0)
    assert journal.cut(77)
    journal.line(key("p0")).add(0, 9)
    journal.line(key("new")).add(1, 1)
    life = copied.next_life()
    assert life.pending == journal.pending
    assert [b.sequence for b in life.pending] == [0, 1, 2]
    life.confirm()
    assert life.cut(78)
    assert counted(life.pending) == {"p0": (0, 9), "new": (1, 1)}
    assert life.pending[0].sequence == 3


def test_what_is_confirmed_is_not_cut_again(copied: Copied) -> None:
    journal = copied.journal
    journal.line(key("a")).add(5, 5)
    journal.cut(1)
    journal.confirm()
    assert not journal.cut(2)
    life = copied.next_life()
    assert not life.cut(3)
    assert life.next_sequence == 1
    assert life.lines() == ()


def test_a_new_journal_under_an_id_with_a_history_survives_a_kill_before_its_first_cut(
    copied: Copied,
) -> None:
    assert copied.journal.number_from(500)
    copied.journal.line(key("a")).add(3, 4)
    life = copied.next_life()
    assert life.number_from(500)
    assert life.cut(5)
    assert counted(life.pending) == {"a": (3, 4)}
    assert life.pending[0].sequence == 501


def test_numbering_anew_leaves_a_pending_cut_pending(copied: Copied) -> None:
    copied.journal.line(key("a")).add(3, 4)
    copied.journal.cut(5)
    life = copied.next_life()
    assert life.number_from(-1)
    copied.path = copied.folder / "life-1"
    assert copied.next_life().pending == copied.journal.pending


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.integers(0, 1000)),
            st.sampled_from(["cut", "confirm", "kill"]),
        ),
        max_size=40,
    )
)
def test_every_byte_is_billed_once_over_any_lives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int] | str]
) -> None:
    copied = Copied(tmp_path_factory.mktemp("journal"))
    journal, total = copied.journal, 0
    billed: dict[int, FlushBatch] = {}
    for step in [*steps, "kill", "cut", "confirm", "cut", "confirm"]:
        if isinstance(step, tuple):
            journal.line(key(step[0])).add(step[1], step[2])
            total += step[1] + step[2]
        elif step == "cut" and not journal.pending:
            journal.cut(1)
        elif step == "confirm" and journal.pending:
            for batch in journal.pending:
                assert billed.setdefault(batch.sequence, batch) == batch
            journal.confirm()
        elif step == "kill":
            for batch in journal.pending[:1]:  # the store has the first of them already
                billed.setdefault(batch.sequence, batch)
            journal = copied.next_life()
            copied.path = copied.folder / f"life-{copied._lives}"
    assert sum(line.total_bytes for batch in billed.values() for line in batch.lines) == total


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        data[offset] ^= 0xFF


@pytest.mark.parametrize("offset", [7 * 8, 8 * 8, 9 * 8])
def test_a_torn_count_costs_the_last_read_and_no_more(copied: Copied, offset: int) -> None:
    line = copied.journal.line(key("a"))
    line.add(10, 10)
    line.add(1, 1)  # the line was placed with two empty writes: this one is in the second copy
    flip(copied.path, HEADER_BYTES + offset + 3 * 8)
    life = copied.next_life()
    life.cut(1)
    assert counted(life.pending) == {"a": (10, 10)}


def test_a_torn_key_drops_its_line_alone(copied: Copied) -> None:
    copied.journal.line(key("a")).add(1, 1)
    copied.journal.line(key("b")).add(2, 2)
    flip(copied.path, HEADER_BYTES + 16 * 8 + 2)
    life = copied.next_life()
    life.cut(1)
    assert counted(life.pending) == {"b": (2, 2)}
    assert life.dropped_lines == 1


def test_one_torn_header_is_replaced_by_the_other_and_two_are_an_empty_journal(copied: Copied) -> None:
    journal = copied.journal
    journal.line(key("a")).add(1, 1)
    flip(copied.path, 64 * 8 + 16)
    assert copied.next_life().cut(1)
    flip(copied.path, 16)
    life = copied.next_life()
    assert not life.cut(1)
    assert life.dropped_lines == 1


def test_a_mark_of_another_generation_bills_nobody(copied: Copied) -> None:
    journal = copied.journal
    line = journal.line(key("a"))
    line.tunnels = 1
    line.add(100, 0)
    old = copied.path.read_bytes()[HEADER_BYTES : HEADER_BYTES + SLOT_BYTES]
    for _ in range(2):
        journal.cut(1)
        journal.confirm()
        line.add(1, 0)
    with copied.path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(old)
    assert not copied.next_life().cut(1)


def test_a_journal_older_than_the_store_is_dropped(copied: Copied) -> None:
    copied.journal.line(key("a")).add(1, 1)
    life = copied.next_life()
    assert not life.number_from(7)
    assert not life.cut(1)
    life.line(key("a")).add(1, 1)
    life.cut(1)
    assert life.pending[0].sequence == 8
    assert life.number_from(7)


def test_two_processes_never_share_a_journal(copied: Copied) -> None:
    with pytest.raises(JournalBusy):
        Journal(GATEWAY, copied.path)
    copied.journal.close()
    Journal(GATEWAY, copied.path).close()


def test_lines_beyond_the_slots_count_in_memory(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_node.journal.SLOTS_MAX", 2)
    journal = Journal(GATEWAY)
    for n in range(3):
        journal.line(key(f"p{n}")).add(1, 1)
    assert journal.full
    journal.cut(1)
    assert len(counted(journal.pending)) == 3
    journal.confirm()
    assert not journal.full
