"""Who a device is: found again by its name, renewed by tokens that rotate, counted exactly, never believed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from shared.guard.model import AuditEvent
from shared.guard.rules import first_broken
from shared.guard.table import entries
from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.supply import service
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Modem, Origin, parse_regions
from shared.supply.owners import change_owner, receipts, revoke_owner
from shared.supply.proving import prove_device
from shared.supply.rules import FAMILIES_MAX, REFRESH_REPEAT_MAX_MS
from shared.supply.service import (
    FIRST_ANSWER_LOST_MAX_MS,
    Arrival,
    EnrolFault,
    Enrolled,
    Enrolment,
    device_id_for,
)
from tests.support.lab import pem_keys

REGIONS = parse_regions(
    {
        "eu": {"url": "wss://eu.example/", "countries": ["DE"]},
        "us": {"url": "wss://us.example/", "countries": ["*"]},
    }
)
OWNER = AccountId("psx_s")
CONSENT = Consent("2026-11", "sdk", 1)
NOW_MS = 1_800_000_000_000
TABLE = "psx-test-devices"
AUDIT = "psx-test-audit"
EVENT = AuditEvent("", "register", OWNER, NOW_MS)
FARMS = AuditEvent(f"acct#{OWNER}", "modem", OWNER, NOW_MS)
GERMAN = Origin(Country("de"), IpType.MOBILE, isp="Lab X")


@pytest.fixture
def enrolment(dynamo: SyncDynamo) -> Enrolment:
    return Enrolment(
        dynamo,
        SyncRedis("redis://127.0.0.1:9/0"),
        lambda name: f"psx-test-{name}",
        lambda address: GERMAN if address == "de" else Origin(),
        lambda: REGIONS,
        pem_keys()[0],
        lambda: NOW_MS,
    )


def later(enrolment: Enrolment, ms: int) -> Enrolment:
    return replace(enrolment, now_ms=lambda: NOW_MS + ms)


def arrival(name: str = "rig", key: str = "k", address: str = "de") -> Arrival:
    return Arrival(OWNER, device_id_for(key, name), name, Kind.AGENT, address, True, EVENT, CONSENT)


def register(enrolment: Enrolment, name: str = "rig", key: str = "k", address: str = "de") -> Enrolled:
    result = enrolment.register(arrival(name, key, address))
    assert isinstance(result, Enrolled)
    return result


def refresh(enrolment: Enrolment, held: Enrolled, address: str = "de") -> Enrolled:
    result = enrolment.refresh(held.device.device_id, held.refresh_token, address)
    assert isinstance(result, Enrolled), result
    return result


def stored(dynamo: SyncDynamo, ident: str) -> Device:
    device = dynamo.run(devices.get_device(TABLE, DeviceId(ident)))
    assert device is not None
    return device


def test_a_device_is_enrolled_where_its_address_says(enrolment: Enrolment) -> None:
    first = register(enrolment)
    assert first.created
    assert (first.relay, first.device.carrier, first.device.consent) == (
        "wss://eu.example/",
        "lab_x",
        CONSENT,
    )
    assert first.relays == ("wss://eu.example/", "wss://us.example/")


def test_the_same_name_is_the_same_device_even_after_the_key_was_rotated(enrolment: Enrolment) -> None:
    first = register(enrolment, key="old")
    again = register(enrolment, key="new", address="a")
    assert not again.created
    assert again.device.device_id == first.device.device_id
    assert again.relay == "wss://us.example/"


def test_a_device_id_of_another_account_is_refused(enrolment: Enrolment) -> None:
    ident = register(enrolment).device.device_id
    other = Arrival(AccountId("psx_t"), ident, "other", Kind.SDK, "a", True, EVENT)
    assert enrolment.register(other) is EnrolFault.NAME_TAKEN


def test_a_new_region_serves_a_device_at_its_next_refresh(enrolment: Enrolment) -> None:
    held = register(enrolment)
    moved = parse_regions(
        {
            "fra": {"url": "wss://fra.example/", "countries": ["de"]},
            "us": {"url": "wss://us.example/", "countries": ["*"]},
        }
    )
    assert refresh(replace(enrolment, regions=lambda: moved), held).relay == "wss://fra.example/"


def test_a_claimed_country_is_kept_only_where_it_differs(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    for claimed, kept in (("US", "us"), ("DE", ""), ("nowhere", "")):
        enrolment.register(replace(arrival(f"rig-{claimed}"), claimed_country=claimed))
        device = stored(dynamo, device_id_for("k", f"rig-{claimed}"))
        assert (device.origin.country, device.claimed_country) == ("de", kept)


# Events


def told(dynamo: SyncDynamo, stream: str) -> list[str]:
    """What an unbroken stream tells."""
    rows = dynamo.run(entries(AUDIT, stream, 10, forward=True)).rows
    assert first_broken(rows) is None
    return [row.event.action for row in rows]


def test_a_device_and_its_event_are_written_together_also_where_its_stream_has_begun(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    ident = register(enrolment).device.device_id
    assert told(dynamo, f"dev#{ident}") == ["register"]
    register(enrolment)
    assert dynamo.run(devices.drop_ghost(TABLE, stored(dynamo, ident)))
    assert register(enrolment).created
    assert told(dynamo, f"dev#{ident}") == ["register"] * 3


def test_what_cannot_be_told_is_not_done(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    held = register(enrolment)
    mute = replace(enrolment, table=lambda name: f"psx-{'test' if name != 'audit' else 'no'}-{name}")
    for name in ("rig", "other"):
        with pytest.raises(StoreUnavailable):
            mute.register(arrival(name))
    assert stored(dynamo, held.device.device_id).families.keys() == held.device.families.keys()
    assert dynamo.run(devices.find_name(TABLE, OWNER, "other")) is None
    assert counts(dynamo) == (1, 1)


# Refresh tokens


def test_refresh_tokens_rotate_and_a_spent_one_revokes_the_device(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    first = register(enrolment)
    ident = first.device.device_id
    second = refresh(enrolment, first)
    assert second.refresh_token != first.refresh_token
    third = refresh(enrolment, second)
    assert enrolment.refresh(ident, "never issued", "de") is EnrolFault.REFRESH_INVALID
    assert enrolment.refresh(ident, first.refresh_token, "de") is EnrolFault.REFRESH_REUSED
    assert enrolment.refresh(ident, third.refresh_token, "de") is EnrolFault.REFRESH_INVALID
    assert stored(dynamo, ident).generation == 1
    assert enrolment.refresh(DeviceId("nobody"), "x", "de") is EnrolFault.REFRESH_INVALID


def test_a_token_that_was_spent_long_ago_is_known_as_copied_too(enrolment: Enrolment) -> None:
    first = register(enrolment)
    held = first
    for _ in range(5):
        held = refresh(enrolment, held)
    ident = first.device.device_id
    assert enrolment.refresh(ident, first.refresh_token, "de") is EnrolFault.REFRESH_REUSED
    assert enrolment.refresh(ident, held.refresh_token, "de") is EnrolFault.REFRESH_INVALID


def test_a_lost_answer_may_be_asked_for_again_and_is_worth_nothing_then(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    held = register(enrolment)
    ident = held.device.device_id
    lost = refresh(enrolment, held)
    again = refresh(later(enrolment, REFRESH_REPEAT_MAX_MS), held)
    assert stored(dynamo, ident).generation == 0
    refresh(enrolment, again)
    assert enrolment.refresh(ident, lost.refresh_token, "de") is EnrolFault.REFRESH_REUSED


def test_a_lost_answer_is_not_given_again_for_ever(enrolment: Enrolment) -> None:
    held = register(enrolment)
    for waited_ms in (0, REFRESH_REPEAT_MAX_MS):
        refresh(later(enrolment, waited_ms), held)
    late = later(enrolment, REFRESH_REPEAT_MAX_MS + 1)
    found = late.refresh(held.device.device_id, held.refresh_token, "de")
    assert found is EnrolFault.REFRESH_REUSED


@dataclass
class Repeating:
    """A store whose client asks again because an answer was lost on its way: the repeat meets its own write."""

    real: SyncDynamo

    def run(self, request: Any) -> Any:
        answer = self.real.run(request)
        return self.real.run(request) if request.operation == "update_item" else answer


def test_a_write_whose_answer_was_lost_is_no_theft(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    held = register(enrolment)
    second = refresh(replace(enrolment, dynamo=Repeating(dynamo)), held)
    assert refresh(enrolment, second).device.generation == 0


def test_a_refresh_token_of_another_device_is_worth_nothing(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    mine, other = register(enrolment, "mine"), register(enrolment, "other")
    ident = other.device.device_id
    assert enrolment.refresh(ident, mine.refresh_token, "de") is EnrolFault.REFRESH_INVALID
    assert stored(dynamo, ident).generation == 0
    refresh(enrolment, other)
    refresh(enrolment, mine)


def test_two_machines_with_one_identity_go_on_and_are_told_of(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    one = register(enrolment)
    two = register(later(enrolment, 10))
    ident = one.device.device_id
    assert two.device.device_id == ident
    assert stored(dynamo, ident).twins_at_ms is None
    two = refresh(later(enrolment, 20), two)
    assert stored(dynamo, ident).twins_at_ms is None
    one = refresh(later(enrolment, 30), one)
    device = stored(dynamo, ident)
    assert device.twins_at_ms == NOW_MS + 30
    assert len(device.families) == 2
    refresh(later(enrolment, 40), two)
    assert stored(dynamo, ident).generation == 0


def test_a_copied_token_of_one_machine_leaves_the_other_its_own(enrolment: Enrolment) -> None:
    one, two = register(enrolment), register(later(enrolment, 10))
    refresh(enrolment, refresh(enrolment, one))
    ident = one.device.device_id
    assert enrolment.refresh(ident, one.refresh_token, "de") is EnrolFault.REFRESH_REUSED
    assert refresh(enrolment, two).device.generation == 1


def test_registrations_of_one_device_are_kept_to_a_few(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    held = [register(later(enrolment, n)) for n in range(FAMILIES_MAX + 3)]
    ident = held[0].device.device_id
    assert len(stored(dynamo, ident).families) == FAMILIES_MAX
    assert enrolment.refresh(ident, held[0].refresh_token, "de") is EnrolFault.REFRESH_INVALID
    refresh(enrolment, held[-1])


def test_an_accounts_revocation_ends_the_refresh_tokens_of_all_its_devices(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    held = register(enrolment)
    dynamo.run(revoke_owner(TABLE, OWNER, {}))
    ident = held.device.device_id
    assert enrolment.refresh(ident, held.refresh_token, "de") is EnrolFault.REFRESH_INVALID
    assert register(enrolment).owner.generation == 1
    refresh(enrolment, register(enrolment))


# Counts


def counts(dynamo: SyncDynamo) -> tuple[int, int]:
    rows = dynamo.run(devices.read_counts(TABLE, OWNER)).values()
    return sum(d for d, _ in rows), sum(u for _, u in rows)


def test_devices_are_counted_once_however_often_they_register(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    for name in ("a", "b", "a", "a"):
        register(enrolment, name)
    assert counts(dynamo) == (2, 2)
    stranger = Arrival(AccountId("psx_t"), device_id_for("k", "a"), "a", Kind.SDK, "a", True, EVENT)
    assert enrolment.register(stranger) is EnrolFault.NAME_TAKEN
    assert counts(dynamo) == (2, 2)


def test_a_device_leaves_the_unproven_count_once(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    device = register(enrolment).device
    register(enrolment, "other")
    held = stored(dynamo, device.device_id)
    assert prove_device(dynamo, TABLE, held, NOW_MS)
    assert not prove_device(dynamo, TABLE, held, NOW_MS)
    assert not prove_device(dynamo, TABLE, stored(dynamo, device.device_id), NOW_MS)
    assert counts(dynamo) == (2, 1)


@pytest.mark.slow  # over a second of processor time
def test_ghosts_stop_at_their_cap_and_a_proven_fleet_goes_on_growing(
    enrolment: Enrolment, dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (devices, service):
        monkeypatch.setattr(module, "UNPROVEN_MAX", 20)
    names = (f"ghost-{n}" for n in range(1000))
    grown = [register(enrolment, next(names)) for _ in range(20)]
    for _ in range(3):
        assert enrolment.register(arrival(next(names))) is EnrolFault.UNPROVEN_LIMIT
    assert counts(dynamo) == (20, 20)
    for held in grown[:7]:
        assert prove_device(dynamo, TABLE, stored(dynamo, held.device.device_id), NOW_MS)
    assert sum(isinstance(enrolment.register(arrival(next(names))), Enrolled) for _ in range(10)) == 7
    assert counts(dynamo) == (27, 20)
    refresh(enrolment, grown[0])


@pytest.mark.slow  # over a second of processor time
def test_an_account_ends_at_its_cap_of_devices(
    enrolment: Enrolment, dynamo: SyncDynamo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (devices, service):
        monkeypatch.setattr(module, "DEVICES_MAX", 18)
    results = [enrolment.register(arrival(f"d{n}")) for n in range(20)]
    assert sum(isinstance(r, Enrolled) for r in results) == 18
    assert results[-1] is EnrolFault.DEVICE_LIMIT
    assert isinstance(enrolment.register(arrival("d0")), Enrolled)


# Consent


def test_a_receipt_is_kept_for_each_agreement_and_not_for_each_registration(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    ident = register(enrolment).device.device_id
    register(enrolment)
    newer = replace(arrival(), consent=Consent("2027-01", "dialog", NOW_MS + 5), claimed_consent_ms=7)
    assert isinstance(enrolment.register(newer), Enrolled)
    page = dynamo.run(receipts(TABLE, f"dev#{ident}", 10))
    assert [(r.terms_version, r.method, r.claimed_at_ms) for r in page.rows] == [
        ("2027-01", "dialog", 7),
        ("2026-11", "sdk", 0),
    ]
    assert stored(dynamo, ident).consent == newer.consent


def test_withdrawn_consent_is_not_given_again_by_registering(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    held = register(enrolment)
    ident = held.device.device_id
    dynamo.run(devices.revoke(TABLE, ident, {"withdrawn_ms": NOW_MS}))
    assert enrolment.register(arrival()) is EnrolFault.CONSENT_WITHDRAWN
    assert enrolment.refresh(ident, held.refresh_token, "de") is EnrolFault.REFRESH_INVALID
    dynamo.run(devices.change(TABLE, ident, {}, ("withdrawn_ms",)))
    assert isinstance(enrolment.register(arrival()), Enrolled)


def test_an_owners_withdrawal_holds_for_the_devices_there_were(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    register(enrolment)
    dynamo.run(change_owner(TABLE, OWNER, {"withdrawn_ms": NOW_MS + 100}))
    late = later(enrolment, 200)
    assert late.register(arrival()) is EnrolFault.CONSENT_WITHDRAWN
    assert isinstance(late.register(arrival("new")), Enrolled)


# Modems, wallets, lists


def test_a_modem_is_found_again_by_its_name_and_is_counted(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    def sealed(port: int) -> Callable[[DeviceId], Modem]:
        return lambda device_id: Modem("127.0.0.1", port, f"for {device_id}")

    first = enrolment.add_modem(OWNER, "m1", Origin(), "lab", sealed(1), FARMS)
    again = enrolment.add_modem(OWNER, "m1", Origin(), "lab", sealed(2), FARMS)
    assert isinstance(first, Device)
    assert isinstance(again, Device)
    assert again.device_id == first.device_id
    assert again.modem == Modem("127.0.0.1", 2, f"for {first.device_id}")
    assert counts(dynamo) == (1, 1)
    register(enrolment, "rig")
    assert enrolment.add_modem(OWNER, "rig", Origin(), "lab", sealed(1), FARMS) is EnrolFault.NAME_TAKEN


def test_a_wallet_alone_makes_its_own_account(enrolment: Enrolment) -> None:
    first, is_new = enrolment.wallet_account("0xABC")
    assert is_new
    assert enrolment.wallet_account("0xabc") == (first, False)
    assert enrolment.wallet_account("0xdef")[0] != first
    assert enrolment.wallet_account("So1anaA")[0] != enrolment.wallet_account("so1anaa")[0]


def test_whoever_lost_the_first_answer_of_a_wallets_device_is_known_by_its_attempt_for_a_day(
    enrolment: Enrolment, dynamo: SyncDynamo
) -> None:
    def owns(attempt: str, later_ms: int = 0) -> bool:
        there = replace(enrolment, now_ms=lambda: enrolment.now_ms() + later_ms)
        found = there.register(replace(arrival(), proven=False, attempt=attempt, wallet="0x1"))
        assert isinstance(found, Enrolled)
        return found.device.families[found.refresh_token.partition(".")[0]].owned

    assert owns("mine-alone")
    assert "mine-alone" not in repr(stored(dynamo, device_id_for("k", "rig"))), "a hash is kept"
    assert owns("mine-alone"), "the answer was lost, or whoever answered died after it wrote"
    assert not owns("another-one")
    assert not owns("")
    assert not owns("mine-alone", FIRST_ANSWER_LOST_MAX_MS + 1)


def test_a_wallet_is_kept_when_it_was_registered_first(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    for wallet in ("0x1", "0x2"):
        enrolment.register(Arrival(OWNER, DeviceId("d"), "d", Kind.SDK, "a", True, EVENT, wallet=wallet))
    assert stored(dynamo, "d").wallet == "0x1"


def test_devices_are_listed_per_account_and_in_all(enrolment: Enrolment, dynamo: SyncDynamo) -> None:
    idents = {register(enrolment, name=f"rig{n}").device.device_id for n in range(3)}
    mine = dynamo.run(devices.of_account(TABLE, OWNER, 10))
    everybody = dynamo.run(devices.all_devices(TABLE, 10, None))
    assert {d.device_id for d in mine.rows} == {d.device_id for d in everybody.rows} == idents
