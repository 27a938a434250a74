"""What the commands of `./psx` take, and what they pass on."""

from collections.abc import Sequence

import pytest

from local import __main__ as local


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (["simulate", "--stores", "--devices", "2000"], ["--stores", "--devices", "2000"]),
        (["simulate", "--help"], ["--help"]),
        (["test", "--fast", "-k", "money", "--maxfail=1"], ["-k", "money", "--maxfail=1"]),
        (["test", "tests/unit", "--fast"], ["tests/unit"]),
    ],
)
def test_words_of_the_program_behind_are_passed_on_in_their_order(
    words: Sequence[str], passed: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(command: Sequence[str]) -> int:
        ran.extend(command)
        return 0

    monkeypatch.setattr(local, "_run", run)
    assert local.main(words) == 0
    begin = ran.index(passed[0])
    assert ran[begin : begin + len(passed)] == list(passed)
    assert "--fast" not in ran


def test_a_misspelt_word_of_our_own_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        local.main(["demo", "--jsn"])
    assert "--jsn" in capsys.readouterr().err
