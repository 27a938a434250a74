"""Pages for people who look before they join: how to buy a proxy, what is for sale, how to share, what the parts are.

Their numbers are those of every route. Prices the page itself asks from the sale, which alone knows them.
"""

import html
from collections.abc import Callable
from typing import Final

from fastapi.responses import HTMLResponse

from functions.api.status_page import STYLE, page_headers
from functions.api.wiring import Wiring
from functions.http import Routes
from shared.guard.service import standing_incidents
from shared.kernel.codes import IpType, Pool
from shared.kernel.traffic import traffic_unit_text
from shared.pool.numbers import Numbers, known
from shared.runtime.clock import now_ms

_STYLE: Final = (
    STYLE
    + """
.words th,.words td{text-align:left}
pre{background:#f6f8fa;padding:.6rem .8rem;overflow:auto}rect{fill:#f6f8fa;stroke:#1f5fa8}
text{font:13px system-ui,sans-serif;text-anchor:middle}.name{font-weight:600}path{stroke:#555;fill:none}
"""
)
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} - psx</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main><h1>{title}</h1>{body}
<p><small><a href="/marketplace/proxy/">For sale</a> · <a href="/pool-quickstart.html">Quick start</a> ·
<a href="/peer/">Share and earn</a> · <a href="/system-map/">How it is built</a> · <a href="/status/">Status</a> ·
<a href="/skill.md">For agents</a></small></p>
</main>{script}</body></html>
"""

_QUICKSTART: Final = """
<p>One wallet with USDC is all you need: no account, no e-mail, no form.</p>
<h2>1. Ask for the price</h2>
<pre>curl "{api}/v1/x402/pool?country=us&amp;traffic=0.1"</pre>
<p>The answer is 402: how much, in which token, and where to. It holds for an hour.</p>
<h2>2. Pay, and ask again</h2>
<p>Any x402 client does both in one call. By hand: transfer exactly that amount on Base or Solana, then repeat the request
from the same address with the transaction's hash.</p>
<pre>curl -H "Payment-Signature: TRANSACTION_HASH" "{api}/v1/x402/pool?country=us&amp;traffic=0.1"</pre>
<p>An answer that does not know the payment yet means: repeat it, and <strong>never pay again</strong>. A stronger proof
than the bare hash stands in the 402.</p>
<h2>3. Use it</h2>
<pre>curl -x "http://USERNAME:PASSWORD@{host}:{http}" https://example.org/
curl -x "socks5h://USERNAME:PASSWORD@{host}:{socks}" https://example.org/</pre>
<pre>import requests

proxy = "http://USERNAME:PASSWORD@{host}:{http}"
answer = requests.get("https://example.org/", proxies={{"http": proxy, "https": proxy}}, timeout=60)</pre>
<h2>4. Wish in the username</h2>
<table class="words"><thead><tr><th>Wish</th><th>Write</th></tr></thead><tbody>
<tr><td>an exit in Germany</td><td><code>psx_ACCOUNT-mbl-de</code></td></tr>
<tr><td>the same exit again, for an hour</td><td><code>…-sid-shop1-rot-sticky-ttl-3600</code></td></tr>
<tr><td>another exit every ten minutes</td><td><code>…-sid-shop1-rot-auto10</code></td></tr>
<tr><td>another exit for each connection</td><td><code>…-rot-ondemand</code></td></tr>
<tr><td>no substitute, rather an error</td><td><code>…-failover-strict</code></td></tr></tbody></table>
<h2>5. Keep the session token</h2>
<pre>curl -H "X-Session-Token: TOKEN" "{api}/v1/x402/manage/pool/credit"</pre>
<p>tells what is left; <code>POST …/topup</code> adds traffic, <code>GET …/connection</code> gives the credentials again.
{unit}</p>
"""

_PEER: Final = """
<p>A phone, a computer or a server that you own carries the traffic of paying customers, and you earn for each GB.
{unit}</p>
<h2>What is shared, and what is not</h2>
<ul><li>Websites that customers visit see the address of your connection.</li>
<li>Nobody reaches your files, your other devices or your own network, and nobody sends mail through you.</li>
<li>You set the hours and a speed limit; a stop is a stop, at once.</li>
<li>Nothing is shared before you agree, and your agreement can be taken back at any time.</li></ul>
<h2>Begin</h2>
<pre>export API_KEY=…     # of your account
psx-peer -api {api} -name living-room -schedule 22:00-07:00 -limit-mbit 20</pre>
<p>The program shows the terms and asks once. It runs while you see it, and does not start by itself. It exists in Python,
Go, Node and for Windows; for Android as a library.</p>
<h2>Look after it</h2>
<p><a href="/peer/device">Look a device up, or stop it</a>. Programs: <code>{api}/v1/peer/my-devices</code> and
<code>{api}/v1/peer/earnings/&lt;id&gt;</code>.</p>
"""

_PRICES: Final = """
const place = document.querySelector("#prices");
const add = (to, kind, text = "") => {
  const made = to.appendChild(document.createElement(kind));
  made.textContent = text;
  return made;
};
fetch("/v1/x402/pricing").then(async (reply) => {
  const told = await reply.json();
  if (!reply.ok) throw new Error(told.message || reply.status);
  const named = (name, tiers) => tiers.map((tier) => [name, tier]);
  const tiers = [...named("Pool access", told.tiers), ...named("One exit, kept for you", told.proxy.tiers)];
  place.replaceChildren();
  const made = add(place, "table"), head = add(add(made, "thead"), "tr"), body = add(made, "tbody");
  for (const name of ["Product", "Tier", "USDC per GB", "From GB", "To GB"]) add(head, "th", name);
  for (const [product, t] of tiers) {
    const line = add(body, "tr");
    for (const text of [product, t.tier, t.pricePerGB, t.minPurchaseGB, t.maxPurchaseGB]) add(line, "td", text);
  }
}).catch((error) => { place.textContent = "Prices cannot be shown just now: " + error.message; });
"""
_MARKET: Final = """
<h2>Prices</h2><div id="prices"><a href="{api}/v1/x402/pricing">Prices for programs</a></div>
<h2>Exits by country</h2>{stock}
<p>Buy: <code>{api}/v1/x402/pool?country=us&amp;traffic=0.1</code>; step by step in the
<a href="/pool-quickstart.html">quick start</a>. {unit}</p>
"""
_UNCOUNTED: Final = '<p class="bad">What is on sale cannot be counted just now.</p>'

# (left, top, name, what it does); boxes are 180 wide and 56 high.
_BOXES: Final = {
    "agent": (20, 20, "Agent", "pays, then browses"),
    "sale": (250, 20, "Sale", "402, payment, key"),
    "chain": (480, 20, "Base, Solana", "USDC"),
    "gateway": (250, 160, "Gateways", "{load} connections"),
    "select": (20, 160, "Selection", "{stock} exits on sale"),
    "store": (480, 160, "Ledger", "bytes, earnings"),
    "relay": (250, 300, "Relays", "{online} connected"),
    "probe": (20, 300, "Probes, listing", "grade and list"),
    "watch": (480, 300, "Watchdog", "{incidents} incidents"),
    "modem": (480, 440, "Modem farms", "{modems} on sale"),
    "peer": (250, 440, "Devices", "{peers} on sale"),
}
_ARROWS: Final = (
    ("agent", "sale"), ("sale", "chain"), ("agent", "gateway"), ("gateway", "select"), ("gateway", "store"),
    ("gateway", "relay"), ("peer", "relay"), ("gateway", "modem"), ("probe", "select"), ("probe", "relay"),
    ("watch", "sale"),
)  # fmt: skip
BOX_WIDTH, BOX_HEIGHT = 180, 56
_TIP: Final = (
    '<marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
    '<path d="M0,0 L8,4 L0,8"/></marker>'
)
_MAP_TEXT: Final = """
<p>An agent pays on a chain and gets a key. A gateway picks an exit for each of its connections, counts the bytes, and
passes them to a modem, or to the relay on which a device has dialled in. Probes test every exit as a customer would; what
fails leaves the sale.
{traffic}</p>
"""


def _page(title: str, body: str, script: str = "") -> HTMLResponse:
    shown = _PAGE.format(
        title=title, style=_STYLE, body=body, script=f"<script>{script}</script>" if script else ""
    )
    return HTMLResponse(shown, headers=page_headers(_STYLE, script))


def _stock(numbers: Numbers | None) -> str:
    if numbers is None:
        return _UNCOUNTED
    modems, peers = (numbers.stock.get(pool.value, {}) for pool in (Pool.MBL, Pool.PEER))
    types = numbers.types.get(Pool.PEER.value, {})
    rows = ""
    for country in sorted(modems.keys() | peers.keys()):
        name, of = html.escape(country.upper()), types.get(country, {})
        cells = (
            modems.get(country, 0),
            of.get(IpType.MOBILE.value, 0),
            of.get(IpType.RESIDENTIAL.value, 0),
            peers.get(country, 0),
        )
        rows += f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    heads = ("Country", "Modems", "Mobile devices", "Residential devices", "All devices")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _arrow(one: str, other: str) -> str:
    """From edge to edge: down or up where boxes share a column, else sideways to the nearer corner."""
    (x1, y1), (x2, y2) = _BOXES[one][:2], _BOXES[other][:2]
    if x1 == x2:
        down = y2 > y1
        start, end = (x1 + 90, y1 + (BOX_HEIGHT if down else 0)), (x2 + 90, y2 + (0 if down else BOX_HEIGHT))
    elif y1 == y2:
        right = x2 > x1
        start, end = (x1 + (BOX_WIDTH if right else 0), y1 + 28), (x2 + (0 if right else BOX_WIDTH), y2 + 28)
    else:
        start = (x1 + (150 if x2 > x1 else 30), y1 + (BOX_HEIGHT if y2 > y1 else 0))
        end = (x2 + (30 if x2 > x1 else 150), y2 + (0 if y2 > y1 else BOX_HEIGHT))
    return f'<path marker-end="url(#tip)" d="M{start[0]},{start[1]} L{end[0]},{end[1]}"/>'


def _drawn(told: dict[str, str]) -> str:
    boxes = "".join(
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 90}" y="{y + 24}">{name}</text>'
        f'<text x="{x + 90}" y="{y + 43}">{text.format(**told)}</text>'
        for x, y, name, text in _BOXES.values()
    )
    return (
        '<svg viewBox="0 0 680 516" role="img" aria-label="The parts and what flows between them">'
        f"<defs>{_TIP}</defs>{''.join(_arrow(*pair) for pair in _ARROWS)}{boxes}</svg>"
    )


def _map(numbers: Numbers | None, incidents: int) -> str:
    def total(counts: dict[str, dict[str, int]], *pools: Pool) -> str:
        return f"{sum(sum(counts.get(pool.value, {}).values()) for pool in pools):,}"

    told = dict.fromkeys(("load", "stock", "online", "modems", "peers"), "?")
    if numbers is not None:
        told = {
            "load": total(numbers.load, *Pool),
            "stock": total(numbers.stock, *Pool),
            "online": total(numbers.online, Pool.PEER),
            "modems": total(numbers.stock, Pool.MBL),
            "peers": total(numbers.stock, Pool.PEER),
        }
    traffic = "" if numbers is None else f"Just now {numbers.bytes_per_s:,} bytes a second."
    return _drawn(told | {"incidents": f"{incidents:,}"}) + _MAP_TEXT.format(traffic=traffic)


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of the pages."""
    routes = Routes()

    @routes.get("/pool-quickstart.html", response_class=HTMLResponse)
    def quickstart() -> HTMLResponse:
        settings = wiring().settings
        body = _QUICKSTART.format(
            api=html.escape(settings.api_base_url, quote=True),
            host=html.escape(settings.gateway_host),
            http=settings.gateway_http_port,
            socks=settings.gateway_socks_port,
            unit=traffic_unit_text(),
        )
        return _page("A proxy in five steps", body)

    @routes.get("/marketplace/proxy", response_class=HTMLResponse, include_in_schema=False)
    @routes.get("/marketplace/proxy/", response_class=HTMLResponse)
    def marketplace() -> HTMLResponse:
        w = wiring()
        api = html.escape(w.settings.api_base_url, quote=True)
        stock = _stock(known(w.redis, now_ms()))
        return _page(
            "Proxies for sale", _MARKET.format(api=api, stock=stock, unit=traffic_unit_text()), _PRICES
        )

    @routes.get("/peer", response_class=HTMLResponse, include_in_schema=False)
    @routes.get("/peer/", response_class=HTMLResponse)
    def share() -> HTMLResponse:
        return _page(
            "Share your connection",
            _PEER.format(api=html.escape(wiring().settings.api_base_url), unit=traffic_unit_text()),
        )

    @routes.get("/system-map", response_class=HTMLResponse, include_in_schema=False)
    @routes.get("/system-map/", response_class=HTMLResponse)
    def system_map() -> HTMLResponse:
        w = wiring()
        standing = standing_incidents(w.dynamo, w.settings.table("guard"))
        return _page("How psx is built", _map(known(w.redis, now_ms()), len(standing)))

    return routes
