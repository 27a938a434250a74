"""Registration under parallel callers, on a store that is right about transactions: counts exact, one device per name."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.access.secrets import token_hash
from shared.guard.model import AuditEvent
from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import service
from shared.supply import table as devices
from shared.supply.model import Kind, Origin, parse_regions
from shared.supply.owners import Withdrawal, request_withdrawal
from shared.supply.proving import prove_device
from shared.supply.rules import COUNT_SHARDS
from shared.supply.service import Arrival, EnrolFault, Enrolled, Enrolment, device_id_for
from tests.support.lab import pem_keys

pytestmark = pytest.mark.slow
OWNER = AccountId("psx_s")
TABLE = "psx-test-devices"
WORKERS = 12
REGIONS = parse_regions({"eu": {"url": "wss://eu.example/", "countries": ["*"]}})


@pytest.fixture
def enrolment(dynoxide: SyncDynamo) -> Enrolment:
    return Enrolment(
        dynoxide,
        SyncRedis("redis://127.0.0.1:9/0"),
        lambda name: f"psx-test-{name}",
        lambda address: Origin(),
        lambda: REGIONS,
        pem_keys()[0],
        now_ms,
    )


@pytest.fixture
def together() -> Iterator[Callable[[list[Callable[[], Any]]], list[Any]]]:
    with ThreadPoolExecutor(WORKERS) as pool:
        yield lambda calls: [future.result() for future in [pool.submit(call) for call in calls]]


def registers(enrolment: Enrolment, name: str) -> Callable[[], Enrolled | EnrolFault]:
    event = AuditEvent("", "register", OWNER, now_ms())
    arrival = Arrival(OWNER, device_id_for("k", name), name, Kind.AGENT, "192.0.2.1", True, event)
    return lambda: enrolment.register(arrival)


def counts(enrolment: Enrolment) -> tuple[int, int]:
    rows = enrolment.dynamo.run(devices.read_counts(TABLE, OWNER)).values()
    return sum(d for d, _ in rows), sum(u for _, u in rows)


def rows_of_devices(enrolment: Enrolment) -> int:
    return len(enrolment.dynamo.run(devices.of_account(TABLE, OWNER, 1000)).rows)


def test_a_device_that_registers_from_many_places_at_once_is_one_device(
    enrolment: Enrolment, together: Callable[..., list[Any]]
) -> None:
    results = together([registers(enrolment, "rig")] * 24)
    assert all(isinstance(r, Enrolled) for r in results)
    assert sum(r.created for r in results) == 1
    assert len({r.device.device_id for r in results}) == 1
    assert len({r.refresh_token for r in results}) == 24
    assert counts(enrolment) == (1, 1)
    assert rows_of_devices(enrolment) == 1


def test_ghosts_in_parallel_stop_exactly_at_the_cap_and_proven_devices_make_room(
    enrolment: Enrolment, together: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = 40
    for module in (devices, service):
        monkeypatch.setattr(module, "UNPROVEN_MAX", cap)
    results = together([registers(enrolment, f"ghost-{n}") for n in range(100)])
    told = Counter("enrolled" if isinstance(r, Enrolled) else r.name for r in results)
    assert told == {"enrolled": cap, "UNPROVEN_LIMIT": 100 - cap}
    assert counts(enrolment) == (cap, cap)
    assert rows_of_devices(enrolment) == cap
    grown = [r.device for r in results if isinstance(r, Enrolled)][:15]
    held = [enrolment.dynamo.run(devices.get_device(TABLE, d.device_id)) for d in grown]
    proofs = [
        lambda device=device: prove_device(enrolment.dynamo, TABLE, device, now_ms())
        for device in [d for d in held if d is not None] * 3
    ]
    proven = sum(together(proofs))
    while proven < 15:  # rows that were contended are proven by the next run
        proven += sum(together(proofs[:15]))
    assert proven == 15
    assert counts(enrolment) == (cap, cap - 15)
    results = together([registers(enrolment, f"more-{n}") for n in range(40)])
    assert sum(isinstance(r, Enrolled) for r in results) == 15
    assert counts(enrolment) == (cap + 15, cap)


def test_one_refresh_token_used_by_many_at_once_is_good_for_one_of_them_and_tells_of_the_others(
    enrolment: Enrolment, together: Callable[..., list[Any]]
) -> None:
    held = registers(enrolment, "rig")()
    assert isinstance(held, Enrolled)
    ident, token = held.device.device_id, held.refresh_token
    results = together([lambda: enrolment.refresh(ident, token, "192.0.2.1")] * 6)
    renewed = [r for r in results if isinstance(r, Enrolled)]
    device = enrolment.dynamo.run(devices.get_device(TABLE, ident))
    assert device is not None
    (family,) = device.families.values()
    newest = [r for r in renewed if token_hash(r.refresh_token) == family.refresh_hash]
    others = [r for r in renewed if r not in newest]
    assert (len(newest), len(others)) == (1, 5)
    after = enrolment.refresh(ident, others[0].refresh_token, "192.0.2.1")
    assert after is EnrolFault.REFRESH_REUSED
    assert enrolment.refresh(ident, newest[0].refresh_token, "192.0.2.1") is EnrolFault.REFRESH_INVALID


def test_what_was_earned_is_asked_for_once_however_many_ask(
    enrolment: Enrolment, together: Callable[..., list[Any]]
) -> None:
    held = registers(enrolment, "rig")()
    assert isinstance(held, Enrolled)
    device = held.device
    asked = [
        Withdrawal(f"w{n}", OWNER, DeviceId(device.device_id), service_amount(), "0x1", now_ms())
        for n in range(6)
    ]
    recorded = together([lambda w=w: _asked(enrolment, device, w) for w in asked])
    assert recorded.count(True) == 1
    after = enrolment.dynamo.run(devices.get_device(TABLE, device.device_id))
    assert after is not None
    assert after.requested_micro == service_amount()


def service_amount() -> Any:
    return 5_000_000


def _asked(enrolment: Enrolment, device: Any, wanted: Withdrawal) -> bool:
    from shared.runtime.dynamo import Contended

    try:
        return enrolment.dynamo.run(request_withdrawal(TABLE, device, wanted))
    except Contended:
        return False


def test_a_fleet_is_spread_over_all_counts(enrolment: Enrolment, together: Callable[..., list[Any]]) -> None:
    together([registers(enrolment, f"rig-{n}") for n in range(300)])
    rows = enrolment.dynamo.run(devices.read_counts(TABLE, OWNER))
    assert len(rows) == COUNT_SHARDS
    assert max(d for d, _ in rows.values()) < 60


def test_ghosts_that_come_back_while_they_are_forgotten_are_counted_right(
    enrolment: Enrolment, together: Callable[..., list[Any]]
) -> None:
    held = [registers(enrolment, f"rig-{n}")() for n in range(12)]
    read = [r.device for r in held if isinstance(r, Enrolled)]
    drops = [lambda d=d: enrolment.dynamo.run(devices.drop_ghost(TABLE, d)) for d in read]
    results = together(
        [call for n, d in enumerate(drops) for call in (_calm(d), registers(enrolment, f"rig-{n}"))]
    )
    assert all(isinstance(r, Enrolled) for r in results[1::2])
    there = rows_of_devices(enrolment)
    assert counts(enrolment) == (there, there)


def _calm(drop: Callable[[], bool]) -> Callable[[], bool]:
    from shared.runtime.dynamo import Contended

    def call() -> bool:
        try:
            return drop()
        except Contended:
            return False

    return call
