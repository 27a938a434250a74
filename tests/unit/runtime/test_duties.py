"""A signal ends a process, and so does a background task that breaks; one that has nothing to do, or is ended, does not."""

import asyncio
import signal

import pytest

from shared.runtime.duties import Duties, told_to_stop


async def breaks() -> None:
    raise LookupError


async def has_nothing_to_do() -> None:
    return


async def goes_on() -> None:
    await asyncio.Event().wait()


async def test_a_task_that_breaks_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    stopping = asyncio.Event()
    duties = Duties(stopping)
    duties.start(goes_on(), breaks())
    async with asyncio.timeout(1):
        await stopping.wait()
    assert duties.broken
    assert "LookupError" in caplog.text
    await duties.end()


async def test_tasks_that_return_or_are_ended_do_not() -> None:
    stopping = asyncio.Event()
    duties = Duties(stopping)
    duties.start(has_nothing_to_do(), goes_on())
    await asyncio.sleep(0)
    await duties.end()
    assert not stopping.is_set()
    assert not duties.broken


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_is_told_to_stop_by_a_signal(number: signal.Signals) -> None:
    stopping = told_to_stop()
    assert not stopping.is_set()
    signal.raise_signal(number)
    async with asyncio.timeout(1):
        await stopping.wait()
