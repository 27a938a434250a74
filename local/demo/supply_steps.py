"""Steps 1 to 4: parts start, devices enrol, the prober grades them, the job lists the good ones."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from local import evm, lab
from local.demo.story import Story, check
from local.stores import STAGE
from local.tables import table_definitions
from shared.chain.model import Network

ENROL_TIMEOUT_S: Final = 25
GRADE_TIMEOUT_S: Final = 40


async def parts_start(story: Story) -> None:
    """Redis, DynamoDB API, two chains, functions, two relays, gateway, prober, target: all real, all answering."""
    net = story.net
    await net.start_stores_and_chains()
    story.say("Redis, the DynamoDB API, an EVM node and a Solana node are up")
    await net.start_network()
    health = await story.api("/health")
    check(
        health.status == 200 and health.body["sale"]["open"] is False,
        "the sale is closed before it is validated",
    )
    closed = await story.api("/v1/x402/pool?traffic=0.1")
    check(closed.status == 503, "money routes answer 503 before validation")
    verdict = await net.cloud.fire("validate_sale")
    check(verdict["ok"] and verdict["exact"], f"the sale's configuration is valid: {verdict}")
    net.cloud.start_clock()
    story.fact("parts", sorted(net.supervisor.parts))
    story.fact("tables", len(table_definitions(STAGE)))
    story.fact("networks", [n.value for n in Network])
    story.fact("usdc", evm.USDC)


async def devices_enrol(story: Story) -> None:
    """Twelve peers and three modems enrol themselves; the server alone decides what they are and where they go."""
    net = story.net
    await asyncio.gather(*(net.start_peer(plan) for plan in lab.PEERS))
    headers = {"X-API-Key": net.keys.supplier}
    for body in net.modem_registrations():
        added = await story.api("/v1/farmer/modems", "POST", headers, body)
        check(added.status == 200, f"modem {body['name']} enrolled: {added.status} {added.body}")
        story.devices[body["name"]] = added.body["deviceId"]
        story.fact("modemEarningsPerGB", added.body["earningsPerGB"])

    async def all_online() -> dict[str, dict[str, Any]] | None:
        answer = await story.api("/v1/peer/my-devices", headers=headers)
        online = {d["name"]: d for d in answer.body["devices"] if d["online"]}
        return online if len(online) == len(lab.PEERS) + len(lab.MODEMS) else None

    online = await story.until("all devices are online", all_online, ENROL_TIMEOUT_S)
    for plan in lab.PEERS:
        seen = online[plan.name]
        story.devices[plan.name] = seen["deviceId"]
        check(seen["ipType"] == plan.network.ip_class, f"{plan.name} is {plan.network.ip_class} by its ASN")
        check(
            seen["country"] == plan.network.country,
            f"{plan.name} is in {plan.network.country} by its address",
        )
        check(seen["consentRecorded"], f"the owner's consent of {plan.name} is on record")
    await _redirected(story)
    story.fact("enrolled", len(online))
    story.fact("classes", {p.name: f"{p.network.country} {p.network.ip_class}" for p in lab.PEERS})


async def _redirected(story: Story) -> None:
    """The peer that began at the wrong relay is at the right one now, because the relay sent it there."""
    plan = next(p for p in lab.PEERS if p.first_region)
    key = f"{{peer}}:live:{story.devices[plan.name]}"

    async def moved() -> bool:
        relay = await asyncio.to_thread(_hget, story, key, "relay_id")
        return relay == "relay-eu-1"

    await story.until(f"{plan.name} was moved from the us relay to the eu relay", moved, ENROL_TIMEOUT_S)
    log = (story.net.folder.path / "logs" / f"peer-{plan.name}.log").read_text()
    check("moving to relay" in log, f"{plan.name} followed a relay_redirect")
    story.fact("redirected", f"{plan.name}: us -> eu")


def _hget(story: Story, key: str, field: str) -> str:
    from shared.runtime.redis import command  # noqa: PLC0415

    return story.net.redis.run(command("HGET", key, field, parse=lambda raw: raw.decode() if raw else ""))


async def prober_grades(story: Story) -> None:
    """Every exit is probed through the network; each broken one is found for what it is."""
    good = [p.name for p in lab.PEERS if not p.fault] + [m.name for m in lab.MODEMS]
    expected = {
        "phone-us-broken": "tls_dropped_mid_handshake",
        "phone-gb-altering": "body_mismatch",
    }

    async def graded() -> dict[str, dict[str, Any]] | None:
        found = {}
        for name in story.devices:
            status = await story.device_status(name)
            if status["probe"] is None or not (status["verified"] or status["probe"]["failureReason"]):
                return None
            found[name] = status
        return found if all(found[n]["verified"] for n in [*good, "home-fr-slow"]) else None

    found = await story.until("every device has been probed", graded, GRADE_TIMEOUT_S)
    for name, failure in expected.items():
        check(
            found[name]["probe"]["failureReason"] == failure,
            f"{name} fails with {failure}: {found[name]['probe']}",
        )
    slow = found["home-fr-slow"]
    check(slow["speedTier"] == "slow", f"home-fr-slow is graded slow: {slow['probe']}")
    check(all(found[n]["speedTier"] in {"fast", "medium"} for n in good), "good exits are fast or medium")
    story.fact("tiers", {name: found[name]["speedTier"] for name in sorted(found)})
    story.fact("failures", expected)


async def job_lists(story: Story) -> None:
    """The every-minute job, fired early with the same event, lists what works; stock is public, counts only."""
    report = await story.net.cloud.fire("list_exits")
    listed = {name: (await story.device_status(name))["listed"] for name in story.devices}
    broken = [p.name for p in lab.PEERS if p.fault in {"tls_drop", "corrupt"}]
    check(not any(listed[name] for name in broken), "broken exits are not on sale")
    check(all(on for name, on in listed.items() if name not in broken), f"all others are: {listed}")
    again = await story.net.cloud.fire("list_exits")
    check(not again["newly_listed"] and not again["delisted"], f"a second run changes nothing: {again}")
    stock = (await story.api("/v1/gateway/pool/stock")).body
    check(stock["pools"]["mbl"] == {"us": 2, "de": 1}, f"modem stock is counted per country: {stock}")
    check(stock["totals"]["peer"] == len(lab.PEERS) - len(broken), f"peer stock: {stock}")
    check("127." not in json.dumps(stock), "no address is in the public stock")
    story.fact("listed", report["listed"])
    story.fact("stock", stock["pools"])
