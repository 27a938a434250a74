"""Deadlines: run out once and not early, can be cancelled, and bound what a task awaits."""

import asyncio
import gc
import weakref
from functools import partial

import pytest

from shared.runtime.deadlines import TICK_S, Deadlines


async def test_a_deadline_runs_out_once_and_not_early() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    rang: list[float] = []
    due_s = loop.time() + 0.1
    deadlines.call_after(0.1, lambda: rang.append(loop.time()))
    await asyncio.sleep(0.1 + 3 * TICK_S)
    assert len(rang) == 1
    assert rang[0] >= due_s


async def test_a_cancelled_deadline_never_runs_out() -> None:
    deadlines = Deadlines()
    rang: list[str] = []
    late = deadlines.call_after(0.01, lambda: rang.append("late"))
    late.cancel()
    late.cancel()
    second = deadlines.call_after(0.01, lambda: rang.append("second"))
    deadlines.call_after(0.01, second.cancel)
    deadlines.call_after(0.01, second.cancel)
    await asyncio.sleep(0.01 + 3 * TICK_S)
    assert "late" not in rang
    assert rang.count("second") <= 1


async def test_a_deadline_that_breaks_takes_no_other_with_it() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))
    rang: list[int] = []

    def ring(number: int) -> None:
        rang.append(1 // number * number or number)

    for number in range(5):
        deadlines.call_after(0.01, partial(ring, number))
    await asyncio.sleep(0.01 + 4 * TICK_S)
    assert sorted(rang) == [1, 2, 3, 4]
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


async def test_what_takes_too_long_is_a_timeout_and_what_does_not_is_not() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), deadlines.within(0.01):
        await asyncio.sleep(30)
    with deadlines.within(0.01) as bound:
        bound.reschedule(30)
        await asyncio.sleep(3 * TICK_S)
    await asyncio.sleep(2 * TICK_S)  # nothing of it reaches the task later


async def test_a_cancellation_from_outside_stays_one() -> None:
    deadlines = Deadlines()

    async def bounded() -> None:
        with deadlines.within(30):
            await asyncio.sleep(30)

    task = asyncio.create_task(bounded())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_bound_of_two_is_told_from_the_outer_one() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), deadlines.within(0.01), deadlines.within(30):
        await asyncio.sleep(30)


async def test_a_task_that_was_bound_is_freed_without_the_collector() -> None:
    deadlines = Deadlines()

    async def work() -> None:
        with deadlines.within(30) as bound:
            await asyncio.sleep(0)
            bound.reschedule(30)

    gc.disable()
    try:
        task = asyncio.create_task(work())
        await task
        await asyncio.sleep(0)  # whoever woke this one up still knows it
        freed = weakref.ref(task)
        del task
        assert freed() is None
    finally:
        gc.enable()
