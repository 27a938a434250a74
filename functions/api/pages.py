"""Pages that machines read first: how to buy, where, and in which words."""

from collections.abc import Callable
from typing import Any

from fastapi.responses import PlainTextResponse

from functions.api.wiring import Wiring
from functions.http import Routes
from shared.kernel.traffic import traffic_unit_text

_SKILL = """# psx: proxies for agents that have a wallet

1. GET {api}/v1/x402/pool?country=us&traffic=0.1 answers 402 with the price, the asset and where to pay.
2. Transfer exactly that many micro-USDC on Base or Solana.
3. Repeat the request, from the same address, with the header `Payment-Signature: <transaction hash>`.
   An answer that says the payment is not known yet means: repeat, and never pay again.
   503 NO_STOCK instead of a price means: nothing is free there now; do not pay, and ask for another country or later.
4. Use `proxy.http` of the answer. The username is a routing request:
   psx_<account>-<pool>-<country>[-sid-<session>][-rot-sticky|auto5|auto10|auto20|auto60|ondemand]
5. Keep `sessionToken`: GET {api}/v1/x402/manage/pool/credit with `X-Session-Token` tells what is left,
   POST …/topup buys more, GET …/connection gives the credentials again.

{unit}

Stock, counts only: {api}/v1/gateway/pool/stock
Prices: {api}/v1/x402/pool/pricing
"""


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of pages."""
    routes = Routes()

    def skill() -> str:
        return _SKILL.format(api=wiring().settings.api_base_url, unit=traffic_unit_text())

    @routes.get("/skill.md", response_class=PlainTextResponse)
    @routes.get("/llms.txt", response_class=PlainTextResponse)
    def skill_page() -> str:
        return skill()

    @routes.get("/.well-known/x402.json")
    def discovery() -> dict[str, Any]:
        api = wiring().settings.api_base_url
        return {
            "x402Version": 2,
            "resources": [f"{api}/v1/x402/pool", f"{api}/v1/x402/proxy"],
            "pricing": f"{api}/v1/x402/pool/pricing",
            "instructions": f"{api}/skill.md",
        }

    return routes
