"""`python -m tests.support.mesh_story`, in namespaces of its own: what happens to customers while the mesh changes.

Prints one JSON object: the facts of each step, and `fault` when a step could not be done. The claims about the facts stand
in `tests/e2e/test_mesh.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from infra.mesh.model import Role
from local.bootstrap import PRICES
from local.buy import buy
from local.client import call, curl
from local.supervisor import PartFailed, clean_environment
from tests.support.machines import INTERNET, Machine, prepare, run
from tests.support.mesh_lab import ADDRESSES, CONNECT_PORT, PEERS, MeshNetwork

STEP_TIMEOUT_S: Final = 100
STREAM_BYTES: Final = 4_000_000
"""About three seconds of the target's slow page."""
STAGGER_S: Final = 0.75
CUT_S: Final = 2.5
POLL_S: Final = 0.1
WALLET_MICRO: Final = 1_000_000
FLAG: Final = "/v1/x402/admin/peer-tiers"
BUY: Final = "/v1/x402/pool?traffic=0.1&tier=residential"
HOMES: Final = {
    "price_micro_per_gb": 2_000_000,
    "min_bytes": 100_000_000,
    "max_bytes": 10**12,
    "quality": "homes",
    "ip_type": "residential",
}
"""A tier of peers: the mesh has no modems."""


class Story:
    """The network, a customer's key, and the facts so far."""

    def __init__(self, net: MeshNetwork) -> None:
        self.net = net
        self.key = ""
        self.facts: dict[str, Any] = {}

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> float:
        """Wait for something; answers how long it took, in seconds."""
        began = time.monotonic()
        while not await holds():
            self.net.supervisor.check()
            await asyncio.sleep(POLL_S)
        return round(time.monotonic() - began, 2)

    def proxy(self, country: str) -> str:
        return f"http://psx_reseller1-peer-{country}:{self.key}@{ADDRESSES['gw']}:{self.net.ports.http}"

    async def get(self, country: str, path: str) -> dict[str, Any]:
        """One request of a customer."""
        done = await curl(self.proxy(country), self.net.target_url + path, str(self.net.files.ca))
        return {"status": done.status, "body": done.body.strip(), "error": done.error}

    @contextlib.asynccontextmanager
    async def customers(self) -> AsyncIterator[None]:
        """While the block runs, tunnels carry through both relays all the time; tells how many, and which broke."""
        stopping = asyncio.Event()
        ended: list[tuple[int, int]] = []

        async def one(country: str, after_s: float) -> None:
            await asyncio.sleep(after_s)
            url = f"{self.net.target_url}/slow/{STREAM_BYTES}"
            while not stopping.is_set():
                done = await curl(self.proxy(country), url, str(self.net.files.ca), keep_body=False)
                ended.append((done.exit_code, done.size))

        tasks = [asyncio.create_task(one(c, n * STAGGER_S)) for c in ("de", "us") for n in range(2)]
        try:
            await asyncio.sleep(2 * STAGGER_S)
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)
        self.facts["tunnels"] = len(ended)
        self.facts["broken"] = [end for end in ended if end != (0, STREAM_BYTES)]


async def circle(story: Story) -> None:
    """Devices enrol, are graded and listed; a key is bought; bytes reach the target from the device's own address."""
    net = story.net
    await asyncio.gather(*(net.start_peer(plan) for plan in PEERS))

    async def listed() -> bool:
        return bool((await net.cloud.fire("list_exits"))["listed"] == len(PEERS))

    story.facts["listed_after_s"] = await story.until(listed)
    stock = (await call(net.api_url + "/v1/gateway/pool/availability")).body["countries"]
    story.facts["ip_types"] = {country: stock[country]["peerIpTypes"] for country in sorted(stock)}
    headers, body = {"X-API-Key": net.keys.reseller}, {"label": "mesh", "trafficCapGB": 1}
    record = (await call(net.api_url + "/v1/reseller/pool-keys", "POST", headers, body)).body
    story.key = record["key"]
    exits = {plan.address for plan in PEERS}
    answers = [await story.get(country, "/ip") for country in ("us", "de")]
    story.facts["statuses"] = [a["status"] for a in answers]
    story.facts["target_saw_a_device"] = all(json.loads(a["body"])["ip"] in exits for a in answers)

    async def earned() -> bool:
        await net.cloud.fire("roll_up")
        usage = (await call(f"{net.api_url}/v1/reseller/pool-keys/{record['id']}", headers=headers)).body
        return bool(usage["trafficUsedMB"] > 0)

    story.facts["metered_after_s"] = await story.until(earned)


async def agent_buys(story: Story) -> None:
    """An agent pays USDC for a key that is held to homes, and its bytes leave from one, across the mesh."""
    net = story.net
    headers = {"X-API-Key": net.keys.admin}
    prices = {**PRICES, "tiers": {**PRICES["tiers"], "residential": HOMES}}
    await call(net.api_url + "/v1/admin/settings/prices", "PUT", headers, prices)

    async def on_sale() -> bool:
        await call(net.api_url + FLAG, "POST", headers, {"on": True})
        tested = await net.cloud.fire("test_peer_tiers")  # buys its own key, and uses it
        return (
            bool(tested.get("on")) and (await call(net.api_url + BUY)).status == HTTPStatus.PAYMENT_REQUIRED
        )

    await net.cloud.fire("validate_sale")
    story.facts["on_sale_after_s"] = await story.until(on_sale)
    bought = await buy(net.api_url, net.evm.url, await net.evm.wallet(WALLET_MICRO), BUY)
    done = await curl(bought["proxy"]["http"], net.target_url + "/ip", str(net.files.ca))
    homes = {plan.address for plan in PEERS if plan.network.ip_class == "residential"}
    story.facts["status"] = done.status
    story.facts["left_from_a_home"] = json.loads(done.body)["ip"] in homes


async def only_the_mesh(story: Story) -> None:
    """Who reaches a relay's CONNECT listener, from where, at which address."""
    net = story.net
    on_mesh = str(net.rows(Role.RELAY)["eu"].address)
    net.outside.run("ip", "route", "add", f"{on_mesh}/32", "via", INTERNET)

    run("ip", "route", "add", f"{on_mesh}/32", "dev", "to-eu")
    reached = {
        "gateway, mesh address": (net.machines["gw"], on_mesh),
        "gateway, public address": (net.machines["gw"], ADDRESSES["eu"]),
        "another relay, mesh address": (net.machines["us"], on_mesh),
        "outside, public address": (net.outside, ADDRESSES["eu"]),
        "outside, mesh address": (net.outside, on_mesh),
    }
    answers = await asyncio.gather(*(_answers(*where) for where in reached.values()))
    story.facts["reached"] = dict(zip(reached, answers, strict=True))
    gateway = net.machines["eu"], str(net.rows(Role.GATEWAY)["gw"].address), net.ports.http
    story.facts["relay_to_gateway"] = await _answers(*gateway)
    for name in ("eu", "gw"):
        net.machines[name].run("nft", "delete", "table", "inet", "psx_mesh")
    story.facts["outside_without_firewall"] = await _answers(net.outside, on_mesh)
    story.facts["relay_to_gateway_without_firewall"] = await _answers(*gateway)
    for name in ("eu", "gw"):
        net.machines[name].run("nft", "-f", "infra/nodes/mesh.nft")


async def _answers(machine: Machine, address: str, port: int = CONNECT_PORT) -> str:
    """What a CONNECT without the mesh token is told: a status, or why there was none."""
    ask = (
        "import socket,sys\n"
        f"s = socket.create_connection(('{address}', {port}), timeout=1.5)\n"
        "s.sendall(b'CONNECT a.example:443 HTTP/1.1\\r\\n\\r\\n')\n"
        "print(s.recv(100).split()[1].decode())\n"
    )
    process = await asyncio.create_subprocess_exec(
        *machine.command(sys.executable, "-c", ask),
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return out.decode().strip() or err.decode().strip().splitlines()[-1].partition(":")[0]


async def link_cut(story: Story) -> None:
    """The path between gateway and one relay is cut and comes back, below tunnels that carry."""
    net = story.net
    async with story.customers():
        net.machines["gw"].cut(net.machines["eu"])
        await asyncio.sleep(CUT_S)
        story.facts["other_path_during_cut"] = (await story.get("us", "/ip"))["status"]
        net.machines["gw"].mend(net.machines["eu"])
        began = time.monotonic()
        story.facts["after"] = (await story.get("de", "/ip"))["status"]
        story.facts["back_after_s"] = round(time.monotonic() - began, 2)


async def node_comes_and_goes(story: Story) -> None:
    """A relay joins and answers the gateway; then it is removed. Tunnels through the others carry on."""
    net = story.net
    async with story.customers():
        net.machines["extra"] = Machine("extra", ADDRESSES["extra"])
        began = time.monotonic()
        await net.join("extra", Role.RELAY, "us")
        node = net.rows(Role.RELAY)["extra"]

        async def joined() -> bool:
            return net.keys_at("gw").get(node.key) == f"{node.address}/32"

        await story.until(joined)
        story.facts["joined_after_s"] = round(time.monotonic() - began, 2)
        await net.start_relay("us", "extra")
        story.facts["new_relay_answers"] = await _answers(net.machines["gw"], str(node.address))
        await net.supervisor.stop_part("relay-extra")
        for part in ("wireguard", "mesh"):
            net.supervisor.parts[f"{part}-extra"].expected_end = True
        command = [sys.executable, "-m", "infra.mesh", "remove", "relay", "extra"]
        removing = await net.supervisor.start("remove", command, net.store_settings())
        removing.expected_end = True
        await removing.process.wait()

        async def gone() -> bool:
            return node.key not in net.keys_at("gw")

        story.facts["gone_after_s"] = await story.until(gone)
        story.facts["controller_of_removed"] = await net.supervisor.parts["mesh-extra"].process.wait()


async def keys_change(story: Story) -> None:
    """Gateway and relay are asked for new keys at the same moment, below tunnels that carry."""
    net = story.net
    before = _keys(net)
    async with story.customers():
        net.rotate("eu")
        net.rotate("gw")

        async def changed() -> bool:
            now = _keys(net)
            return now["gw"] != before["gw"] and now["eu"] != before["eu"]

        story.facts["changed_after_s"] = await story.until(changed)
        eu = net.rows(Role.RELAY)["eu"]

        async def settled() -> bool:
            held = net.keys_at("gw")
            return held.get(eu.key) == f"{eu.address}/32" and before["eu"] not in held

        await story.until(settled)
        story.facts["after"] = (await story.get("de", "/ip"))["status"]


def _keys(net: MeshNetwork) -> dict[str, str]:
    return {node.node_id: node.key for role in Role for node in net.rows(role).values()}


async def controllers_restart(story: Story) -> None:
    """Controllers are stopped and started again; links are not touched. Then the logs are read for secrets."""
    net = story.net
    before = _keys(net), str(net.rows(Role.RELAY)["eu"].address)
    async with story.customers():
        for name, role in (("gw", Role.GATEWAY), ("eu", Role.RELAY)):
            await net.supervisor.stop_part(f"mesh-{name}")
            await net.start_controller(name, role, "eu")
    story.facts["unchanged"] = before == (_keys(net), str(net.rows(Role.RELAY)["eu"].address))
    logs = [path.read_text("utf-8", "replace") for path in (net.folder.path / "logs").glob("*.log")]
    keys = [path.read_text().strip() for path in (net.folder.path / "mesh").glob("*/key")]
    story.facts["private_keys"] = len(keys)
    story.facts["logs_with_private_keys"] = sum(key in log for log in logs for key in keys)


STEPS: Final = (
    circle,
    agent_buys,
    only_the_mesh,
    link_cut,
    node_comes_and_goes,
    keys_change,
    controllers_restart,
)


async def tell() -> dict[str, Any]:
    """Run all steps; the first that cannot be done ends the story."""
    told: dict[str, Any] = {}
    began = time.monotonic()
    async with MeshNetwork() as net:
        story = Story(net)
        told["start_s"] = round(time.monotonic() - began, 1)
        for step in STEPS:
            began = time.monotonic()
            story.facts = {}
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    await step(story)
            except (PartFailed, TimeoutError, RuntimeError, KeyError, ValueError) as error:
                tails = {name: part.tail()[-600:] for name, part in net.supervisor.parts.items()}
                return {
                    **told,
                    "fault": f"{step.__name__}: {type(error).__name__}: {error}",
                    "so_far": story.facts,
                    "logs": tails,
                }
            told[step.__name__] = {**story.facts, "took_s": round(time.monotonic() - began, 1)}
    return told


if __name__ == "__main__":
    prepare()
    sys.stdout.write(json.dumps(asyncio.run(tell()), indent=1) + "\n")
