"""What a tunnel's customer is charged: what left for it, and not what was thrown away; how long it is waited for."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_node import customer as customer_module
from gateway_node.allowance import SETTLE_AGAIN_MAX_S, SETTLE_AGAIN_S, KeyBudget, TunnelBudget
from gateway_node.customer import FLUSH_MIN_BYTES, CustomerSide
from gateway_node.journal import Line
from gateway_node.tunnel import AFTER_CUSTOMER_ENDED_MAX_S, AFTER_EXIT_ENDED_MAX_S, IDLE_MAX_S, Tunnel
from shared.metering.model import OVERDRAFT_MAX_BYTES, Meter
from shared.pool.model import Acquired, Selected
from shared.wire.stream import WINDOW_MAX_BYTES
from tests.unit.gateway.test_front import ENDPOINT, PAK, Exit


class Slow:
    """The connection of a customer that has not taken so many bytes yet."""

    def __init__(self, unsent: int) -> None:
        self.unsent, self.gone = unsent, False

    def get_write_buffer_size(self) -> int:
        return 0 if self.gone else self.unsent  # a lost transport has dropped what it kept

    def get_extra_info(self, name: str) -> None: ...
    def is_closing(self) -> bool:
        return self.gone

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


def carried(unsent: int) -> tuple[CustomerSide, Tunnel, Line, KeyBudget]:
    """A tunnel that brought 1,000 bytes, of which so many wait here."""
    deadlines = SimpleNamespace(call_after=lambda *_: SimpleNamespace(cancel=lambda: None))
    customer = CustomerSide(cast(Any, SimpleNamespace(deadlines=deadlines)))
    customer._transport = cast(Any, Slow(unsent))
    key, line = KeyBudget(lambda: None), Line(cast(Any, None), memoryview(b""), 0)

    def ended(tunnel: Tunnel, broke: bool) -> None:
        cast(TunnelBudget, tunnel.budget).close()

    tunnel = Tunnel(PAK, Acquired(ENDPOINT, "", 0, "", "", Selected.FRESH), cast(Any, Exit()), key, ended)
    tunnel.budget = TunnelBudget(key, line, tunnel)
    tunnel.customer = customer._tunnel = cast(Any, customer)
    customer._tunnel = tunnel
    tunnel.to_customer(bytes(1000))
    return customer, tunnel, line, key


async def test_who_hangs_up_pays_for_what_had_left() -> None:
    customer, _, line, key = carried(unsent=400)
    cast(Slow, customer._transport).gone = True
    customer.connection_lost(ConnectionResetError())
    assert (line.down, key.pending_bytes) == (600, 600)


class OneByOne:
    """The loop's timers, by hand."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.then: Any = None

    def call_later(self, wait_s: float, then: Any) -> None:
        self.waits.append(wait_s)
        self.then = then


async def test_a_customer_that_takes_nothing_is_looked_at_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers = OneByOne()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: timers)
    customer, tunnel, line, _ = carried(unsent=400)
    for _ in range(20):
        timers.then()
    assert timers.waits[:3] == [SETTLE_AGAIN_S, 2 * SETTLE_AGAIN_S, 4 * SETTLE_AGAIN_S]
    assert timers.waits[-1] == SETTLE_AGAIN_MAX_S
    cast(Slow, customer._transport).unsent = 300
    timers.then()
    assert timers.waits[-1] == SETTLE_AGAIN_S
    assert line.down == 700
    tunnel.cut()


async def test_who_is_cut_pays_for_what_had_left() -> None:
    customer, tunnel, line, key = carried(unsent=400)
    cast(Slow, customer._transport).unsent = 300
    tunnel.cut()
    assert (line.down, key.pending_bytes) == (700, 700)


@pytest.mark.parametrize("unsent", [0, 400])
async def test_what_still_leaves_after_a_clean_end_counts(unsent: int) -> None:
    _, tunnel, line, key = carried(unsent)
    tunnel.finish()
    assert (line.down, key.pending_bytes) == (1000, 1000)


async def test_a_silent_tunnel_is_cut_unless_its_target_had_ended() -> None:
    """A body that ends with its connection must not look whole when it is not."""
    for ended in (False, True):
        _, tunnel, _, _ = carried(unsent=0)
        tunnel.sweep(0)
        if ended:
            tunnel.exit_ended()
        tunnel.sweep(IDLE_MAX_S)
        assert not tunnel.open
        assert tunnel.was_cut is not ended


async def test_a_customer_that_takes_what_waits_is_not_silent() -> None:
    customer, tunnel, _, _ = carried(unsent=900)
    tunnel.exit_ended()
    for unsent in (600, 300, 100):
        cast(Slow, customer._transport).unsent = unsent
        tunnel.sweep(AFTER_EXIT_ENDED_MAX_S)
        assert tunnel.open
    tunnel.sweep(AFTER_EXIT_ENDED_MAX_S)
    assert not tunnel.open


async def test_the_last_bytes_are_waited_for_while_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    customer, _, _, _ = carried(unsent=900_000)
    looks: list[Any] = []

    def call_after(_: float, then: Any) -> Any:
        looks.append(then)
        return SimpleNamespace(cancel=lambda: None)

    deadlines = SimpleNamespace(call_after=call_after)
    customer._pipeline = cast(Any, SimpleNamespace(deadlines=deadlines))
    cuts: list[Any] = []
    monkeypatch.setattr(customer_module, "reset", cuts.append)
    customer.finish()
    for unsent in (600_000, 600_000 - FLUSH_MIN_BYTES):
        cast(Slow, customer._transport).unsent = unsent
        looks.pop()()
        assert not cuts
    cast(Slow, customer._transport).unsent -= FLUSH_MIN_BYTES - 1
    looks.pop()()
    assert len(cuts) == 1


def test_what_windows_let_in_may_come_while_a_lease_is_on_its_way() -> None:
    key = KeyBudget(lambda: None)
    key.answered(Meter(0, 10**12, 1000), 0, 0.0, wanted=True)
    assert key.cut_bytes == 1000 + OVERDRAFT_MAX_BYTES
    key.asking, key.waiting_tunnels = True, 12
    assert key.cut_bytes == 1000 + OVERDRAFT_MAX_BYTES + 12 * WINDOW_MAX_BYTES
    key.meter = Meter(0, 5000, 1000)
    assert key.cut_bytes == 5000, "never beyond what the key has"
    key.answered(Meter(0, 10**12, 0), 1000, 0.0, wanted=True)
    assert key.wake_bytes == key.cut_bytes == 1000 + OVERDRAFT_MAX_BYTES, "the answer is here, and says no"


async def test_what_a_customer_said_before_it_ended_still_reaches_a_slow_target() -> None:
    _, tunnel, _, _ = carried(unsent=0)
    said: list[str] = []
    tunnel.exit = cast(Any, SimpleNamespace(
        carries_eof=True, send_eof=lambda: None, try_again=lambda: None,
        finish=lambda: said.append("finish"), cut=lambda: said.append("cut"),
    ))  # fmt: skip
    tunnel.sweep(0)
    tunnel.customer_ended()
    tunnel.sweep(AFTER_CUSTOMER_ENDED_MAX_S)
    assert not tunnel.open
    assert said == ["finish"]
    assert tunnel.was_cut, "and the answer does not look whole"


async def test_a_target_that_answered_and_left_cuts_off_no_answer_and_is_sent_nothing_for_money() -> None:
    customer, tunnel, line, _ = carried(unsent=900)
    tunnel.exit_ended()
    tunnel.exit_reset(by_target=True)
    tunnel.to_exit(bytes(5000))
    still_open = tunnel.open
    assert still_open
    assert line.up == tunnel.up_bytes == 0
    cast(Slow, customer._transport).unsent = 0
    tunnel.customer_ended()
    assert not tunnel.open
    assert line.down == 1000
