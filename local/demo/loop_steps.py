"""Steps 7 to 9: bytes are counted and capped, a dead peer is healed around and comes back, the supplier is owed."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any, Final

from local import lab
from local.client import curl
from local.demo.sale_steps import WALLET_MICRO
from local.demo.story import Story, check
from shared.kernel.ids import PakId
from shared.ledger.service import trial_balance
from shared.metering.live import read_used
from shared.metering.table import usage_days

CAP_BYTES: Final = 100_000_000
DOWNLOAD_BYTES: Final = 10_000_000
BIG_BYTES: Final = 60_000_000
ROLL_UP_EVERY_S: Final = 1.0
CREDIT_TIMEOUT_S: Final = 12
SUSPEND_TIMEOUT_S: Final = 10
CUT_OVERSHOOT_MAX_BYTES: Final = 2 * 1024 * 1024
KILL_TIMEOUT_S: Final = 25
TLS_GOODBYE_BYTES: Final = 64
"""Whoever closes first, the other's last TLS alert may cross it: counted on one side of the tunnel and not on the other."""


async def bytes_are_capped(story: Story) -> None:
    """Credit falls by what was carried; at the cap tunnels end and the key suspends itself; a top-up brings it back."""
    net, ca = story.net, str(story.net.files.ca)
    proxy = story.agent["proxy"]["http"]
    before = await _settled(story)
    fetched = await curl(proxy, f"{net.target_url}/bytes/{DOWNLOAD_BYTES}", ca, keep_body=False)
    check(fetched.status == 200 and fetched.size == DOWNLOAD_BYTES, f"10 MB came through: {fetched}")
    carried = sum(
        c["received_bytes"] + c["sent_bytes"]
        for c in await story.target_connections()
        if c["path"] == f"/bytes/{DOWNLOAD_BYTES}"
    )

    async def credited() -> int | None:
        used: int = (await _credit(story))["usedBytes"]
        return used if used - before >= carried - TLS_GOODBYE_BYTES else None

    metered = await story.until("credit fell by what was carried", credited, CREDIT_TIMEOUT_S) - before
    check(abs(metered - carried) <= TLS_GOODBYE_BYTES, f"metered {metered}, {carried} at the target")
    story.fact("metered", metered)
    story.fact("atTarget", carried)
    story.fact("gap", metered - carried)
    await _reach_cap(story, proxy, ca)
    await _top_up(story, proxy, ca)


async def _credit(story: Story) -> dict[str, Any]:
    headers = {"X-Session-Token": story.agent["sessionToken"]}
    await _rolled_up(story)
    answer = await story.api("/v1/x402/manage/pool/credit", headers=headers)
    check(answer.status == 200, f"credit: {answer.status} {answer.body}")
    credit: dict[str, Any] = answer.body["credit"]
    return credit


async def _rolled_up(story: Story) -> None:
    """What the clock does every 3 s: usage is shown as the roll-up has it."""
    now_s = time.monotonic()
    if now_s - story.rolled_up_s >= ROLL_UP_EVERY_S:
        story.rolled_up_s = now_s
        await story.net.cloud.fire("roll_up")


async def _settled(story: Story) -> int:
    """Used bytes once everything that earlier steps carried has been flushed."""
    customers = [
        c
        for c in await story.target_connections()
        if c["path"] == "/ip" and c["address"] in _modem_addresses()
    ]
    carried = sum(c["received_bytes"] + c["sent_bytes"] for c in customers)

    tolerance = TLS_GOODBYE_BYTES * len(customers)

    async def flushed() -> int | None:
        used: int = (await _credit(story))["usedBytes"]
        return used if used >= carried - tolerance else None

    used = await story.until("earlier bytes are flushed", flushed, CREDIT_TIMEOUT_S)
    check(abs(used - carried) <= tolerance, f"all bytes so far: metered {used}, {carried} at the target")
    return used


def _modem_addresses() -> set[str]:
    return {m.exit_address for m in lab.MODEMS}


async def _reach_cap(story: Story, proxy: str, ca: str) -> None:
    """Two large downloads at once run into the cap: both end, the key says why, and so does its history."""
    began = time.monotonic()
    url = f"{story.net.target_url}/bytes/{BIG_BYTES}"
    cut = await asyncio.gather(*(curl(proxy, url, ca, keep_body=False) for _ in range(2)))
    check(any(c.exit_code != 0 and c.size < BIG_BYTES for c in cut), f"open tunnels ended at the cap: {cut}")

    async def suspended() -> dict[str, Any] | None:
        credit = await _credit(story)
        return credit if not credit["enabled"] and credit["usedBytes"] >= CAP_BYTES else None

    credit = await story.until("the key suspended itself", suspended, SUSPEND_TIMEOUT_S)
    check(credit["disabledReason"] == "cap", f"because of its cap: {credit}")
    over = credit["usedBytes"] - CAP_BYTES
    check(0 <= over <= CUT_OVERSHOOT_MAX_BYTES, f"the overshoot is bounded: {over}")
    refused = await curl(proxy, story.net.target_url + "/ip", ca)
    check(refused.connect_status == 407, f"a new connection is a 407: {refused}")
    await story.until("the audit log says so", lambda: _audited(story), SUSPEND_TIMEOUT_S)
    story.fact("overshootBytes", over)
    story.fact("suspendedAfterS", round(time.monotonic() - began, 2))


async def _audited(story: Story) -> bool:
    from shared.guard.rules import first_broken  # noqa: PLC0415
    from shared.guard.table import entries  # noqa: PLC0415

    pak = await asyncio.to_thread(_pak_id, story)
    page = await asyncio.to_thread(
        story.net.dynamo.run, entries(story.net.table("audit"), f"pak#{pak}", 100, forward=True)
    )
    check(first_broken(page.rows) is None, "the audit chain holds")
    return any(e.event.action == "auto_suspended_cap_exceeded" for e in page.rows)


def _pak_id(story: Story) -> str:
    from shared.access.secrets import token_hash  # noqa: PLC0415
    from shared.sale.table import get_session  # noqa: PLC0415

    found = story.net.dynamo.run(
        get_session(story.net.table("sales"), token_hash(story.agent["sessionToken"]))
    )
    assert found is not None  # noqa: S101 - the session was bought in step 5
    return found.pak_id


async def _top_up(story: Story, proxy: str, ca: str) -> None:
    """A payment on chain turns the key on again, with the same credentials."""
    net = story.net
    headers = {"X-Session-Token": story.agent["sessionToken"]}
    path, body = "/v1/x402/manage/pool/topup", {"addTrafficGB": 0.1}
    quoted = await story.api(path, "POST", headers, body, lab.AGENT_ADDRESS)
    check(quoted.status == 402, f"a top-up without payment is a quote: {quoted.status}")
    rail = next(a for a in quoted.body["paymentRequirement"]["accepts"] if a["network"] == "base")
    wallet = await net.evm.wallet(WALLET_MICRO)
    paid = await net.evm.pay(wallet, rail["payTo"], int(rail["maxAmountRequired"]))
    topped = await story.api(path, "POST", {**headers, "Payment-Signature": paid}, body, lab.AGENT_ADDRESS)
    check(topped.status == 200, f"the top-up is credited: {topped.status} {topped.body}")
    check(topped.body["credit"]["enabled"], "the key is on again")
    check(topped.body["credit"]["allocatedBytes"] == 2 * CAP_BYTES, "its cap is what was bought in all")
    repeat = await story.api(path, "POST", {**headers, "Payment-Signature": paid}, body, lab.AGENT_ADDRESS)
    check(repeat.body["credit"]["allocatedBytes"] == 2 * CAP_BYTES, "the same hash again adds nothing")
    back = await curl(proxy, net.target_url + "/ip", ca)
    check(back.status == 200, f"the same credentials work again: {back}")
    story.fact("topUp", paid)


async def peer_dies_and_returns(story: Story) -> None:
    """A peer is killed in mid-transfer: reported, re-probed, off sale; then back, two passes, on sale again."""
    net, ca = story.net, str(story.net.files.ca)
    plan = next(p for p in lab.PEERS if p.name == "phone-br-1")
    key = story.reseller_key["key"]
    proxy = f"http://psx_reseller1-peer-br-failover-strict:{key}@127.0.0.1:{net.ports.http}"
    transfer = asyncio.create_task(curl(proxy, f"{net.target_url}/slow/{BIG_BYTES}", ca, keep_body=False))

    async def flowing() -> bool:
        return any(
            c["address"] == plan.address
            and c["path"].startswith("/slow")
            and c["sent_bytes"] > DOWNLOAD_BYTES // 20
            for c in await story.target_connections()
        )

    await story.until("the transfer runs through the Brazilian phone", flowing, KILL_TIMEOUT_S)
    killed = time.monotonic()
    await net.supervisor.stop_part(f"peer-{plan.name}", signal.SIGKILL)

    async def unroutable() -> bool:
        return (await curl(proxy, net.target_url + "/ip", ca)).connect_status == 502

    await story.until("nobody is routed to it any more", unroutable, KILL_TIMEOUT_S)
    unroutable_s = time.monotonic() - killed

    async def failing() -> bool:
        return bool((await story.device_status(plan.name))["probe"]["failureReason"] == "peer_offline")

    await story.until("it was probed again and failed", failing, KILL_TIMEOUT_S)
    await net.cloud.fire("list_exits")
    check(not (await story.device_status(plan.name))["listed"], "the job took it off sale")
    delisted_s = time.monotonic() - killed
    broken = await transfer
    check(broken.exit_code != 0, f"its stream was waited for, then broken, and not ended: {broken}")
    cut_s = time.monotonic() - killed
    returned = time.monotonic()
    await net.start_peer(plan)

    async def listed_again() -> bool:
        if not (await story.device_status(plan.name))["verified"]:
            return False
        await net.cloud.fire("list_exits")
        return bool((await story.device_status(plan.name))["listed"])

    await story.until("two passes put it on sale again", listed_again, KILL_TIMEOUT_S)
    relisted_s = time.monotonic() - returned
    check((await curl(proxy, net.target_url + "/ip", ca)).status == 200, "customers reach it again")
    for name, value in (
        ("streamBrokenAfterS", cut_s),
        ("unroutableAfterS", unroutable_s),
        ("delistedAfterS", delisted_s),
        ("listedAgainAfterS", relisted_s),
    ):
        story.fact(name, round(value, 2))


async def supplier_is_owed(story: Story) -> None:
    """What was carried, at the rates that registration returned, to the last femto; debits equal credits."""
    net = story.net

    async def rolled_up() -> bool:
        report = await net.cloud.fire("roll_up")
        check("refused" not in report, f"the roll-up ran: {report}")
        key_id = story.reseller_key["id"]
        paks = (await asyncio.to_thread(_pak_id, story), key_id)
        used = {pak: net.redis.run(read_used(PakId(pak))) or 0 for pak in paks}
        totals = {pak: await asyncio.to_thread(_day_total, story, f"pak#{pak}") for pak in used}
        return totals == used and used[key_id] > DOWNLOAD_BYTES // 20

    await story.until("all counted bytes are rolled up", rolled_up, CREDIT_TIMEOUT_S)
    headers = {"X-API-Key": net.keys.supplier}
    expected = 0
    served: dict[str, int] = {}
    for name, device_id in story.devices.items():
        answer = await story.api(f"/v1/peer/agents/{device_id}/earnings", headers=headers)
        byte_count = answer.body["servedBytes"]
        rate_micro = _rate_micro(name, answer.body["earningsPerGB"])
        expected += byte_count * rate_micro
        owed_micro = int(answer.body["accountPendingMicroUSDC"])
        if byte_count:
            served[name] = byte_count
    check(served, "devices served bytes")
    check(expected // 10**9 == owed_micro, f"owed {owed_micro} micro-USDC = bytes x rates ({expected} femto)")
    debits, credits = await asyncio.to_thread(trial_balance, net.dynamo, net.table("ledger"))
    check(debits == credits == expected, f"debits {debits} = credits {credits} = earned {expected}")
    story.fact("servedBytes", served)
    story.fact("owedMicroUSDC", owed_micro)
    story.fact("debitsFemto", debits)
    story.fact("creditsFemto", credits)


def _rate_micro(name: str, told_per_gb: float) -> int:
    """The rate that registration returned, as an integer."""
    micro = round(told_per_gb * 1_000_000)
    check(micro > 0, f"registration told {name} a rate")
    return micro


def _day_total(story: Story, owner: str) -> int:
    page = story.net.dynamo.run(usage_days(story.net.table("usage"), owner, "2000-01-01", 10))
    return sum(up + down for _, up, down in page.rows)
