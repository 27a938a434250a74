"""What the watchdog audits is complete, and certificates are judged on a real TLS server."""

import contextlib
import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socket import create_server

import pytest
import trustme

from functions.jobs.watchdog import SCHEDULES, TABLES
from local.tables import read_serverless, table_definitions
from shared.upkeep.audit import CERTIFICATE_DAYS_MIN, audit_certificate

NOW = datetime.datetime.now(datetime.UTC)
OURS, THEIRS = trustme.CA(), trustme.CA()


@contextmanager
def serving(authority: trustme.CA, days: float, name: str = "localhost") -> Iterator[int]:
    """A TLS server whose certificate ends in so many days."""
    ends = NOW + datetime.timedelta(days=days, seconds=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begins = ends - datetime.timedelta(days=365)
    authority.issue_cert(name, not_before=begins, not_after=ends).configure_cert(context)
    listener = create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # a client that does not trust us says so and leaves
            context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("authority", "days", "name", "ok", "detail"),
    [
        (OURS, 90, "localhost", True, "90 days left"),
        (OURS, CERTIFICATE_DAYS_MIN, "localhost", True, "14 days left"),
        (OURS, CERTIFICATE_DAYS_MIN - 1, "localhost", False, "13 days left"),
        (OURS, -2, "localhost", False, "SSLCertVerificationError"),
        (THEIRS, 90, "localhost", False, "SSLCertVerificationError"),
        (OURS, 90, "elsewhere.example", False, "SSLCertVerificationError"),
    ],
)
def test_a_certificate_is_trusted_ours_and_lasts_two_weeks(
    authority: trustme.CA, days: int, name: str, ok: bool, detail: str
) -> None:
    client = ssl.create_default_context()
    OURS.configure_trust(client)
    with serving(authority, days, name) as port:
        found = audit_certificate("localhost", port, client, NOW.timestamp())
    assert (found.ok, found.detail) == (ok, f"localhost: {detail}")


def test_a_listener_that_is_away_is_told() -> None:
    with create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    found = audit_certificate("localhost", port, ssl.create_default_context(), NOW.timestamp())
    assert (found.ok, found.detail) == (False, "localhost: ConnectionRefusedError")


def test_every_schedule_and_every_table_is_audited() -> None:
    functions = read_serverless("dev")["functions"].values()
    events = [event["eventBridge"] for f in functions for event in f["events"] if "eventBridge" in event]
    assert {event["name"].removeprefix("psx-dev-") for event in events} == set(SCHEDULES)
    assert {d["TableName"].removeprefix("psx-dev-") for d in table_definitions("dev")} == set(TABLES)
