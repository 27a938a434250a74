"""A background task that breaks ends its process; one that has nothing to do, or is ended, does not."""

import asyncio

import pytest

from shared.runtime.duties import Duties


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
