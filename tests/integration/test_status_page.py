"""The status page and the operators' view over stores: as fresh as the numbers, with what was, and no address."""

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from local.bootstrap import ADMIN
from shared.grading.live import ask_probe, device_mark, mark_changed
from shared.guard.model import Incident
from shared.guard.service import standing_incidents
from shared.guard.table import close_incident, entries, open_incident, write_setting
from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool.live import list_endpoint, unlist_endpoint
from shared.pool.numbers import Numbers, derive, run
from shared.runtime.clock import now_ms
from shared.runtime.redis import SyncRedis
from shared.upkeep.history import Point, Span, put_point, record
from shared.upkeep.purchase import STATE, Purchases, purchases_row
from tests.support.functions import PREFIX, Functions
from tests.support.pool import modem

pytestmark = pytest.mark.slow
HOUR = 3_600_000


def test_the_page_shows_stock_incidents_and_history_and_runs_no_script(functions: Functions) -> None:
    now = now_ms()
    functions.redis.run(list_endpoint(modem("m1", "us")))
    numbers = run(functions.redis, derive())
    assert record(functions.dynamo, PREFIX + "usage", numbers, now) == [Span.MINUTE]
    begun = now // HOUR * HOUR
    for back in (3, 2, 1):
        mean = {"stock.mbl.us": back}
        point = Point(begun - back * HOUR, mean, mean, mean, 60)
        functions.dynamo.run(put_point(PREFIX + "usage", Span.HOUR, point))
    functions.dynamo.run(open_incident(PREFIX + "guard", Incident("a", "k", "relay eu is away", now)))
    functions.dynamo.run(open_incident(PREFIX + "guard", Incident("b", "k", "an old story", now)))
    functions.dynamo.run(close_incident(PREFIX + "guard", "b", now))
    reply = functions.call("/status/")
    page = str(reply.body)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "1 exits are on sale, 1 of them are connected now" in page
    assert '<tr data-country="US"><td>US</td><td>1</td><td>0</td>' in page
    assert "Open incidents: 1" in page
    assert "relay eu is away" in page
    assert "an old story" in page
    assert page.count("<polyline") == 3
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in page + policy
    functions.redis.run(unlist_endpoint(Pool.MBL, EndpointId("m1")))
    run(functions.redis, derive())
    assert "0 exits are on sale" in str(functions.call("/status/").body), "nothing of it is kept"
    hours = functions.call("/v1/gateway/pool/history?span=hour").body["points"]
    assert [p["mean"]["stock.mbl.us"] for p in hours] == [3, 2, 1]


def test_operators_see_the_queue_of_probes_the_purchases_and_who_stands(functions: Functions) -> None:
    now, admin = now_ms(), {"x-api-key": functions.keys.admin}
    functions.redis.run(ask_probe(DeviceId("a"), -5_000))
    functions.redis.run(ask_probe(DeviceId("b"), 60_000))
    functions.redis.run(ask_probe(DeviceId("c"), urgent=True))
    functions.redis.run(mark_changed([device_mark(DeviceId("a"))]))
    failed = Purchases(looked_ms=now, fault="the sale answers 503", day="2026-11-21", spent_micro=5)
    functions.dynamo.run(write_setting(PREFIX + "guard", STATE, purchases_row(failed), now))
    seen = functions.call("/v1/admin/network", headers=admin).body
    probes = seen["probes"]
    assert (probes["urgent"], probes["waiting"], probes["due"], probes["underWay"]) == (1, 2, 1, 0)
    assert (probes["stalestLateMs"] >= 5_000, probes["marksForListing"]) == (True, 1)
    assert (seen["purchases"]["fault"], seen["purchases"]["spentMicro"]) == ("the sale answers 503", 5)
    live = functions.call("/v1/gateway/pool/live").body
    assert {name: seen[name] for name in live} == live
    assert functions.call("/v1/admin/network", headers={"x-api-key": functions.keys.reseller}).status == 403


def test_operators_see_what_was_written_down_while_the_cache_is_away(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage in which the view is needed most."""
    admin = {"x-api-key": functions.keys.admin}
    functions.redis.run(list_endpoint(modem("m1", "us")))
    counted = functions.call("/v1/admin/network", headers=admin).body
    assert (counted["live"], counted["ageMs"] < 60_000) == (True, True)
    asleep = SyncRedis("redis://127.0.0.1:1")
    monkeypatch.setattr(functions.redis, "run", asleep.run)
    fresh = functions.call("/v1/admin/network", headers=admin)
    assert (fresh.status, fresh.body["live"], fresh.body["ageMs"]) == (200, False, None), (
        "nothing was written"
    )
    minute = now_ms() - 180_000
    numbers = Numbers(
        minute,
        stock={"mbl": {"us": 3}},
        online={"mbl": {"us": 2}},
        quality={"mbl": {"us": {"fast": 3}}},
        fleet={"verdict.listed": 3},
        bytes_per_s=7,
    )
    record(functions.dynamo, PREFIX + "usage", numbers, minute)
    functions.dynamo.run(open_incident(PREFIX + "guard", Incident("a", "k", "relay eu is away", minute)))
    seen = functions.call("/v1/admin/network", headers=admin).body
    assert (seen["live"], 180_000 <= seen["ageMs"] < 300_000, seen["probes"]) == (False, True, None)
    assert (seen["stock"], seen["online"], seen["quality"]) == (
        numbers.stock,
        numbers.online,
        numbers.quality,
    )
    assert (seen["fleet"], seen["traffic"]) == (numbers.fleet, {"totalBytes": None, "bytesPerSecond": 7})
    assert [i["message"] for i in seen["incidents"]] == ["relay eu is away"]
    asleep.close()


def test_an_operator_closes_an_incident_once_and_its_watcher_opens_it_again(functions: Functions) -> None:
    now, admin = now_ms(), {"x-api-key": functions.keys.admin}
    first = Incident("target#eu", "k", "the probe target in eu is away", now)
    functions.dynamo.run(open_incident(PREFIX + "guard", first))
    path, said = f"/v1/admin/incidents/{first.incident_id}/close", {"reason": "a drill"}
    for nothing in ("0", "0%23" + "x" * 2000):
        assert functions.call(f"/v1/admin/incidents/{nothing}/close", "POST", said, admin).status == 404
    for headers, body, status in (
        ({}, said, 401),
        ({"x-api-key": functions.keys.reseller}, said, 403),
        (admin, {"reason": ""}, 400),
        (admin, {}, 400),
    ):
        assert functions.call(path, "POST", body, headers).status == status
    assert [i.name for i in standing_incidents(functions.dynamo, PREFIX + "guard")] == ["target#eu"]
    closed = functions.call(path, "POST", said, admin).body
    assert closed == {"incidentId": first.incident_id, "closedAt": closed["closedAt"]}
    assert functions.call(path, "POST", {"reason": "again"}, admin).body == closed
    assert standing_incidents(functions.dynamo, PREFIX + "guard") == []
    again = replace(first, opened_at_ms=now + 60_000)
    assert functions.dynamo.run(open_incident(PREFIX + "guard", again))
    assert functions.call(path, "POST", said, admin).status == 404, "that is another time of its being wrong"
    assert standing_incidents(functions.dynamo, PREFIX + "guard") == [again]
    found = functions.dynamo.run(entries(PREFIX + "audit", f"acct#{ADMIN}", 50)).rows
    told = [entry.event.metadata for entry in found if entry.event.action == "incident_close"]
    assert told == [{"incident": first.incident_id, "reason": "a drill"}]


def test_the_operators_page_holds_nothing_and_may_run_its_own_script_alone(functions: Functions) -> None:
    reply = functions.call("/admin/")
    assert (reply.status, "psx network" in str(reply.body)) == (200, True)
    (script,) = re.findall("<script>(.*?)</script>", str(reply.body), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = reply.headers["content-security-policy"]
    assert f"script-src 'sha256-{digest}'; connect-src 'self'" in policy


def test_visitors_find_what_is_for_sale_how_to_use_it_and_how_to_share(functions: Functions) -> None:
    functions.redis.run(list_endpoint(modem("m1", "us")))
    run(functions.redis, derive())
    market = functions.call("/marketplace/proxy/")
    assert "<tr><td>US</td><td>1</td><td>0</td>" in str(market.body)
    assert "connect-src 'self'" in market.headers["content-security-policy"], "prices come from the sale"
    quick = str(functions.call("/pool-quickstart.html").body)
    assert "https://api.example/v1/x402/pool?country=us" in quick
    assert "1 exits on sale" in str(functions.call("/system-map/").body)
    sharing = str(functions.call("/peer/").body)
    links = set(re.findall(r'href="(/[^"#]*)"', sharing + quick + str(market.body)))
    assert links >= {"/marketplace/proxy/", "/pool-quickstart.html", "/peer/", "/system-map/", "/peer/device"}
    assert {link: functions.call(link).status for link in links} == dict.fromkeys(links, 200)
    assert functions.call("/system-map").status == 200, "as people type it"
