"""Prepaid GB: credited by two admins, drawn by keys, never promised twice."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from functions.api import balance
from shared.access.prepaid import get_prepaid, move_items
from shared.access.settling import SETTLE_AFTER_MS
from shared.guard.table import entries
from shared.kernel.ids import AccountId, GatewayId, PakId
from shared.kernel.money import BYTES_PER_GB
from shared.metering.live import close_meter, flushes, lease, open_meter
from shared.metering.model import Ask
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo, transact, update
from shared.runtime.redis import command
from shared.settlement.ended_keys import Ended, EndKeys
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"
CREDITS = "/v1/admin/resellers/psx_reseller1/credits"


def admin(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.admin}


def me(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.reseller}


def one(functions: Functions) -> dict[str, str]:
    return functions.person("one@example.org")


def other(functions: Functions) -> dict[str, str]:
    return functions.person("other@example.org")


def credit(functions: Functions, traffic: float) -> None:
    asked = functions.call(CREDITS, "POST", {"trafficGB": traffic, "reason": "wire"}, one(functions))
    path = f"/v1/admin/credits/{asked.body['approvalId']}/approve"
    assert functions.call(path, "POST", {}, other(functions)).status == 200


def available(functions: Functions) -> float:
    return float(functions.call("/v1/reseller/balance", headers=me(functions)).body["availableGB"])


def create(functions: Functions, cap: float, **more: int) -> Reply:
    return functions.call(KEYS, "POST", {"label": "k", "trafficCapGB": cap, **more}, me(functions))


def test_a_credit_needs_another_person_and_is_posted_once(functions: Functions) -> None:
    asked = functions.call(CREDITS, "POST", {"trafficGB": 5, "reason": "wire"}, one(functions))
    assert (asked.status, asked.body["state"]) == (202, "proposed")
    assert asked.body["proposedBy"] == "one@example.org"
    path = f"/v1/admin/credits/{asked.body['approvalId']}"
    own = functions.call(f"{path}/approve", "POST", {}, one(functions))
    assert (own.status, own.body["code"]) == (403, "SECOND_PERSON_NEEDED")
    assert functions.call(f"{path}/approve", "POST", {}, me(functions)).status == 403
    assert available(functions) == 0
    for _ in range(2):
        assert functions.call(f"{path}/approve", "POST", {}, other(functions)).body["state"] == "approved"
    assert functions.call(f"{path}/reject", "POST", {}, other(functions)).status == 409
    assert available(functions) == 5
    assert functions.call("/v1/admin/credits/none/approve", "POST", {}, other(functions)).status == 404


def test_a_credit_is_asked_for_and_decided_by_no_key_and_by_no_newcomer(functions: Functions) -> None:
    body = {"accountId": "psx_admin2", "kind": "admin"}
    functions.call("/v1/admin/accounts", "POST", body, admin(functions))
    keys = "/v1/admin/accounts/psx_admin2/api-keys"
    made = functions.call(keys, "POST", {"scopes": ["admin"]}, admin(functions)).body["apiKey"]
    wanted = {"trafficGB": 5, "reason": "wire"}
    asked = functions.call(CREDITS, "POST", wanted, one(functions)).body["approvalId"]
    newcomer = functions.person("new@example.org", created_at_ms=now_ms())
    for by, code in (({"x-api-key": made}, "HUMANS_ONLY"), (newcomer, "TOO_NEW")):
        for path, sent in ((f"/v1/admin/credits/{asked}/approve", {}), (CREDITS, wanted)):
            refused = functions.call(path, "POST", sent, by)
            assert (refused.status, refused.body["code"]) == (403, code)
    assert available(functions) == 0


def test_a_credit_that_was_asked_for_long_ago_is_asked_for_again(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = functions.call(CREDITS, "POST", {"trafficGB": 5, "reason": "wire"}, one(functions))
    monkeypatch.setattr(balance, "PROPOSAL_LIFE_MS", -1)
    path = f"/v1/admin/credits/{asked.body['approvalId']}/approve"
    late = functions.call(path, "POST", {}, other(functions))
    assert (late.status, late.body["code"], available(functions)) == (409, "PROPOSAL_TOO_OLD", 0)


def test_a_rejected_credit_credits_nothing(functions: Functions) -> None:
    asked = functions.call(CREDITS, "POST", {"trafficGB": 5, "reason": "wire"}, one(functions))
    path = f"/v1/admin/credits/{asked.body['approvalId']}"
    assert functions.call(f"{path}/reject", "POST", {}, other(functions)).status == 200
    assert functions.call(f"{path}/approve", "POST", {}, other(functions)).status == 409
    assert functions.call("/v1/reseller/balance", headers=me(functions)).body["prepaid"] is False


def test_keys_draw_on_the_balance_and_give_their_rest_back(functions: Functions) -> None:
    credit(functions, 5)
    made = create(functions, 3)
    assert (made.status, available(functions)) == (200, 2)
    refused = create(functions, 2.5)
    assert (refused.status, refused.body["code"]) == (402, "INSUFFICIENT_BALANCE")
    path = f"{KEYS}/{made.body['id']}"
    assert functions.call(f"{path}/topup", "POST", {"addTrafficGB": 3}, me(functions)).status == 402
    assert functions.call(f"{path}/topup", "POST", {"addTrafficGB": 1}, me(functions)).status == 200
    assert available(functions) == 1
    assert functions.call(path, "PATCH", {"trafficCapGB": 9}, me(functions)).status == 402
    assert functions.call(path, "PATCH", {"trafficCapGB": 2}, me(functions)).body["trafficCapGB"] == 2
    assert available(functions) == 3
    assert functions.call(path, "DELETE", headers=me(functions)).status == 200
    assert available(functions) == 3
    assert settle(functions).settled == 1
    assert (available(functions), settle(functions).settled) == (5, 0)


def settle(functions: Functions, after_ms: int = SETTLE_AFTER_MS + 1) -> Ended:
    """The job, when the last bytes of a key that was deleted now have been counted."""
    table = functions.api_wiring.settings.table
    return EndKeys(functions.dynamo, functions.redis, table, lambda: now_ms() + after_ms).run()


def test_bytes_that_are_told_after_a_key_was_deleted_are_not_given_back(functions: Functions) -> None:
    credit(functions, 5)
    pak_id = PakId(create(functions, 3).body["id"])
    assert functions.call(f"{KEYS}/{pak_id}", "DELETE", headers=me(functions)).status == 200
    assert (settle(functions, 0).settled, available(functions)) == (0, 2)
    for call in flushes(GatewayId("g"), 0, {pak_id: BYTES_PER_GB}, {}):  # a gateway's last flush
        functions.redis.run(call)
    assert settle(functions).given_back_bytes == 2 * BYTES_PER_GB
    assert available(functions) == 4
    history = functions.dynamo.run(entries(PREFIX + "audit", f"pak#{pak_id}", 10)).rows
    assert [e.event.action for e in history] == ["balance_returned", "delete", "create"]


def test_a_lower_cap_gives_back_nothing_that_gateways_may_have_carried(functions: Functions) -> None:
    credit(functions, 5)
    pak_id = PakId(create(functions, 3).body["id"])
    functions.redis.run(open_meter(pak_id, 0, 3 * BYTES_PER_GB))
    functions.redis.run(lease(GatewayId("g"), {pak_id: Ask(0, BYTES_PER_GB)}))
    path = f"{KEYS}/{pak_id}"
    assert functions.call(path, "PATCH", {"trafficCapGB": 0.001}, me(functions)).status == 200
    assert available(functions) == 4


def test_a_key_that_expires_unused_is_turned_off_and_one_that_was_extended_is_not(
    functions: Functions,
) -> None:
    ends = now_ms() + 30_000
    ids = [create(functions, 1, expiresAt=ends).body["id"] for _ in range(3)]
    assert functions.call(f"{KEYS}/{ids[1]}/topup", "POST", {"extendDays": 1}, me(functions)).status == 200
    assert functions.call(f"{KEYS}/{ids[2]}", "PATCH", {"enabled": False}, me(functions)).status == 200
    assert (settle(functions, 0).expired, settle(functions, 31_000).expired) == (0, 1)
    shown = [functions.call(f"{KEYS}/{ident}", headers=me(functions)).body for ident in ids]
    assert [s["disabledReason"] for s in shown] == ["expired", None, "admin"]
    assert settle(functions, 32_000).expired == 0
    history = functions.dynamo.run(entries(PREFIX + "audit", f"pak#{ids[0]}", 10)).rows
    assert [e.event.action for e in history] == ["auto_suspended_expired", "create"]
    late = now_ms() + 3_600_000
    body = {"enabled": True, "expiresAt": late}
    assert functions.call(f"{KEYS}/{ids[0]}", "PATCH", body, me(functions)).body["enabled"] is True
    assert settle(functions, 3_700_000).expired == 1


def counters(functions: Functions, pak_id: str) -> tuple[bytes | None, ...]:
    """What the live network keeps of a key."""
    names = ("{meter}:used", "{meter}:cap")
    return tuple(functions.redis.run(command("HGET", name, pak_id, parse=bytes_or_none)) for name in names)


def bytes_or_none(raw: bytes | None) -> bytes | None:
    return raw


def test_no_counter_is_kept_of_a_key_that_ended(functions: Functions) -> None:
    credit(functions, 5)
    expiring = PakId(create(functions, 1, expiresAt=now_ms() + 30_000).body["id"])
    deleted = PakId(create(functions, 1).body["id"])
    for pak_id in (expiring, deleted):
        use(functions, pak_id, 7)
        functions.redis.run(open_meter(pak_id, 7, BYTES_PER_GB))
    assert functions.call(f"{KEYS}/{deleted}", "DELETE", headers=me(functions)).status == 200
    assert (settle(functions, 31_000).closed, counters(functions, expiring)) == (1, (None, None))
    assert (settle(functions).closed, counters(functions, deleted)) == (1, (None, None))
    later = {"enabled": True, "expiresAt": now_ms() + 3_600_000}
    assert functions.call(f"{KEYS}/{expiring}", "PATCH", later, me(functions)).status == 200
    assert counters(functions, expiring) == (b"7", str(BYTES_PER_GB).encode())


def test_no_counter_is_kept_of_a_deleted_key_on_invoice_and_nothing_is_given_back(
    functions: Functions,
) -> None:
    pak_id = PakId(create(functions, 1).body["id"])
    use(functions, pak_id, 7)
    functions.redis.run(open_meter(pak_id, 7, BYTES_PER_GB))
    functions.redis.run(lease(GatewayId("g"), {pak_id: Ask(0, 1)}))
    assert functions.call(f"{KEYS}/{pak_id}", "DELETE", headers=me(functions)).status == 200
    report = settle(functions)
    assert (report.closed, report.settled, report.failures) == (0, 0, []), "a gateway still carries for it"
    functions.redis.run(command("DEL", f"{{meter}}:lease:{pak_id}", parse=int))
    assert (settle(functions).closed, counters(functions, pak_id)) == (1, (None, None))
    assert settle(functions).closed == 0, "it was looked at for good"
    history = functions.dynamo.run(entries(PREFIX + "audit", f"pak#{pak_id}", 10)).rows
    assert [e.event.action for e in history] == ["delete", "create"]


def test_a_key_that_is_given_time_while_its_counters_go_keeps_its_cap(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pak_id = PakId(create(functions, 1, expiresAt=now_ms() + 30_000).body["id"])
    later = {"enabled": True, "expiresAt": now_ms() + 3_600_000}

    def extended_before(*args: Any) -> Any:
        assert functions.call(f"{KEYS}/{pak_id}", "PATCH", later, me(functions)).status == 200
        return close_meter(*args)

    monkeypatch.setattr("shared.settlement.ended_keys.close_meter", extended_before)
    assert settle(functions, 31_000).expired == 1
    assert counters(functions, pak_id)[1] == str(BYTES_PER_GB).encode()


def use(functions: Functions, pak_id: str, size: int) -> None:
    asked = update(
        PREFIX + "access", f"pak#{pak_id}", "-", "ADD used_bytes :n", {":n": size}, parse=lambda _: None
    )
    functions.dynamo.run(asked)


def test_what_a_key_used_never_comes_back_to_the_balance(functions: Functions) -> None:
    credit(functions, 10)
    pak_id = create(functions, 8).body["id"]
    use(functions, pak_id, 6 * BYTES_PER_GB)
    path = f"{KEYS}/{pak_id}"
    for cap, left in ((0.001, 4), (6, 4), (7, 3), (0.5, 4)):
        assert functions.call(path, "PATCH", {"trafficCapGB": cap}, me(functions)).status == 200
        assert available(functions) == left
    assert functions.call(path, "DELETE", headers=me(functions)).status == 200
    settle(functions)
    assert available(functions) == 4


def test_caps_given_on_invoice_are_not_given_back_to_a_later_balance(functions: Functions) -> None:
    pak_ids = [create(functions, 1000).body["id"] for _ in range(2)]
    credit(functions, 5)
    assert functions.call(f"{KEYS}/{pak_ids[0]}", "PATCH", {"trafficCapGB": 1}, me(functions)).status == 200
    assert available(functions) == 5
    path = f"{KEYS}/{pak_ids[0]}/topup"
    assert functions.call(path, "POST", {"addTrafficGB": 2}, me(functions)).status == 200
    assert available(functions) == 3
    for pak_id in pak_ids:
        assert functions.call(f"{KEYS}/{pak_id}", "DELETE", headers=me(functions)).status == 200
    settle(functions)
    assert available(functions) == 5


def test_a_prepaid_partners_keys_have_caps(functions: Functions) -> None:
    body = {"accountId": "psx_partner1", "kind": "partner"}
    functions.call("/v1/admin/accounts", "POST", body, admin(functions))
    path = "/v1/admin/accounts/psx_partner1/api-keys"
    made = functions.call(path, "POST", {"scopes": ["resell"]}, admin(functions))
    partner = {"x-api-key": made.body["apiKey"]}
    uncapped = {"label": "k", "trafficCapGB": None}
    assert functions.call(KEYS, "POST", uncapped, partner).status == 200
    asked = functions.call(
        CREDITS.replace("reseller1", "partner1"), "POST", {"trafficGB": 1, "reason": "wire"}, one(functions)
    )
    path = f"/v1/admin/credits/{asked.body['approvalId']}/approve"
    assert functions.call(path, "POST", {}, other(functions)).status == 200
    refused = functions.call(KEYS, "POST", uncapped, partner)
    assert (refused.status, refused.body["message"].partition(":")[0]) == (400, "trafficCapGB")


def test_an_account_on_invoice_is_not_limited(functions: Functions) -> None:
    assert create(functions, 900).status == 200


def test_a_balance_is_never_promised_twice(dynoxide: SyncDynamo) -> None:
    from shared.access.prepaid import credit_items

    table, account = PREFIX + "access", AccountId("psx_r")
    for _ in range(2):
        dynoxide.run(transact(credit_items(table, account, "c1", 10 * BYTES_PER_GB, {})))
    prepaid = dynoxide.run(get_prepaid(table, account))
    assert prepaid is not None
    assert prepaid.available_bytes == 10 * BYTES_PER_GB

    def draw(_: int) -> bool:
        while True:
            try:
                return dynoxide.run(transact(move_items(table, prepaid, BYTES_PER_GB))) is None
            except Exception as error:
                if "TransactionConflict" not in str(error) and "Canceled" not in str(error):
                    raise

    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(draw, range(25)))
    left = dynoxide.run(get_prepaid(table, account))
    assert left is not None
    assert (sum(drawn), left.available_bytes, left.credited_bytes) == (10, 0, 10 * BYTES_PER_GB)


@pytest.mark.parametrize(
    ("traffic", "per_gb", "amount"),
    [
        ("1", "4", "4"),
        ("10", "3.6", "36"),
        ("99.5", "3.2", "318.4"),
        ("100", "2.8", "280"),
        ("250", "2.4", "600"),
    ],
)
def test_larger_purchases_cost_less_per_gb(
    functions: Functions, traffic: str, per_gb: str, amount: str
) -> None:
    quoted = functions.call(f"/v1/reseller/balance/quote?trafficGB={traffic}", headers=me(functions)).body
    assert (quoted["pricePerGB"], quoted["amountUSDC"]) == (per_gb, amount)


def test_the_steps_are_a_setting(functions: Functions) -> None:
    body = {"steps": [[0, 5_000_000], [2, 1_000_000]]}
    functions.call("/v1/admin/settings/wholesale", "PUT", body, admin(functions))
    quoted = functions.call("/v1/reseller/balance/quote?trafficGB=2", headers=me(functions)).body
    assert quoted["amountMicroUSDC"] == "2000000"
