"""The mesh for real: machines in namespaces, Debian's userspace WireGuard, the project's controller, relays and gateway.

One story is played once, in namespaces of its own; each test holds one of its claims. A kernel that allows no namespaces
or no tunnel devices is a skip on a laptop and a failure in CI.
"""

import asyncio
import json
import os
from typing import Any, Final

import pytest
import pytest_asyncio

from local.paths import ROOT
from local.supervisor import clean_environment
from tests.support.machines import in_a_lab, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(350), pytest.mark.asyncio(loop_scope="module")]
STORY_TIMEOUT_S: Final = 330
DROPPED: Final = "TimeoutError"
NOBODY_LISTENS: Final = "ConnectionRefusedError"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told() -> dict[str, Any]:
    """What happened in the story."""
    reason = missing()
    if reason is not None:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"the mesh is not tested: {reason}")
    process = await asyncio.create_subprocess_exec(
        *in_a_lab("tests.support.mesh_story"),
        cwd=ROOT,
        env={**clean_environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(STORY_TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()[-3000:]
    found: dict[str, Any] = json.loads(out)
    assert "fault" not in found, json.dumps(found, indent=1)
    return found


async def test_the_circle_runs_across_the_mesh(told: dict[str, Any]) -> None:
    circle = told["circle"]
    assert circle["ip_types"] == {c: {"mobile": 1, "residential": 1} for c in ("DE", "US")}
    assert circle["statuses"] == [200, 200]
    assert circle["target_saw_a_device"]


async def test_an_agent_pays_and_its_bytes_leave_from_a_home_across_the_mesh(told: dict[str, Any]) -> None:
    assert (told["agent_buys"]["status"], told["agent_buys"]["left_from_a_home"]) == (200, True)


async def test_a_relay_is_reached_by_gateways_through_the_mesh_and_by_nobody_else(
    told: dict[str, Any],
) -> None:
    assert told["only_the_mesh"]["reached"] == {
        "gateway, mesh address": "403",  # it listens, and asks for the token
        "gateway, public address": NOBODY_LISTENS,
        "another relay, mesh address": DROPPED,
        "outside, public address": NOBODY_LISTENS,
        "outside, mesh address": DROPPED,
    }


async def test_it_is_the_firewall_that_keeps_strangers_from_the_mesh_address(told: dict[str, Any]) -> None:
    assert told["only_the_mesh"]["outside_without_firewall"] == "403"


async def test_a_relay_that_was_taken_over_reaches_no_port_of_a_gateway(told: dict[str, Any]) -> None:
    assert told["only_the_mesh"]["relay_to_gateway"] == DROPPED
    assert told["only_the_mesh"]["relay_to_gateway_without_firewall"] == NOBODY_LISTENS


async def test_a_link_that_is_cut_comes_back_below_its_tunnels(told: dict[str, Any]) -> None:
    cut = told["link_cut"]
    assert cut["other_path_during_cut"] == 200
    assert cut["broken"] == []
    assert cut["tunnels"] >= 4
    assert cut["after"] == 200


async def test_a_node_comes_and_goes_without_a_broken_tunnel(told: dict[str, Any]) -> None:
    node = told["node_comes_and_goes"]
    assert node["new_relay_answers"] == "403"
    assert node["controller_of_removed"] == 3
    assert node["broken"] == []
    assert node["tunnels"] >= 4


async def test_both_ends_of_a_link_change_keys_without_a_broken_tunnel(told: dict[str, Any]) -> None:
    keys = told["keys_change"]
    assert keys["broken"] == []
    assert keys["tunnels"] >= 4
    assert keys["after"] == 200


async def test_controllers_restart_and_links_stay(told: dict[str, Any]) -> None:
    restart = told["controllers_restart"]
    assert restart["broken"] == []
    assert restart["unchanged"]


async def test_no_log_holds_a_private_key(told: dict[str, Any]) -> None:
    assert told["controllers_restart"]["private_keys"] == 4
    assert told["controllers_restart"]["logs_with_private_keys"] == 0
