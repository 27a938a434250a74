"""The local cloud reads serverless.yml, and nothing else decides."""

import base64

import pytest

from local.api_gateway import http_event
from local.cloud import read_routes, read_schedules
from local.http_server import HttpRequest
from local.lab import MODEMS, NETWORKS, PEERS
from local.tables import table_definitions, time_to_live


def test_schedules_and_routes_come_from_serverless_yml() -> None:
    assert {s.name: s.every_s for s in read_schedules("local")} == {
        "validate_sale": 60,
        "serve_owed": 60,
        "list_exits": 60,
        "roll_up": 60,
        "end_keys": 60,
        "keep_leases": 60,
        "test_peer_tiers": 60,
        "buy_as_customer": 300,
        "refresh_ip_data": 3600,
        "drop_ghosts": 3600,
        "live_numbers": 60,
        "watchdog": 300,
    }
    assert read_routes("local") == {"/": "api", "/v1/x402/": "x402"}


def test_tables_have_their_stage_in_their_name_and_rows_that_expire() -> None:
    names = {d["TableName"] for d in table_definitions("local")}
    assert "psx-local-access" in names
    assert set(time_to_live("local")) == names


@pytest.mark.parametrize(("body", "encoded"), [(b"{}", False), (b"\xff\x00", True)])
def test_events_have_the_shape_of_payload_format_two(body: bytes, encoded: bool) -> None:
    request = HttpRequest(
        "POST",
        "/a%20b?x=1&x=2&y=",
        (("host", "h"), ("cookie", "a=1; b=2"), ("a", "1"), ("a", "2")),
        body,
        "127.0.0.9",
    )
    event = http_event(request)
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/a b", "x=1&x=2&y=")
    assert event["queryStringParameters"] == {"x": "1,2", "y": ""}
    assert event["cookies"] == ["a=1", "b=2"]
    assert event["headers"] == {"host": "h", "a": "1,2"}
    assert event["requestContext"]["http"]["sourceIp"] == "127.0.0.9"
    assert event["isBase64Encoded"] is encoded
    assert event["body"] == (base64.b64encode(body).decode() if encoded else "{}")


def test_the_lab_has_what_the_demo_promises() -> None:
    assert (len(PEERS), len(MODEMS)) == (12, 3)
    assert {p.network.ip_class for p in PEERS} == {"mobile", "residential", "datacenter"}
    assert len({n.country for n in NETWORKS}) >= 5
    assert sorted(p.fault for p in PEERS if p.fault) == ["corrupt", "slow", "tls_drop"]
    assert sum(bool(p.first_region) for p in PEERS) == 1
