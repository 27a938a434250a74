"""Dedicated ports: a device held for one key, replaced when it goes offline, on the real pool of a real Redis."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from functions.x402.sale import Sale
from functions.x402.serve_owed import serve_owed
from local import lab
from local.bootstrap import HOUSE, PRICES
from shared.chain.model import Invalid, InvalidReason, Valid
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, EndpointId, GatewayId, PakId
from shared.pool import live
from shared.pool.model import Acquired, Endpoint, NoStock
from shared.pool.numbers import derive, run
from shared.pool.username import parse_username
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo, put
from shared.runtime.redis import command
from shared.sale.minting import Mint
from shared.sale.owed import LATE_MS, TRIES_MAX
from shared.sale.owed_table import Owed, all_owed
from shared.sale.ports import DEVICE_WAIT_MS
from shared.sale.rules import key_id_of, lease_of
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = pytest.mark.slow
QUERY = "/v1/x402/proxy?country=us&traffic=0.1"
PAYER = "0x" + "cc" * 20
REPLACE = "/v1/x402/manage/ports/replace"
SESSION = "/v1/x402/manage/session"
PRIVATE = QUERY + "&tier=private"
POOL = "/v1/x402/pool?traffic=0.1"


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    made.open(stocked=False)
    made.held_at_most(100)
    yield made
    made.close()


def list_modems(functions: Functions, *names: str, country: str = "us", carrier: str = "lab") -> None:
    for name in names:
        endpoint = Endpoint(
            EndpointId(name),
            Pool.MBL,
            AccountId("psx_farm"),
            Country(country),
            carrier,
            64601,
            "Lab Mobile",
            IpType.MOBILE,
            SpeedTier.FAST,
            "127.0.0.1",
            8000,
            "sealed",
        )
        functions.redis.run(live.list_endpoint(endpoint))


def buy(functions: Functions, number: int = 1, query: str = QUERY, micro: int = 800_000) -> Reply:
    assert functions.call(query).status == 402
    return pay(functions, number, query, micro)


def pay(functions: Functions, number: int, query: str, micro: int = 800_000) -> Reply:
    """Show a payment for what was quoted before."""
    tx_hash = "0x" + f"{number:02x}" * 32
    functions.chain.verdicts.setdefault(tx_hash, Valid(PAYER, micro, int(time.time())))
    return functions.call(query, headers={"payment-signature": tx_hash})


def private(functions: Functions, number: int = 1) -> Reply:
    return buy(functions, number, PRIVATE)


def counted(functions: Functions) -> dict[str, int]:
    """What the shop says is there, counted now."""
    run(functions.redis, derive())
    return dict(functions.call("/v1/x402/countries").body["countries"])


def token(reply: Reply) -> dict[str, str]:
    return {"x-session-token": reply.body["sessionToken"]}


def through(functions: Functions, username: str, pak: str = "") -> str:
    """The device that a gateway would choose for a username, with the key that was sold for it or with another one."""
    route, lease = parse_username(username), lease_of(username)
    pak = PakId(pak or (key_id_of(lease) if lease else "p"))
    call: Any = live.acquire(route, Pool.MBL, pak, GatewayId("g"), now_ms())
    chosen = functions.redis.run(call)
    if isinstance(chosen, NoStock):
        return ""
    assert isinstance(chosen, Acquired)
    functions.redis.run(live.release(Pool.MBL, GatewayId("g"), [(chosen.endpoint.endpoint_id, pak, 1)]))
    return str(chosen.endpoint.endpoint_id)


def test_a_port_is_priced_by_its_tier(functions: Functions) -> None:
    list_modems(functions, "m1")
    for tier, due in (("shared", "400000"), ("private", "800000")):
        answer = functions.call(f"{QUERY}&tier={tier}")
        assert answer.status == 402, answer.body
        assert answer.body["paymentRequirement"]["accepts"][0]["maxAmountRequired"] == due


@pytest.mark.parametrize(
    ("more", "field"),
    [("tier=zzz", "tier"), ("carrier=a-b", "carrier"), ("city=A", "city"), ("duration=x", "duration")],
)
def test_bad_terms_of_a_port_are_400(functions: Functions, more: str, field: str) -> None:
    answer = functions.call(f"/v1/x402/proxy?{more}")
    assert (answer.status, answer.body["message"].split(":")[0]) == (400, field)


def test_a_private_port_has_its_device_alone(functions: Functions) -> None:
    list_modems(functions, "m1", "m2")
    answer = private(functions)
    assert answer.status == 200, answer.body
    assert (answer.body["product"], answer.body["port"]["replacementsLeft"]) == ("proxy", 3)
    username = answer.body["proxy"]["username"]
    mine = through(functions, username)
    assert mine in {"m1", "m2"}
    assert {through(functions, username) for _ in range(5)} == {mine}
    assert mine not in {through(functions, f"{HOUSE}-mbl-us") for _ in range(20)}
    again = functions.call(PRIVATE, headers={"payment-signature": "0x" + "01" * 32})
    assert again.body["proxy"] == answer.body["proxy"]


def test_ports_spread_over_devices_and_shared_ones_fill_up(functions: Functions) -> None:
    list_modems(functions, "m1", "m2")
    answers = [buy(functions, n, micro=400_000) for n in range(1, 5)]
    devices = [through(functions, a.body["proxy"]["username"]) for a in answers]
    assert sorted(devices) == ["m1", "m1", "m2", "m2"]


def test_a_paid_port_without_a_free_device_is_owed_and_served_when_one_comes(functions: Functions) -> None:
    list_modems(functions, "m1")
    assert private(functions, 1).status == 200
    waiting = pay(functions, 2, PRIVATE)
    assert (waiting.status, waiting.body["code"]) == (503, "NO_DEVICE_FREE")
    assert "60 minutes" in waiting.body["message"]
    assert "do not pay again" in waiting.body["message"]
    assert waiting.headers["retry-after"] == "60"
    table = f"{PREFIX}sales"
    (owed,) = functions.dynamo.run(all_owed(table, 10)).rows
    assert isinstance(owed, Owed)
    assert owed.order.tier == "private"
    list_modems(functions, "m2")
    clock = functions.sale_wiring.counter
    object.__setattr__(clock, "now_ms", lambda: now_ms() + LATE_MS)
    assert serve_owed(functions.sale_wiring)["served"] == 1
    object.__setattr__(clock, "now_ms", now_ms)
    answer = functions.call(PRIVATE, headers={"payment-signature": "0x" + "02" * 32})
    assert through(functions, answer.body["proxy"]["username"]) == "m2"


def test_who_waits_for_a_device_for_an_hour_is_listed_for_a_refund_and_served_until_a_human_acts(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("mint: the store is away")

    list_modems(functions, "m1")
    assert private(functions, 1).status == 200
    assert pay(functions, 2, PRIVATE).status == 503
    began, clock = now_ms(), functions.sale_wiring.counter
    for late_ms, refundable in ((LATE_MS, 0), (20 * 60_000, 0), (DEVICE_WAIT_MS, 1)):
        for _ in range(TRIES_MAX if late_ms > LATE_MS and not refundable else 1):
            object.__setattr__(clock, "now_ms", lambda at=began + late_ms: at)
            assert serve_owed(functions.sale_wiring)["refundable"] == refundable
        with monkeypatch.context() as patched:
            patched.setattr(Mint, "key", away)
            assert serve_owed(functions.sale_wiring)["refundable"] == 0, "one passing fault ends no wait"
    object.__setattr__(clock, "now_ms", now_ms)
    listed = functions.call("/v1/x402/admin/refunds", headers={"x-api-key": functions.keys.admin}).body
    assert [(r["amountUSDC"], r["state"]) for r in listed["refunds"]] == [("0.8", "open")]
    list_modems(functions, "m2")
    served = pay(functions, 2, PRIVATE)
    assert through(functions, served.body["proxy"]["username"]) == "m2"
    listed = functions.call("/v1/x402/admin/refunds", headers={"x-api-key": functions.keys.admin}).body
    assert listed["refunds"] == []


def test_a_payment_that_is_given_up_holds_no_device(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwritten(*_: object, **__: object) -> None:
        raise StoreUnavailable("mint: the store is away")

    list_modems(functions, "m1")
    assert functions.call(PRIVATE).status == 402
    clock = functions.sale_wiring.counter
    with monkeypatch.context() as patched:
        patched.setattr(Mint, "_write", unwritten)
        assert pay(functions, 1, PRIVATE).status == 503
        assert through(functions, f"{HOUSE}-mbl-us") == "", "it is held for who paid"
        object.__setattr__(clock, "now_ms", lambda: now_ms() + LATE_MS)
        assert [serve_owed(functions.sale_wiring)["refundable"] for _ in range(TRIES_MAX)][-1] == 1
    object.__setattr__(clock, "now_ms", now_ms)
    assert through(functions, f"{HOUSE}-mbl-us") == "m1"
    assert through(functions, pay(functions, 1, PRIVATE).body["proxy"]["username"]) == "m1"


def test_what_is_held_is_not_for_sale_again(functions: Functions) -> None:
    """Private ports hold all of a country: nobody is asked to pay for what nobody could have."""
    list_modems(functions, "m1", "m2")
    list_modems(functions, "m3", country="de")
    assert counted(functions) == {"US": 2, "DE": 1}
    assert [private(functions, n).status for n in (1, 2)] == [200, 200]
    assert counted(functions) == {"DE": 1}
    assert run(functions.redis, derive()).held["mbl"] == {"us": 2}
    for path in (PRIVATE, QUERY, f"{POOL}&country=us"):
        refused = functions.call(path)
        assert (refused.status, refused.body["code"]) == (503, "NO_STOCK"), path
        assert "do not pay" in refused.body["message"]
        assert "DE" in refused.body["message"]
        assert int(refused.headers["retry-after"]) > 0
    elsewhere = functions.call(POOL)
    assert (elsewhere.status, elsewhere.body["countries"]) == (402, {"DE": 1})
    functions.call(PRIVATE.replace("us", "de"))
    assert pay(functions, 3, PRIVATE.replace("us", "de")).status == 200
    counted(functions)
    assert functions.call(POOL).body["code"] == "NO_STOCK"
    assert counted(functions) == {}


def test_a_payment_that_is_none_is_not_asked_for_again_where_nothing_is_free(functions: Functions) -> None:
    list_modems(functions, "m1")
    assert private(functions).status == 200
    functions.chain.verdicts["0x" + "02" * 32] = Invalid(InvalidReason.FAILED)
    answer = pay(functions, 2, PRIVATE)
    assert (answer.status, answer.body["code"]) == (503, "NO_STOCK")
    assert "transaction_failed" in answer.body["message"]
    assert "do not pay" in answer.body["message"]


def test_half_of_a_country_stays_for_everybody_and_its_last_device_always(functions: Functions) -> None:
    functions.held_at_most(50)
    list_modems(functions, "m1")
    assert functions.call(PRIVATE).body["code"] == "NO_STOCK", "the last one is the pool's"
    list_modems(functions, "m2", "m3")
    assert private(functions, 1).status == 200
    assert functions.call(PRIVATE).body["code"] == "NO_STOCK", "one of three may be held"
    assert functions.call(QUERY).status == 402, "a shared port keeps nobody away"
    list_modems(functions, "m4")
    quoted = functions.call(PRIVATE)
    assert quoted.status == 402
    assert "At most 50 %" in " ".join(quoted.body["caveats"])
    assert pay(functions, 2, PRIVATE).status == 200
    assert pay(functions, 3, PRIVATE).body["code"] == "NO_DEVICE_FREE", (
        "it was paid for after the last one went"
    )
    assert through(functions, f"{HOUSE}-mbl-us") != ""
    sheet = functions.call("/v1/x402/pricing").body["proxy"]["caveats"]
    assert "At most 50 %" in " ".join(sheet)


def test_a_replacement_is_not_kept_back_for_others(functions: Functions) -> None:
    functions.held_at_most(50)
    list_modems(functions, "m1", "m2", "m3", "m4")
    bought = [private(functions, n) for n in (1, 2)]
    gone = through(functions, bought[0].body["proxy"]["username"])
    functions.redis.run(live.unlist_endpoint(Pool.MBL, EndpointId(gone)))
    assert functions.call(REPLACE, "POST", {}, token(bought[0])).status == 200


def test_nothing_is_offered_where_nothing_is_listed(functions: Functions) -> None:
    answer = functions.call(QUERY)
    assert (answer.status, answer.body["code"]) == (503, "NO_STOCK")
    assert "do not pay" in answer.body["message"]


def test_a_device_that_went_offline_is_replaced_three_times_free(functions: Functions) -> None:
    names = [f"m{n}" for n in range(5)]
    list_modems(functions, *names)
    bought = private(functions)
    username = bought.body["proxy"]["username"]
    online = functions.call(REPLACE, "POST", {}, token(bought))
    assert (online.status, online.body["code"]) == (409, "DEVICE_IS_ONLINE")
    seen = [through(functions, username)]
    for left in (2, 1, 0):
        functions.redis.run(live.unlist_endpoint(Pool.MBL, EndpointId(seen[-1])))
        assert through(functions, username) == "", "a strict pin fails closed while its device is away"
        answer = functions.call(REPLACE, "POST", {}, token(bought))
        assert (answer.status, answer.body["port"]["replacementsLeft"]) == (200, left), answer.body
        seen.append(through(functions, username))
    assert len(set(seen)) == 4
    functions.redis.run(live.unlist_endpoint(Pool.MBL, EndpointId(seen[-1])))
    used_up = functions.call(REPLACE, "POST", {}, token(bought))
    assert (used_up.status, used_up.body["code"]) == (409, "REPLACEMENTS_USED_UP")


def test_a_replacement_that_cannot_be_had_costs_none(functions: Functions) -> None:
    list_modems(functions, "m1")
    bought = private(functions)
    functions.redis.run(live.unlist_endpoint(Pool.MBL, EndpointId("m1")))
    assert functions.call(REPLACE, "POST", {}, token(bought)).status == 503
    facts = functions.call(SESSION, headers=token(bought)).body
    assert (facts["port"]["replacementsLeft"], facts["port"]["online"]) == (3, False)
    list_modems(functions, "m1")
    assert functions.call(SESSION, headers=token(bought)).body["port"]["online"] is True


def test_a_port_is_topped_up_at_its_own_price_and_longer_time_holds_its_device(functions: Functions) -> None:
    list_modems(functions, "m1")
    bought = private(functions)
    headers = token(bought)
    cost = functions.call(f"{SESSION}/topup/calculate?addTrafficGB=0.25", headers=headers)
    assert cost.body["amountMicro"] == "2000000"
    quoted = functions.call(f"{SESSION}/topup", "POST", {"addTrafficGB": 0.25}, headers)
    assert quoted.body["paymentRequirement"]["accepts"][0]["maxAmountRequired"] == "2000000"
    longer = functions.call(f"{SESSION}/topup", "POST", {"addDurationSeconds": 86_400}, headers)
    assert longer.body["credit"]["expiresAt"] > bought.body["credit"]["expiresAt"]
    lease = bought.body["proxy"]["username"].rpartition("-")[2]
    held = command("HGET", f"{{mbl}}:reserved:{lease}", "expires_at_ms", parse=int)
    assert functions.redis.run(held) == longer.body["credit"]["expiresAt"]


def test_a_port_is_its_own_keys_though_strangers_share_the_account(functions: Functions) -> None:
    list_modems(functions, "m1", "m2")
    username = private(functions).body["proxy"]["username"]
    stranger = buy(functions, 2, "/v1/x402/pool?traffic=0.2&country=us")
    found = functions.sale_wiring.counter.session(stranger.body["sessionToken"])
    assert found is not None
    assert through(functions, username) != ""
    assert through(functions, username, found[1].pak_id) == ""


def test_a_hold_that_redis_lost_is_put_back_on_the_same_device(functions: Functions) -> None:
    names = [f"m{n}" for n in range(6)]
    list_modems(functions, *names)
    username = private(functions).body["proxy"]["username"]
    mine = through(functions, username)
    functions.redis.run(command("FLUSHALL", parse=bool))
    assert through(functions, username) == ""
    assert serve_owed(functions.sale_wiring)["heldAgain"] == 0
    assert through(functions, username) == "", "while its device is not listed it fails closed"
    list_modems(functions, *names)
    assert serve_owed(functions.sale_wiring)["heldAgain"] == 1
    assert {through(functions, username) for _ in range(3)} == {mine}
    assert mine not in {through(functions, f"{HOUSE}-mbl-us") for _ in range(20)}
    assert serve_owed(functions.sale_wiring)["heldAgain"] == 0


def test_ports_that_cannot_be_looked_at_hold_up_no_other(functions: Functions) -> None:
    list_modems(functions, "m1")
    bought = private(functions)
    lease_id = lease_of(bought.body["proxy"]["username"])
    ports = functions.sale_wiring.counter.mint.ports
    table, broken = f"{PREFIX}sales", "l-broken"
    for row in ({"pk": "ports", "sk": broken}, {"pk": f"port#{broken}", "sk": "-", "lease_id": broken}):
        functions.dynamo.run(put(table, row))
    newer = replace(ports, now_ms=lambda: 60_000 * 36)  # a run that begins at the first letter
    held = newer.hold_again(1_000)
    assert (held.put_back, held.faults) == (0, ("port: TypeError",))
    assert list(ports._listed("0")) == [lease_id, broken]
    ended = replace(ports, now_ms=iter(range(0, 9 * 10**9, 1_000)).__next__)
    assert ended.hold_again(1_000).faults == ("ports: some are left to the next run",)


def test_pool_access_is_no_port(functions: Functions) -> None:
    list_modems(functions, "m1")
    functions.call("/v1/x402/pool?traffic=0.1")
    functions.chain.verdicts["0x" + "aa" * 32] = Valid(PAYER, 400_000, int(time.time()))
    pool = functions.call("/v1/x402/pool?traffic=0.1", headers={"payment-signature": "0x" + "aa" * 32})
    assert functions.call(SESSION, headers=token(pool)).status == 409
    assert functions.call(REPLACE, "POST", {}, token(pool)).status == 409


def test_a_payment_for_a_port_buys_no_other_tier(functions: Functions) -> None:
    list_modems(functions, "m1", "m2")
    twice = QUERY.replace("0.1", "0.2")
    assert functions.call(twice).body["paymentRequirement"]["accepts"][0]["maxAmountRequired"] == "800000"
    paying = {"payment-signature": "0x" + "ab" * 32}
    functions.chain.verdicts[paying["payment-signature"]] = Valid(PAYER, 800_000, int(time.time()))
    assert functions.call(PRIVATE, headers=paying).status == 403
    assert functions.call(twice, headers=paying).status == 200


def test_a_payment_for_one_kind_of_port_does_not_give_out_another_kind(functions: Functions) -> None:
    list_modems(functions, "m1")
    bought = buy(functions, micro=400_000)
    paying = {"payment-signature": "0x" + "01" * 32}
    assert bought.status == 200, bought.body
    assert functions.call(QUERY, headers=paying).body["proxy"] == bought.body["proxy"]
    assert functions.call(PRIVATE, headers=paying).status == 409


def test_free_time_holds_a_device_no_longer_than_the_catalogue_allows_after_it_was_paid_for(
    functions: Functions,
) -> None:
    list_modems(functions, "m1")
    headers = token(private(functions))
    path, most = "/v1/x402/manage/session/topup", PRICES["duration_max_s"]
    longest = functions.call(path, "POST", {"addDurationSeconds": most}, headers).body["credit"]["expiresAt"]
    later = functions.sale_wiring.counter.now_ms() + 80 * 86_400_000
    counter = replace(functions.sale_wiring.counter, now_ms=lambda: later)
    functions.sale_wiring = replace(functions.sale_wiring, counter=counter)
    functions.validated_at(later)
    again = functions.call(path, "POST", {"addDurationSeconds": most}, headers)
    assert (again.status, again.body["credit"]["expiresAt"]) == (200, longest)


def test_what_was_bought_stays_manageable_when_its_kind_is_off_sale(functions: Functions) -> None:
    list_modems(functions, "m1")
    bought = private(functions)
    setting = {**PRICES, "ports": {}}
    functions.dynamo.run(write_setting(f"{PREFIX}guard", "prices", setting, now_ms()))
    functions.sale_wiring.live._kept.clear()
    pool = "/v1/x402/manage/pool"
    session = functions.call(SESSION, headers=token(bought))
    assert (session.status, session.body["credit"]["tier"]) == (200, "private")
    assert functions.call(f"{pool}/credit", headers=token(bought)).body["credit"]["tier"] == "private"
    shown = functions.call(f"{pool}/connection", headers=token(bought))
    assert (shown.status, shown.body["proxy"]["allowed"]["tier"]) == (200, "private")
    assert shown.body["proxy"]["http"] == bought.body["proxy"]["http"]
    changed = functions.call(f"{pool}/regenerate", "POST", {}, token(bought))
    assert (changed.status, changed.body["proxy"]["username"]) == (200, bought.body["proxy"]["username"])
    assert changed.body["proxy"]["password"] != bought.body["proxy"]["password"]
    closed = functions.call("/v1/x402/manage/session/topup", "POST", {"addTrafficGB": 1}, token(bought))
    assert closed.status == 503


def test_a_secret_is_kept_when_the_answer_cannot_be_made(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_modems(functions, "m1")
    bought = private(functions)

    def away(*_: object) -> Any:
        raise StoreUnavailable("settings: away")

    with monkeypatch.context() as patched:
        patched.setattr(Sale, "held", away)
        assert functions.call("/v1/x402/manage/pool/regenerate", "POST", {}, token(bought)).status == 503
    shown = functions.call("/v1/x402/manage/pool/connection", headers=token(bought))
    assert shown.body["proxy"]["password"] == bought.body["proxy"]["password"]
