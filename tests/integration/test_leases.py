"""Reserved devices over the API and its job: reserved, used, extended, asked for an address, moved, put back, released."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis as redis_client

from functions.api import leases as routes
from local import lab
from shared.access.idempotency import operation_id
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import DeviceId, EndpointId, GatewayId, PakId, RelayId
from shared.pool import live
from shared.pool.lease_keeping import KeepLeases, Kept
from shared.pool.leases import IDLE_MAX_S, MOVE_AFTER_MS, ROTATION_MAX_MS
from shared.pool.leasing import Leasing
from shared.pool.model import Acquired, NoStock, NoStockReason, Selected
from shared.pool.presence import drop_presences, put_presence
from shared.pool.rotation import Outcome, RotationState, tell_rotated
from shared.pool.username import parse_username
from shared.runtime import clock
from shared.runtime.dynamo import SyncDynamo
from tests.integration.test_idempotency import lapse
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.pool import modem, peer, presence

pytestmark = pytest.mark.slow
GATEWAY = GatewayId("g")
US = {"country": "us", "ipType": "residential"}


@dataclass
class Bed:
    """The API with a reseller's key, and a clock that a test moves."""

    functions: Functions
    later_ms: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def now(self) -> int:
        return clock.now_ms() + self.later_ms

    def call(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Reply:
        return self.functions.call(path, method, body, self.headers | headers)

    def make_key(self, name: str, **fields: Any) -> str:
        made = self.call("/v1/reseller/pool-keys", "POST", {"label": name, "trafficCapGB": 1, **fields}).body
        self.keys[made["id"]] = made["username"]
        return str(made["id"])

    def peers(self, *names: str, ip_type: IpType = IpType.RESIDENTIAL) -> None:
        for name in names:
            self.run(live.list_endpoint(peer(name, ip_type=ip_type)))
            self.run(put_presence(presence(name)))

    def run(self, call: Any) -> Any:
        return self.functions.redis.run(call)

    def reserve(self, pool_id: str, **more: Any) -> dict[str, Any]:
        reply = self.call(f"/v1/private-pool/{pool_id}/leases", "POST", US | more)
        assert reply.status == 200, reply.body
        return dict(reply.body)

    def lease(self, lease_id: str) -> dict[str, Any]:
        return dict(self.call(f"/v1/private-pool/leases/{lease_id}").body)

    def take(self, lease: dict[str, Any], pak_id: str = "") -> Acquired | NoStock:
        route = parse_username(lease["proxy"]["username"])
        pak = PakId(pak_id or lease["poolId"])
        taken = self.run(live.acquire(route, route.pools[0], pak, GATEWAY, self.now()))
        assert isinstance(taken, Acquired | NoStock)
        return taken

    def device(self, lease: dict[str, Any]) -> str:
        """The device that a connection of this lease comes out of; it ends at once."""
        taken = self.take(lease)
        if isinstance(taken, NoStock):
            return ""
        self.end(taken, lease)
        return str(taken.endpoint.endpoint_id)

    def end(self, taken: Acquired, lease: dict[str, Any]) -> None:
        held = [(taken.endpoint.endpoint_id, PakId(lease["poolId"]), 1)]
        self.run(live.release(taken.endpoint.pool, GATEWAY, held))

    def keep(self) -> Kept:
        """One run of the job."""
        leasing = Leasing(
            self.functions.dynamo, self.functions.redis, PREFIX + "access", self.now, moved_percent=100
        )
        return KeepLeases(leasing, PREFIX + "audit", self.now).run()


@pytest.fixture
def bed(
    dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bed]:
    functions = Functions(dynamo, valkey_url, lab_files)
    functions.held_at_most(100)
    made = Bed(functions)
    monkeypatch.setattr(routes, "now_ms", made.now)
    admin = {"x-api-key": functions.keys.admin}
    functions.call("/v1/admin/accounts", "POST", {"accountId": "psx_holder", "kind": "reseller"}, admin)
    key = functions.call("/v1/admin/accounts/psx_holder/api-keys", "POST", {"scopes": ["resell"]}, admin)
    made.headers = {"x-api-key": key.body["apiKey"]}
    yield made
    functions.close()


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body.get("code", "")


def test_a_reserved_device_is_its_keys_alone_until_it_is_released(bed: Bed) -> None:
    bed.peers("d1", "d2")
    pool, other = bed.make_key("one"), bed.make_key("two")
    lease = bed.reserve(pool, carrier="unheard_of", idleTtlSec=10**6)
    assert (lease["poolId"], lease["status"], lease["idleTtlSec"]) == (pool, "active", IDLE_MAX_S)
    assert (lease["rotationMode"], lease["rotation"], lease["failover"]) == ("ondemand", None, "samecountry")
    mine = lease["endpointId"]
    assert {bed.device(lease) for _ in range(4)} == {mine}
    stolen = bed.take(lease, other)
    assert isinstance(stolen, NoStock)
    assert stolen.reason is NoStockReason.LEASE
    route = parse_username("psx_other-peer-us")
    for _ in range(8):
        taken = bed.run(live.acquire(route, Pool.PEER, PakId("x"), GATEWAY, bed.now()))
        assert isinstance(taken, Acquired)
        assert taken.endpoint.endpoint_id != mine
        bed.run(live.release(Pool.PEER, GATEWAY, [(taken.endpoint.endpoint_id, PakId("x"), 1)]))
    path = f"/v1/private-pool/leases/{lease['id']}"
    for _ in range(2):  # who was not answered may say it again
        assert bed.call(path, "DELETE").body == {"id": lease["id"], "released": True}
    closed = bed.take(lease)
    assert isinstance(closed, NoStock)
    assert closed.reason is NoStockReason.LEASE
    assert code(bed.call(path)) == (404, "NOT_FOUND")
    assert code(bed.call(f"{path}/extend", "POST")) == (404, "NOT_FOUND")
    assert bed.reserve(other)["endpointId"] in {"d1", "d2"}


def test_leases_of_a_key_are_listed_in_pages_the_newest_first(bed: Bed) -> None:
    bed.peers(*(f"d{n}" for n in range(6)))
    pool, other = bed.make_key("one"), bed.make_key("two")
    made = []
    for bed.later_ms in (0, 1000, 2000):
        made.append(bed.reserve(pool)["id"])
    path = f"/v1/private-pool/{pool}/leases"
    first = bed.call(f"{path}?limit=2").body
    second = bed.call(f"{path}?limit=2&cursor={first['nextCursor'].replace('#', '%23')}").body
    assert [lease["id"] for page in (first, second) for lease in page["leases"]] == made[::-1]
    assert second["nextCursor"] is None
    assert bed.call(f"/v1/private-pool/{other}/leases").body == {"leases": [], "count": 0, "nextCursor": None}
    assert code(bed.call(f"{path}?cursor=elsewhere")) == (400, "INVALID_FIELD")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"country": "u-s"}, "country"),
        ({"country": "usx"}, "country"),
        ({}, "country"),
        ({"country": "us", "ipType": "unknown"}, "ipType"),
        ({"country": "us", "ipType": "moon"}, "ipType"),
        ({"country": "us", "carrier": "a-b"}, "carrier"),
        ({"country": "us", "failover": "never"}, "failover"),
        ({"country": "us", "idleTtlSec": -1}, "idleTtlSec"),
        ({"country": "us", "idleTtlSec": "60"}, "idleTtlSec"),
    ],
)
def test_a_wrong_wish_is_refused_by_the_name_of_its_field(bed: Bed, body: dict[str, Any], field: str) -> None:
    reply = bed.call(f"/v1/private-pool/{bed.make_key('one')}/leases", "POST", body)
    assert code(reply) == (400, "INVALID_FIELD")
    assert reply.body["message"].startswith(f"{field}:")


def test_where_nothing_is_free_nothing_is_kept_and_a_lock_of_the_key_holds(bed: Bed) -> None:
    bed.peers("d1")
    safe, pool = bed.make_key("safe", qualityTier="safe"), bed.make_key("one")
    path = "/v1/private-pool/{}/leases".format
    assert code(bed.call(path(safe), "POST", US)) == (409, "NO_DEVICE_FREE")
    assert code(bed.call(path(pool), "POST", US | {"carrier": "x", "failover": "strict"})) == (
        409,
        "NO_DEVICE_FREE",
    )
    bed.run(live.list_endpoint(modem("m1")))
    assert bed.reserve(safe, ipType="mobile")["pool"] == "mbl"
    bed.run(drop_presences([DeviceId("d1")], RelayId("r1")))
    assert code(bed.call(path(pool), "POST", US)) == (409, "NO_DEVICE_FREE")
    bed.call(f"/v1/reseller/pool-keys/{pool}", "PATCH", {"enabled": False})
    assert code(bed.call(path(pool), "POST", US)) == (409, "KEY_NOT_ACTIVE")
    assert bed.keep().leases == 1


def test_an_account_has_as_many_leases_as_the_setting_says_and_a_refused_one_holds_nothing(bed: Bed) -> None:
    bed.peers("d1", "d2", "d3")
    setting = {"per_account": 2, "rotations_per_hour": 1, "share_percent": 100}
    admin = {"x-api-key": bed.functions.keys.admin}
    path = "/v1/admin/settings/leases"
    assert bed.functions.call(path, "PUT", setting | {"rotations_per_hour": 0}, admin).status == 400
    assert bed.functions.call(path, "PUT", setting, admin).status == 200
    one, two = bed.make_key("one"), bed.make_key("two")
    first = bed.reserve(one)
    bed.reserve(two)
    refused = bed.call(f"/v1/private-pool/{one}/leases", "POST", US)
    assert code(refused) == (409, "TOO_MANY_LEASES")
    bed.call(f"/v1/private-pool/leases/{first['id']}", "DELETE")
    assert bed.reserve(one)["status"] == "active"
    assert isinstance(
        bed.run(live.acquire(parse_username("psx_b-peer-us"), Pool.PEER, PakId("b"), GATEWAY, bed.now())),
        Acquired,
    )


def test_a_repeat_of_a_reservation_whose_answer_was_lost_gets_the_same_lease(bed: Bed) -> None:
    bed.peers("d1", "d2")
    pool = bed.make_key("one")
    path, keyed = f"/v1/private-pool/{pool}/leases", {"idempotency-key": "reserve-once-1"}
    first = bed.functions.call(path, "POST", US, bed.headers | keyed)
    lapse(bed.functions, operation_id(f"x-api-key:{bed.headers['x-api-key']}", keyed["idempotency-key"]))
    again = bed.functions.call(path, "POST", US, bed.headers | keyed)
    assert "idempotency-replayed" not in again.headers
    assert (first.status, again.body["id"]) == (200, first.body["id"])
    assert len(bed.call(path).body["leases"]) == 1


def test_leases_take_a_quarter_of_a_country_and_never_its_last_device(bed: Bed) -> None:
    bed.functions.held_at_most(50)
    bed.peers("d1")
    pool = bed.make_key("one")
    path = f"/v1/private-pool/{pool}/leases"
    assert code(bed.call(path, "POST", US)) == (409, "NO_DEVICE_FREE"), "it is the last one"
    bed.peers("d2")
    first = bed.reserve(pool)
    bed.peers("d3")
    assert code(bed.call(path, "POST", US)) == (409, "NO_DEVICE_FREE")
    for number in range(9):
        bed.run(live.list_endpoint(peer(f"far{number}", country="br")))
    anywhere = US | {"country": "any", "ipType": "residential"}
    assert code(bed.call(path, "POST", anywhere)) == (409, "NO_DEVICE_FREE"), "also not by way of any country"
    bed.peers(*(f"d{number}" for number in range(4, 9)))
    assert bed.reserve(pool)["status"] == "active"
    assert code(bed.call(path, "POST", US)) == (409, "NO_DEVICE_FREE")
    bed.call(f"/v1/private-pool/leases/{first['id']}", "DELETE")
    assert bed.reserve(pool)["status"] == "active"


def rotate(bed: Bed, lease: dict[str, Any]) -> Reply:
    return bed.call(f"/v1/private-pool/leases/{lease['id']}/rotate", "POST")


def test_a_rotation_is_asked_for_and_what_the_device_said_is_told(bed: Bed) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"))
    asked = rotate(bed, lease)
    assert (asked.status, asked.body["rotation"]["state"]) == (202, "asked")
    request_id = asked.body["rotation"]["requestId"]
    said = Outcome(RotationState.DONE, bed.now(), "", True)
    assert not bed.run(tell_rotated(DeviceId("another"), request_id, said)), "only the device itself answers"
    assert bed.run(tell_rotated(DeviceId("d1"), request_id, said))
    told = bed.lease(lease["id"])["rotation"]
    assert (told["state"], told["answeredAt"], told["addressChanged"]) == ("done", said.at_ms, True)
    too_soon = rotate(bed, lease)
    assert code(too_soon) == (409, "ROTATION_COOLDOWN")
    assert 0 < int(too_soon.headers["retry-after"]) <= 10
    bed.later_ms = 10_000
    assert rotate(bed, lease).status == 202
    bed.later_ms += ROTATION_MAX_MS + 1
    assert bed.lease(lease["id"])["rotation"]["state"] == "unanswered"


def test_rotations_have_a_budget_for_the_hour_and_a_device_that_is_away_is_not_asked(bed: Bed) -> None:
    bed.functions.dynamo.run(
        write_setting(
            PREFIX + "guard", "leases", {"per_account": 5, "rotations_per_hour": 2, "share_percent": 100}, 0
        )
    )
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"))
    for bed.later_ms in (0, 11_000):
        assert rotate(bed, lease).status == 202
    bed.later_ms = 22_000
    spent = rotate(bed, lease)
    assert code(spent) == (409, "ROTATION_BUDGET_SPENT")
    assert int(spent.headers["retry-after"]) > 10
    bed.run(drop_presences([DeviceId("d1")], RelayId("r1")))
    assert code(rotate(bed, lease)) == (409, "DEVICE_AWAY")


def test_a_modem_is_never_asked_for_another_address(bed: Bed) -> None:
    bed.run(live.list_endpoint(modem("m1")))
    lease = bed.reserve(bed.make_key("one"), ipType="mobile")
    assert code(rotate(bed, lease)) == (409, "ROTATION_UNSUPPORTED")
    path = f"/v1/private-pool/leases/{lease['id']}/rotation-mode"
    assert code(bed.call(path, "PATCH", {"mode": "auto5"})) == (409, "ROTATION_UNSUPPORTED")
    assert bed.call(path, "PATCH", {"mode": "manual"}).body["rotationMode"] == "ondemand"
    assert code(bed.call(path, "PATCH", {"mode": "auto7"})) == (400, "INVALID_FIELD")


def test_a_lease_that_rotates_by_itself_is_asked_in_its_time_by_the_job(bed: Bed) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"), idleTtlSec=3600)
    path = f"/v1/private-pool/leases/{lease['id']}/rotation-mode"
    assert bed.call(path, "PATCH", {"mode": "auto5"}).body["rotationMode"] == "auto5"
    bed.later_ms = 290_000
    assert bed.keep().rotated == 0
    bed.later_ms = 301_000
    assert (bed.keep().rotated, bed.keep().rotated) == (1, 0)
    assert bed.lease(lease["id"])["rotation"]["state"] == "asked"


def test_what_nothing_used_is_released_and_what_is_used_or_extended_stays(bed: Bed) -> None:
    bed.peers(*(f"d{n}" for n in range(6)))
    pool = bed.make_key("one")
    idle, used, extended = (bed.reserve(pool, idleTtlSec=300) for _ in range(3))
    taken = bed.take(used)
    bed.later_ms = 200_000
    longer = bed.call(f"/v1/private-pool/leases/{extended['id']}/extend", "POST", {"idleTtlSec": 7200}).body
    assert longer["expiresAt"] == pytest.approx(bed.now() + 7_200_000, abs=60_000)
    assert bed.keep().idle == 0
    bed.later_ms = 301_000
    assert bed.keep().idle == 1
    assert bed.lease(idle["id"])["code"] == "NOT_FOUND"
    assert isinstance(bed.take(idle), NoStock)
    assert bed.lease(used["id"])["lastUsedAt"] is not None
    assert isinstance(taken, Acquired)
    bed.end(taken, used)
    bed.later_ms = 700_000
    assert bed.keep().idle == 1
    assert bed.lease(extended["id"])["status"] == "active"


def test_holds_that_redis_lost_are_put_back_on_their_devices(bed: Bed, valkey_url: str) -> None:
    bed.peers("d1", "d2")
    lease = bed.reserve(bed.make_key("one"))
    with redis_client.Redis.from_url(valkey_url) as client:
        client.flushall()
    assert isinstance(bed.take(lease), NoStock), "nobody else's device is given out for it"
    bed.peers("d1", "d2")
    assert (bed.keep().put_back, bed.keep().put_back) == (1, 0)
    assert bed.device(lease) == lease["endpointId"]
    assert isinstance(bed.take(lease, bed.make_key("two")), NoStock)


def test_a_lost_hold_whose_device_was_sold_meanwhile_is_on_another_one(bed: Bed, valkey_url: str) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"))
    with redis_client.Redis.from_url(valkey_url) as client:
        client.flushall()
    bed.peers("d1")
    other = bed.reserve(bed.make_key("two"))
    bed.peers("d2")
    assert bed.keep().put_back == 1
    assert (bed.lease(lease["id"])["endpointId"], other["endpointId"]) == ("d2", "d1")


@pytest.mark.parametrize(("failover", "moves"), [("samecountry", True), ("strict", False)])
def test_an_owners_stop_wins_and_the_lease_moves_if_it_may(bed: Bed, failover: str, moves: bool) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"), idleTtlSec=7200, failover=failover)
    bed.run(live.unlist_endpoint(Pool.PEER, EndpointId("d1")))
    assert bed.lease(lease["id"])["status"] == "unavailable"
    bed.peers("d2")
    stands_in = bed.take(lease)
    assert isinstance(stands_in, Acquired) is moves
    if isinstance(stands_in, Acquired):
        assert stands_in.selected is Selected.INSTEAD_OF_PIN
        bed.end(stands_in, lease)
    assert bed.keep().moved == 0
    bed.later_ms = MOVE_AFTER_MS - 1
    used_ms, stands_in = bed.now(), bed.take(lease)
    if isinstance(stands_in, Acquired):
        bed.end(stands_in, lease)
    bed.later_ms = MOVE_AFTER_MS
    assert bed.keep().moved == int(moves)
    kept = bed.lease(lease["id"])
    assert kept["endpointId"] == ("d2" if moves else "d1")
    assert not moves or kept["expiresAt"] >= used_ms + 7_200_000, "it was used all the time"
    assert bed.device(lease) == ("d2" if moves else "")
    bed.peers("d1")
    assert bed.device(lease) == ("d2" if moves else "d1")


def test_what_ran_out_and_is_somebody_elses_now_is_not_taken_back_by_an_extension(bed: Bed) -> None:
    bed.peers("d1")
    first = bed.reserve(bed.make_key("one"), idleTtlSec=120)
    bed.later_ms = 121_000
    second = bed.reserve(bed.make_key("two"), failover="strict")
    again = bed.call(f"/v1/private-pool/leases/{first['id']}/extend", "POST", {})
    assert code(again) == (409, "NO_DEVICE_FREE")
    taken = bed.take(second)
    assert isinstance(taken, Acquired)
    assert taken.endpoint.endpoint_id == "d1"
    assert isinstance(bed.take(first), NoStock)


def test_a_tunnel_by_way_of_a_stand_in_is_a_use_of_its_lease(bed: Bed) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"), idleTtlSec=120)
    bed.run(live.unlist_endpoint(Pool.PEER, EndpointId("d1")))
    bed.peers("d2")
    stands_in = bed.take(lease)
    assert isinstance(stands_in, Acquired)
    for at_ms in (100_000, 200_000, 300_000):
        bed.later_ms = at_ms
        assert bed.keep().idle == 0
    bed.end(stands_in, lease)
    bed.later_ms = 430_000
    assert bed.keep().idle == 1


def test_leases_of_a_deleted_key_end(bed: Bed) -> None:
    bed.peers("d1")
    pool, other = bed.make_key("one"), bed.make_key("two")
    lease = bed.reserve(pool)
    assert bed.call(f"/v1/reseller/pool-keys/{pool}", "DELETE").status == 200
    assert (bed.keep().keyless, bed.keep().keyless) == (1, 0)
    assert bed.lease(lease["id"])["code"] == "NOT_FOUND"
    assert bed.reserve(other)["endpointId"] == "d1"


def test_a_release_that_redis_missed_is_carried_out_by_the_job(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.peers("d1")
    lease = bed.reserve(bed.make_key("one"))
    unheard: Callable[..., None] = lambda self, lease: None  # noqa: E731 - stands for a Redis that is away
    with monkeypatch.context() as away:
        away.setattr(Leasing, "let_go", unheard)
        bed.call(f"/v1/private-pool/leases/{lease['id']}", "DELETE")
    assert bed.device(lease) == "d1"
    bed.keep()
    assert bed.device(lease) == ""
