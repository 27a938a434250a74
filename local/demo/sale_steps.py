"""Steps 5 and 6: an agent with a wallet buys on both chains, thieves get nothing, and the key works with real clients."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

from local import evm, lab
from local.client import Answer, curl
from local.demo.story import Story, check

QUERY: Final = "/v1/x402/pool?traffic=0.1&country=us&sid=demo1&rot=sticky"
WALLET_MICRO: Final = 50_000_000
STICKY_FETCHES: Final = 10
ROTATING_FETCHES: Final = 12


async def agent_buys(story: Story) -> None:
    """402, payment, credentials, on Base and on Solana; repeats, fakes and thieves are told apart."""
    net = story.net
    wallet = await net.evm.wallet(WALLET_MICRO)
    due, to = await _price(story, "base", lab.AGENT_ADDRESS)
    check(due == 400_000, f"0.1 GB costs 0.40 USDC: {due}")
    paid = await net.evm.pay(wallet, to, due)
    thief = await _claim(story, paid, lab.THIEF_ADDRESS)
    check(
        thief.status == 403, f"a thief with the hash, before the buyer claimed: {thief.status} {thief.body}"
    )
    bought = await _claim(story, paid, lab.AGENT_ADDRESS)
    check(bought.status == 200, f"the buyer gets credentials: {bought.status} {bought.body}")
    check(bought.body["proxy"]["socks5"] is None, "x402 keys are HTTP only in v1")
    again = await _claim(story, paid, lab.AGENT_ADDRESS)
    check(again.body["proxy"] == bought.body["proxy"], "the same hash gives the same credentials")
    check(again.body["sessionToken"] == bought.body["sessionToken"], "and the same session token")
    later = await _claim(story, paid, lab.THIEF_ADDRESS)
    check(later.status == 403, f"a thief with the hash, after the buyer claimed: {later.status}")
    check(
        bought.body["proxy"]["password"] not in json.dumps(later.body),
        "and nothing of the credentials is in it",
    )
    story.agent = bought.body
    await _other_product(story, paid)
    fake = await net.evm.pay(wallet, to, due, token=evm.FAKE_TOKEN)
    await _refused(story, fake, lambda: _claim(story, fake, lab.AGENT_ADDRESS), "a fake token on Base")
    story.fact("base", {"tx": paid, "amountMicro": due, "wallet": wallet.address})
    await _solana_buys(story)


async def _solana_buys(story: Story) -> None:
    net, source = story.net, lab.SOLANA_AGENT_ADDRESS
    wallet = await net.solana.wallet(WALLET_MICRO, net.fake_mint)
    due, to = await _price(story, "solana", source)
    paid = await net.solana.pay(wallet, to, due)
    bought = await _claim(story, paid, source)
    check(bought.status == 200, f"the buyer on Solana gets credentials: {bought.status} {bought.body}")
    again = await _claim(story, paid, source)
    check(again.body["proxy"] == bought.body["proxy"], "the same signature gives the same credentials")
    check(
        bought.body["proxy"]["password"] != story.agent["proxy"]["password"],
        "another purchase is another key",
    )
    fake = await net.solana.pay(wallet, to, due, net.fake_mint)
    await _refused(story, fake, lambda: _claim(story, fake, source), "another mint on Solana")
    story.fact("solana", {"signature": paid, "amountMicro": due})


async def _price(story: Story, network: str, source: str) -> tuple[int, str]:
    """(micro-USDC due, recipient) as a 402 says it."""
    answer = await story.api(QUERY, source=source)
    check(answer.status == 402, f"an unpaid request is a 402: {answer.status}")
    check(len(answer.headers["payment-required"]) < 2048, "the v2 header fits 2 KB")
    rail = next(a for a in answer.body["paymentRequirement"]["accepts"] if a["network"] == network)
    return int(rail["maxAmountRequired"]), rail["payTo"]


async def _claim(story: Story, tx_hash: str, source: str) -> Answer:
    return await story.api(QUERY, headers={"Payment-Signature": tx_hash}, source=source)


async def _refused(story: Story, tx_hash: str, claim: Callable[[], Awaitable[Answer]], what: str) -> None:
    answer = await claim()
    check(
        answer.status == 402 and "PAYMENT_INVALID" in answer.body["error"],
        f"{what} is refused: {answer.body}",
    )


async def _other_product(story: Story, paid: str) -> None:
    """The hash that bought the pool key buys no top-up."""
    headers = {"X-Session-Token": story.agent["sessionToken"], "Payment-Signature": paid}
    body = {"addTrafficGB": 0.1}
    answer = await story.api("/v1/x402/manage/pool/topup", "POST", headers, body, lab.AGENT_ADDRESS)
    check(
        answer.status == 409, f"the same hash for another product is refused: {answer.status} {answer.body}"
    )


async def agent_fetches(story: Story) -> None:
    """curl over HTTPS through :7000, a SOCKS5 client through :7001; the target sees devices, never the gateway."""
    net = story.net
    proxy, ca = story.agent["proxy"]["http"], str(net.files.ca)
    exits = {m.exit_address: m.name for m in lab.MODEMS}
    sticky = [await _seen_ip(story, proxy, ca) for _ in range(STICKY_FETCHES)]
    check(len(set(sticky)) == 1, f"a sticky session keeps its device {STICKY_FETCHES} times: {sticky}")
    check(sticky[0] in exits, f"the target saw a modem's address: {sticky[0]}")
    password = story.agent["proxy"]["password"]
    rotating = f"http://psx_x402pool-mbl-any:{password}@127.0.0.1:{net.ports.http}"
    seen = {await _seen_ip(story, rotating, ca) for _ in range(ROTATING_FETCHES)}
    check(len(seen) > 1 and seen <= set(exits), f"without a session the device changes: {seen}")
    locked = f"http://psx_x402pool-peer-us:{password}@127.0.0.1:{net.ports.http}"
    check(
        await _seen_ip(story, locked, ca) in exits,
        "an x402 key never leaves the modems, whatever its username says",
    )
    private = await curl(proxy, "https://192.168.1.1/", ca)
    check(private.connect_status == 403, f"a private network is refused: {private.connect_status}")
    await _socks(story, ca)
    watched = await net.cloud.fire("watchdog")
    check(
        watched["tried"] and not watched["failed"],
        f"the synthetic customer is served like any other: {watched}",
    )
    story.fact("watchdogTried", watched["tried"])
    story.fact("sticky", exits[sticky[0]])
    story.fact("rotation", sorted(exits[ip] for ip in seen))


async def _socks(story: Story, ca: str) -> None:
    """A reseller's key through SOCKS5, to a peer of a country."""
    net = story.net
    headers = {"X-API-Key": net.keys.reseller}
    body = {"label": "demo", "trafficCapGB": 1}
    created = await story.api("/v1/reseller/pool-keys", "POST", headers, body)
    check(created.status == 200, f"the reseller's key was created: {created.status} {created.body}")
    story.reseller_key = created.body
    key = quote(created.body["key"])
    proxy = f"socks5h://psx_reseller1-peer-de:{key}@127.0.0.1:{net.ports.socks}"
    seen = await _seen_ip(story, proxy, ca)
    german = {p.address: p.name for p in lab.PEERS if p.network.country == "DE"}
    check(seen in german, f"the target saw a German peer's address: {seen}")
    denied = f"socks5h://psx_x402pool-mbl-us:{story.agent['proxy']['password']}@127.0.0.1:{net.ports.socks}"
    refused = await curl(denied, net.target_url + "/ip", ca)
    check(refused.exit_code != 0, "an x402 key is refused on SOCKS5")
    story.fact("socks", german[seen])


async def _seen_ip(story: Story, proxy: str, ca: str) -> str:
    """The address that the target saw."""
    # The lab's name is resolved by the gateway; curl never looks it up.
    fetched = await curl(proxy, story.net.target_url + "/ip", ca)
    check(fetched.status == 200, f"curl fetched a page over HTTPS: {fetched}")
    seen: dict[str, Any] = json.loads(fetched.body)
    return str(seen["ip"])
