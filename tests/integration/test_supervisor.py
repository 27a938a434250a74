"""Parts that are started again under their name."""

import asyncio
import sys

import pytest

from local.supervisor import RunFolder, Supervisor

pytestmark = pytest.mark.slow


async def test_a_part_that_starts_again_is_ready_by_its_own_word() -> None:
    folder = RunFolder()
    supervisor = Supervisor(folder)
    try:
        first = await supervisor.start("part", [sys.executable, "-c", "print('ready one')"])
        assert await supervisor.says(first, "ready") == "ready one"
        first.expected_end = True
        await first.process.wait()
        second = await supervisor.start("part", [sys.executable, "-c", "print(input())"], keep_stdin=True)
        waiting = asyncio.create_task(supervisor.says(second, "ready"))
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        assert second.process.stdin is not None
        second.process.stdin.write(b"ready two\n")
        second.expected_end = True
        assert await waiting == "ready two"
    finally:
        await supervisor.stop()
        folder.remove()
