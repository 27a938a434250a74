"""What the watchdog audits: recipients as they should be, schedules on, tables recoverable, certificates that last."""

import contextlib
import datetime
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from shared.upkeep.model import Check, Observation

CERTIFICATE_DAYS_MIN: Final = 14
TLS_TIMEOUT_S: Final = 5.0
RULES_PAGE: Final = 100


def audit_recipients(offered: Mapping[str, str], expected: Mapping[str, str]) -> list[Observation]:
    """Where the sale asks money to go, against where it should: by network."""
    wrong = sorted(n for n, address in expected.items() if offered.get(n, "").lower() != address.lower())
    if wrong:
        return [
            Observation(
                Check.RECIPIENTS, ok=False, detail=f"recipient of {', '.join(wrong)} is not the expected one"
            )
        ]
    return [Observation(Check.RECIPIENTS, ok=True)]


def audit_schedules(events: Any, prefix: str, expected: Iterable[str]) -> list[Observation]:
    """Every schedule of the stage is there and enabled. `events` is an EventBridge client."""
    rules: dict[str, str] = {}
    page: dict[str, Any] = {}
    while True:
        page = events.list_rules(
            NamePrefix=prefix, Limit=RULES_PAGE, **({"NextToken": page["NextToken"]} if page else {})
        )
        rules |= {rule["Name"]: rule["State"] for rule in page["Rules"]}
        if "NextToken" not in page:
            break
    off = sorted(name for name in expected if rules.get(prefix + name) != "ENABLED")
    detail = f"not enabled: {', '.join(off)}" if off else ""
    return [Observation(Check.SCHEDULES, ok=not off, detail=detail)]


def audit_recovery(dynamo: Any, tables: Iterable[str]) -> list[Observation]:
    """Every table can be recovered to a point in time. `dynamo` is a DynamoDB client."""
    off = []
    for table in sorted(tables):
        found = dynamo.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
        if found.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") != "ENABLED":
            off.append(table)
    detail = f"no point-in-time recovery: {', '.join(off)}" if off else ""
    return [Observation(Check.RECOVERY, ok=not off, detail=detail)]


def audit_certificate(host: str, port: int, tls: ssl.SSLContext, now_s: float) -> Observation:
    """A listener's certificate is trusted and lasts for at least two weeks."""
    try:
        with (
            socket.create_connection((host, port), TLS_TIMEOUT_S) as raw,
            tls.wrap_socket(raw, server_hostname=host) as stream,
        ):
            found = stream.getpeercert() or {}
    except OSError as error:
        return Observation(Check.CERTIFICATE, ok=False, detail=f"{host}: {type(error).__name__}")
    ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), datetime.UTC)
    days = int((ends.timestamp() - now_s) // 86_400)
    return Observation(Check.CERTIFICATE, ok=days >= CERTIFICATE_DAYS_MIN, detail=f"{host}: {days} days left")


def knock(relay: str, url: str, tls: ssl.SSLContext) -> Observation:
    """A relay's public door opens and somebody who speaks HTTP stands behind it."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
    try:
        with contextlib.ExitStack() as open_:
            door = open_.enter_context(socket.create_connection((host, port), TLS_TIMEOUT_S))
            if parts.scheme == "wss":
                door = open_.enter_context(tls.wrap_socket(door, server_hostname=host))
            door.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answered = door.recv(16).startswith(b"HTTP/1.1 ")
    except OSError as error:
        return Observation(Check.RELAY, ok=False, relay=relay, detail=type(error).__name__)
    return Observation(Check.RELAY, ok=answered, relay=relay, detail="" if answered else "no answer")
