"""Step 10: the network looks at itself as a stranger does, who also buys; and shows what it sees."""

from __future__ import annotations

from typing import Final

from local.demo.story import Story, check

PAGE: Final = "/status/"
AGREES_S: Final = 20


async def network_watches_itself(story: Story) -> None:
    """A synthetic customer buys with a wallet's money and is served; the watchdog finds nothing wrong; people can look."""
    net = story.net
    shopped = await net.cloud.fire("buy_as_customer")
    check(shopped.get("outcome") == "bought", f"the synthetic customer buys and is served: {shopped}")
    watched = await net.cloud.fire("watchdog")
    check(watched["tried"] and not watched["failed"], f"the watchdog finds nothing wrong: {watched}")
    seen = (await story.api("/v1/admin/network", headers={"X-API-Key": net.keys.admin})).body
    check(seen["purchases"]["fault"] is None, f"the purchase is told as it went: {seen['purchases']}")

    async def same() -> int | None:
        stock = (await story.api("/v1/gateway/pool/stock")).body["totals"]["all"]
        return stock if f"<p>{stock} exits are on sale" in (await story.api(PAGE)).body else None

    story.fact("exitsOnTheStatusPage", await story.until("the status page shows the stock", same, AGREES_S))
    story.fact("spentMicroUSDC", seen["purchases"]["spentMicro"])
    story.fact("watchdogTried", watched["tried"])
