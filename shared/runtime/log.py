"""One JSON line per event on stderr: time, level, process, event and its facts. Secrets are never facts.

Lambda ships stderr to CloudWatch and nodes to the journal, so nothing more is needed than the standard library.
"""

import json
import logging
import sys
from typing import Any, Final

_RESERVED: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `extra` becomes facts."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": record.getMessage(),
        }
        line |= {k: v for k, v in record.__dict__.items() if k not in _RESERVED}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(process: str, level: int = logging.INFO) -> logging.Logger:
    """Send every record of this process to stderr as JSON lines; returns the logger `psx`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    return logging.getLogger("psx")
