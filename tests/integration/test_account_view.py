"""An account's own view: sessions listed and closed, credentials, stats, and the history of all its keys."""

from typing import Any

import pytest

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.table import apply_items, put_batch
from shared.pool.live import acquire, list_endpoint
from shared.pool.model import Acquired
from shared.pool.username import parse_username
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import put, transact
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.pool import modem

pytestmark = pytest.mark.slow
KEYS = "/v1/reseller/pool-keys"
SESSIONS = "/v1/gateway/pool/my-sessions"


def me(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.reseller}


def other(functions: Functions) -> dict[str, str]:
    admin = {"x-api-key": functions.keys.admin}
    functions.call("/v1/admin/accounts", "POST", {"accountId": "psx_other", "kind": "reseller"}, admin)
    made = functions.call("/v1/admin/accounts/psx_other/api-keys", "POST", {"scopes": ["resell"]}, admin)
    return {"x-api-key": made.body["apiKey"]}


def new_key(functions: Functions, label: str = "one") -> str:
    made = functions.call(KEYS, "POST", {"label": label, "trafficCapGB": 1}, me(functions))
    return str(made.body["id"])


def open_session(functions: Functions, pak_id: str, sid: str) -> None:
    functions.redis.run(list_endpoint(modem("m1", "us")))
    route = parse_username(f"psx_reseller1-mbl-us-sid-{sid}")
    got = functions.redis.run(acquire(route, Pool.MBL, PakId(pak_id), GatewayId("g"), now_ms()))
    assert isinstance(got, Acquired)


def listed(functions: Functions, headers: dict[str, str], query: str = "") -> list[dict[str, Any]]:
    answer = functions.call(SESSIONS + query, headers=headers).body
    assert answer["count"] == len(answer["sessions"])
    return list(answer["sessions"])


def test_sessions_are_listed_by_key_and_closed_one_by_one_or_all(functions: Functions) -> None:
    first, second = new_key(functions), new_key(functions)
    for pak_id, sid in ((first, "a"), (first, "b"), (second, "c")):
        open_session(functions, pak_id, sid)
    mine = listed(functions, me(functions))
    assert sorted(s["sessionId"] for s in mine) == ["a", "b", "c"]
    assert {(s["pool"], s["country"], s["endpointId"], s["ttl"]) for s in mine} == {("mbl", "us", "m1", 3600)}
    of_first = listed(functions, me(functions), f"?pakId={first}")
    assert sorted(s["sessionId"] for s in of_first) == ["a", "b"]
    path = f"{SESSIONS}/{of_first[0]['sessionKey']}"
    assert functions.call(f"{path}?pakId={second}", "DELETE", headers=me(functions)).status == 404
    assert functions.call(path, "DELETE", headers=me(functions)).status == 200
    assert functions.call(path, "DELETE", headers=me(functions)).status == 404
    assert functions.call(f"{SESSIONS}?pakId={first}", "DELETE", headers=me(functions)).body == {"closed": 1}
    assert [s["sessionId"] for s in listed(functions, me(functions))] == ["c"]
    assert functions.call(SESSIONS, "DELETE", headers=me(functions)).body == {"closed": 1}
    assert listed(functions, me(functions)) == []


def test_another_accounts_key_has_no_sessions_and_nothing_to_close(functions: Functions) -> None:
    pak_id = new_key(functions)
    open_session(functions, pak_id, "a")
    stranger = other(functions)
    assert listed(functions, stranger) == []
    assert listed(functions, stranger, f"?pakId={pak_id}") == []
    assert functions.call(f"{SESSIONS}?pakId={pak_id}", "DELETE", headers=stranger).body == {"closed": 0}
    assert functions.call(f"{SESSIONS}/mbl:{pak_id}:a", "DELETE", headers=stranger).status == 404
    assert functions.call(f"{SESSIONS}/nonsense", "DELETE", headers=stranger).status == 404
    assert functions.call(f"/v1/gateway/credentials?pakId={pak_id}", headers=stranger).status == 404
    assert len(listed(functions, me(functions))) == 1


def test_credentials_are_told_and_a_password_is_on_record(functions: Functions) -> None:
    pak_id = new_key(functions)
    told = functions.call("/v1/gateway/credentials", headers=me(functions)).body
    assert (told["username"], told["host"], told["httpPort"]) == ("psx_reseller1", "gw.example", 7000)
    assert [k["id"] for k in told["keys"]] == [pak_id]
    assert "password" not in told
    one = functions.call(f"/v1/gateway/credentials?pakId={pak_id}", headers=me(functions)).body
    assert one["password"].startswith("pak_")
    history = functions.call(f"{KEYS}/{pak_id}/audit", headers=me(functions)).body
    assert [e["action"] for e in history] == ["reveal", "create"]


def test_stats_and_usage_add_up_the_same_bytes(functions: Functions) -> None:
    ids = [new_key(functions), new_key(functions)]
    lines = tuple(
        UsageLine(
            LineKey(
                PakId(pak_id),
                AccountId("psx_reseller1"),
                DeviceId("d"),
                AccountId("psx_s"),
                Country("us"),
                Pool.MBL,
                IpType.MOBILE,
            ),
            10,
            20,
        )
        for pak_id in ids
    )
    batch = FlushBatch(GatewayId("g"), 0, now_ms(), lines)
    functions.dynamo.run(put_batch(PREFIX + "usage", batch))
    assert functions.dynamo.run(transact(apply_items(PREFIX + "usage", batch))) is None
    stats = functions.call("/v1/gateway/pool/my-stats", headers=me(functions)).body
    assert (stats["totalBytes"], stats["days"][0]["bytesOut"], stats["activeSessions"]) == (60, 20, 0)
    used = functions.call(f"{KEYS}/{ids[0]}/usage?days=2", headers=me(functions)).body["usage"]
    assert [(d["bytesOut"], d["bytesIn"]) for d in used] == [(10, 20)]


def audit(functions: Functions, query: str = "") -> Reply:
    return functions.call(f"{KEYS}/audit{query}", headers=me(functions))


def test_the_history_of_all_keys_is_paged_and_filtered(functions: Functions) -> None:
    ids = [new_key(functions, str(n)) for n in range(3)]
    functions.call(f"{KEYS}/{ids[1]}/reveal", "POST", {}, me(functions))
    everything = audit(functions).body
    assert [(e["action"], e["pakId"]) for e in everything] == [
        ("reveal", ids[1]),
        ("create", ids[2]),
        ("create", ids[1]),
        ("create", ids[0]),
    ]
    assert audit(functions, "?action=reveal").body == everything[:1]
    first = audit(functions, "?limit=2").body
    rest = functions.call(
        f"{KEYS}/audit?limit=9&before={first[-1]['id'].replace('#', '%23')}", headers=me(functions)
    ).body
    assert first + rest == everything
    assert audit(functions, f"?before={everything[-1]['createdAt']}").body == []
    assert audit(functions, "?action=nonsense").status == 400
    assert functions.call(f"{KEYS}/audit", headers=other(functions)).body == []


def test_lists_go_on_by_their_cursors(functions: Functions) -> None:
    headers = {"x-api-key": functions.keys.reseller}
    ids = [
        functions.call("/v1/reseller/pool-keys", "POST", {"label": "k", "trafficCapGB": 1}, headers).body[
            "id"
        ]
        for _ in range(3)
    ]
    for number in range(3):
        functions.redis.run(list_endpoint(modem(f"m{number}", "us")))
        route = parse_username(f"psx_reseller1-mbl-us-sid-s{number}")
        functions.redis.run(acquire(route, Pool.MBL, PakId(ids[0]), GatewayId("g"), now_ms() + number))
    found = list[str]()
    cursor: str | None = ""
    while cursor is not None:
        body = functions.call(f"/v1/gateway/pool/my-sessions?limit=1&cursor={cursor}", headers=headers).body
        found += [s["sessionId"] for s in body["sessions"]]
        cursor = body["nextCursor"]
    assert found == ["s2", "s1", "s0"]
    usage = PREFIX + "usage"
    for day in ("2026-01-30", "2026-01-31", "2026-02-01"):
        row = {"pk": f"pak#{ids[0]}", "sk": f"day#{day}", "up_bytes": 1, "down_bytes": 0}
        functions.dynamo.run(put(usage, row))
    path = f"/v1/reseller/pool-keys/{ids[0]}/usage?since=2026-01-01&days=2"
    first = functions.call(path, headers=headers).body
    assert ([d["day"] for d in first["usage"]], first["nextSince"]) == (
        ["2026-01-30", "2026-01-31"],
        "2026-02-01",
    )
    rest = functions.call(path.replace("2026-01-01", first["nextSince"]), headers=headers).body
    assert ([d["day"] for d in rest["usage"]], rest["nextSince"]) == (["2026-02-01"], None)
