"""A key's history under a flood: strangers' failures are dropped and counted, what turns a key off never is."""

from dataclasses import replace
from typing import Any

from gateway_node.history import DROPPED, WAITING_MAX, KeyHistory
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId, GatewayId
from tests.unit.access.test_access import GOOD

NOW = 1_800_000_000_000


def test_a_flood_of_failures_drops_no_suspension() -> None:
    nowhere: Any = None
    history = KeyHistory(nowhere, nowhere, lambda name: name, GatewayId("g"), lambda: NOW)
    before = DROPPED._value.get()
    for number in range(WAITING_MAX + 5):
        history.failed(
            AccountId("psx_a"), None, Refusal.AUTH_INVALID, f"127.0.{number // 250}.{number % 250}", "r"
        )
    assert DROPPED._value.get() - before == 5
    history.expired(replace(GOOD, expires_at_ms=NOW - 1))
    assert DROPPED._value.get() - before == 5
    assert [entry.event.action for entry in history._ending] == ["auto_suspended_expired"]
