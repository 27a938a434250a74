"""A log record is one line of JSON with its facts."""

import json
import logging

from shared.runtime.clock import new_id, now_ms
from shared.runtime.log import JsonLines, configure


def test_facts_stand_beside_the_event() -> None:
    record = logging.LogRecord("psx", logging.INFO, __file__, 1, "tunnel closed", (), None)
    record.reason = "idle"
    line = json.loads(JsonLines("relay").format(record))
    assert (line["event"], line["reason"], line["process"], line["level"]) == (
        "tunnel closed",
        "idle",
        "relay",
        "info",
    )


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        record = logging.LogRecord(
            "psx", logging.ERROR, __file__, 1, "broke", (), (KeyError, error, error.__traceback__)
        )
    text = JsonLines("relay").format(record)
    assert "\n" not in text
    assert "KeyError" in json.loads(text)["trace"]


def test_configure_gives_the_logger() -> None:
    before = logging.getLogger().handlers[:]
    try:
        assert configure("test").name == "psx"
    finally:
        logging.getLogger().handlers[:] = before


def test_ids_are_fresh_and_time_is_in_milliseconds() -> None:
    assert new_id() != new_id()
    assert len(new_id(4)) == 8
    assert 1_700_000_000_000 < now_ms() < 10_000_000_000_000
