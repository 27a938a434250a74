"""What a device is, told, sold and paid as: its address, its exit, its network, an operator's word."""

from dataclasses import replace
from typing import Any

import pytest

from local.bootstrap import RATES
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.offer import Classes
from shared.guard.rules import first_broken
from shared.guard.table import entries
from shared.kernel.codes import IpType
from shared.kernel.ids import DeviceId
from shared.pool.presence import put_presence
from shared.runtime.clock import now_ms
from shared.runtime.redis import command
from shared.supply import rules
from shared.supply.live import read_crowded
from tests.support.functions import PREFIX, Functions
from tests.support.pool import presence
from tests.support.supply import (
    HOME,
    NOWHERE,
    PHONE,
    SERVER,
    TERMS,
    admin,
    device,
    enrolled,
    list_now,
    owner,
    placed,
    probed,
    put_row,
    seen,
)

__all__ = ["list_now"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("source", "ip_type", "per_gb"),
    [
        (PHONE, "mobile", 1.2),
        (HOME, "residential", 0.5),
        (SERVER, "datacenter", 0.1),
        (NOWHERE, "unknown", 0.1),
    ],
)
def test_a_device_is_classed_and_paid_as_what_its_address_is(
    functions: Functions, source: str, ip_type: str, per_gb: float
) -> None:
    body = enrolled(functions, source=source, country="US", ipType="mobile", carrier="T-Mobile")
    assert (body["ipType"], body["earningsPerGB"]) == (ip_type, per_gb)
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"]) == (ip_type, per_gb)


def test_a_claimed_country_is_told_beside_the_real_one(functions: Functions) -> None:
    body = enrolled(functions, country="de")
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["country"], status["claimedCountry"]) == ("US", "DE")


def test_an_unknown_exit_is_never_sold_or_paid_as_the_phone_that_registered(
    functions: Functions, list_now: Any
) -> None:
    """Enrol from a phone, serve from somewhere else: the exit that probes saw decides, and unknown stays unknown."""
    body = enrolled(functions, consent=TERMS)
    ident = body["deviceId"]
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.UNKNOWN, 64999), seen(IpType.UNKNOWN, 64999))
    assert list_now()["newly_listed"] == [ident]
    kept = functions.redis.run(command("HGET", f"{{peer}}:ep:{ident}", "ip_type", parse=bytes))
    assert kept == b"unknown"
    status = functions.call(f"/v1/peer/agents/{ident}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"], status["proven"]) == ("unknown", 0.1, True)


def test_a_device_that_only_failed_probes_is_told_what_its_address_says(functions: Functions) -> None:
    body = enrolled(functions)
    probed(functions, body["deviceId"], ProbeResult(now_ms(), failure=Failure.PEER_OFFLINE))
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"], status["listed"]) == ("mobile", 1.2, False)


def test_a_modem_is_paid_by_what_probes_see_and_not_by_its_name(functions: Functions) -> None:
    body = {"name": "m1", "host": "127.0.0.1", "port": 1, "username": "u", "password": "secret"}
    added = functions.call("/v1/farmer/modems", "POST", body, owner(functions)).body
    assert (added["ipType"], added["earningsPerGB"]) == ("unknown", 0.1)
    probed(functions, added["deviceId"], seen(IpType.MOBILE, 64601))
    status = functions.call(f"/v1/peer/agents/{added['deviceId']}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("mobile", 1.2)


def test_rates_are_live_and_an_owner_may_have_their_own(functions: Functions) -> None:
    path = "/v1/admin/settings/rates"
    special = {**RATES, "overrides": {"psx_supplier1": {"mobile": 2_500_000}}}
    assert functions.call(path, "PUT", special, admin(functions)).status == 200
    functions.api_wiring.live._kept.clear()
    assert enrolled(functions)["earningsPerGB"] == 2.5
    assert enrolled(functions, "rig-2", HOME)["earningsPerGB"] == 0.5
    lies = {**RATES, "unknown": RATES["mobile"] + 1}
    assert functions.call(path, "PUT", lies, admin(functions)).status == 400
    lies = {**RATES, "overrides": {"psx_supplier1": {"unknown": 900_000}}}
    refused = functions.call(path, "PUT", lies, admin(functions))
    assert refused.body["message"].startswith("rates: overrides.psx_supplier1.unknown")


def test_an_operators_word_on_a_network_beats_the_table_and_is_on_record(
    functions: Functions,
) -> None:
    for subject, ip_type in (("AS64601", "datacenter"), ("127.10.1.0/28", "residential")):
        body = {"ipType": ip_type, "reason": "looked up"}
        path = f"/v1/admin/ip-classes/{subject}"
        assert functions.call(path, "PUT", body, admin(functions)).status == 200
        assert functions.call(path, "PUT", body, owner(functions)).status == 403
    functions.api_wiring.live._kept.clear()
    assert enrolled(functions, "narrow", PHONE)["ipType"] == "residential"
    assert enrolled(functions, "wide", "127.10.1.77", consent=TERMS)["ipType"] == "datacenter"
    log = functions.dynamo.run(entries(f"{PREFIX}audit", "acct#psx_admin", 50, forward=True)).rows
    assert first_broken(log) is None
    assert [e.event.metadata["subject"] for e in log if e.event.action == "ip_class_change"] == [
        "AS64601",
        "127.10.1.0/28",
    ]
    for wrong in ("64601x", "0.0.0.0/0", "10.0.0.1/24"):
        refused = functions.call(
            f"/v1/admin/ip-classes/{wrong}", "PUT", {"ipType": "mobile", "reason": "x"}, admin(functions)
        )
        assert refused.status == 400
    gone = functions.call("/v1/admin/ip-classes/AS64601", "DELETE", headers=admin(functions))
    assert gone.status == 200
    held = functions.call("/v1/admin/ip-classes", headers=admin(functions)).body
    assert list(held["overrides"]) == ["127.10.1.0/28"]


def test_more_homes_than_one_small_network_has_are_flagged_and_a_carriers_nat_is_not(
    functions: Functions, list_now: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "CROWD_MAX", 5)
    crowd = enrolled(functions, "one-of-many", HOME)["deviceId"]
    for number in range(6):
        ident = crowd if number == 0 else f"home-{number}"
        functions.redis.run(put_presence(placed(ident, f"127.11.1.{number + 1}", IpType.RESIDENTIAL)))
        functions.redis.run(put_presence(placed(f"phone-{number}", PHONE, IpType.MOBILE)))
        for name in (ident, f"phone-{number}"):
            if name != crowd:
                put_row(functions, name)
    report = list_now()
    assert report["crowded"] == ["127.11.1.0/24"]
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert status["flags"] == ["crowded_network"]
    probed(functions, crowd, seen(IpType.RESIDENTIAL, 64611))
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("unknown", 0.1)
    told = functions.call("/v1/gateway/incidents").body["incidents"]
    assert [i["kind"] for i in told] == ["crowded_network"]
    assert "127." not in told[0]["message"]
    word = {"ipType": "residential", "reason": "a campus, looked at"}
    functions.call("/v1/admin/ip-classes/127.11.1.0/24", "PUT", word, admin(functions))
    functions.api_wiring.live._kept.clear()
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("residential", 0.5)


def test_ghosts_of_one_home_are_a_crowd_wherever_they_connect_from(
    functions: Functions, list_now: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices of a rented machine that dial through one home line: probes see where they exit."""
    monkeypatch.setattr(rules, "CROWD_MAX", 5)
    home = replace(seen(IpType.RESIDENTIAL, 64611), exit_network="one-home")
    for number in range(6):
        ident = f"ghost-{number}"
        put_row(functions, ident)
        functions.redis.run(put_presence(placed(ident, SERVER, IpType.DATACENTER)))
        probed(functions, ident, home, home)
    assert list_now()["crowded"] == ["exit:one-home"]
    classes = Classes({}, functions.redis.run(read_crowded()))
    ghost, other = Grade(DeviceId("ghost-1"), latest=home), replace(home, exit_network="another")
    assert classes.of(ghost, None) is IpType.UNKNOWN
    assert classes.of(replace(ghost, latest=other), None) is IpType.RESIDENTIAL


def test_connecting_from_a_network_with_a_good_name_does_not_ennoble_an_exit(
    functions: Functions, list_now: Any
) -> None:
    word = {"ipType": "mobile", "reason": "a carrier"}
    functions.call("/v1/admin/ip-classes/127.12.1.0/24", "PUT", word, admin(functions))
    ident = enrolled(functions, consent=TERMS)["deviceId"]
    functions.redis.run(put_presence(placed(ident, SERVER, IpType.MOBILE)))
    probed(functions, ident, seen(IpType.DATACENTER, 64999), seen(IpType.DATACENTER, 64999))
    assert list_now()["newly_listed"] == [ident]
    sold = functions.redis.run(command("HGET", f"{{peer}}:ep:{ident}", "ip_type", parse=bytes))
    assert sold == b"datacenter"
