"""Every test here runs once for each SDK. A missing toolchain is a skip on a laptop and a failure in CI."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from local.sdks import NAMES, Sdk, ToolMissing, build
from tests.conformance.device import Rig
from tests.conformance.targets import Target

HERE: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A first build may take minutes; a test's own time is what is bounded."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60, func_only=True))


def built(name: str) -> Sdk:
    """The SDK, or a skip that says why there is none."""
    try:
        found = build(name)
    except ToolMissing as missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"the {name} SDK is not tested: {missing}")
    java, *rest = found.command  # a test's device lives for a second: optimising its code takes longer
    return replace(found, command=(java, "-XX:TieredStopAtLevel=1", *rest)) if name == "jvm" else found


@pytest.fixture(params=NAMES, scope="session")
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each of the SDKs in turn."""
    return built(str(request.param))


@pytest_asyncio.fixture
async def rig(sdk: Sdk, tmp_path: Path) -> AsyncIterator[Rig]:
    """A scripted world around one SDK."""
    found = Rig(sdk, tmp_path)
    await found.start()
    yield found
    await found.stop()


@pytest_asyncio.fixture
async def target(rig: Rig) -> AsyncIterator[Target]:
    """A target that the rig's devices may dial, though it is on loopback."""
    found = Target()
    await found.start()
    rig.allowed.append(f"127.0.0.1:{found.port}")
    yield found
    await found.stop()
    await asyncio.sleep(0)
