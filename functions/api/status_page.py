"""`/status/` for people: what is on sale, how good it is, what is wrong, how it has been; from the numbers of every route.

Counts alone, never an address or an id. No script and nothing from elsewhere: a page that works when little else does.
"""

import base64
import hashlib
import html
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fastapi.responses import HTMLResponse

from functions.api.wiring import Wiring
from functions.http import Routes
from shared.guard.model import Incident
from shared.guard.service import all_incidents
from shared.kernel.codes import Pool, SpeedTier
from shared.pool.numbers import PAUSED, Numbers, known
from shared.runtime.clock import now_ms
from shared.upkeep.history import Point, Span, all_points

HOURS_SHOWN: Final = 72
MINUTES_SHOWN: Final = 60
CLOSED_SHOWN_MAX: Final = 10
WIDTH, HEIGHT, MARGIN = 640, 120, 8
STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.2rem .6rem;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.ok{color:#176f2c}.bad{color:#a4161a}svg{width:100%;height:auto}
small{color:#555}figure{margin:1rem 0}
"""


def page_headers(style: str, script: str = "") -> dict[str, str]:
    """Headers of a page that runs its own inline style and script alone, and asks nobody but us."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = f"default-src 'none'; style-src {only(style)}; frame-ancestors 'none'"
    if script:
        policy += f"; script-src {only(script)}; connect-src 'self'"
    return {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>psx status</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main><h1>psx status</h1>{state}
{sale}
<h2>Incidents</h2>{incidents}
<h2>{span}</h2>{plots}
<p><small>{at}. The same numbers for programs: <a href="{api}/v1/gateway/pool/stock">stock</a>,
<a href="{api}/v1/gateway/pool/live">live numbers</a>, <a href="{api}/v1/gateway/pool/history">history</a>,
<a href="{api}/v1/gateway/incidents">incidents</a>.</small></p>
</main></body></html>
"""


_SALE: Final = """<p>{total:,} exits are on sale, {online:,} of them are connected now, {load:,} connections are open.</p>
<h2>On sale</h2>
<table><thead><tr><th>Country</th><th>Modems</th><th>Peers</th><th>Connected</th><th>Fast</th><th>Medium</th><th>Slow</th>
<th>Unmeasured</th><th>Paused</th></tr></thead><tbody>{rows}</tbody></table>"""
_UNCOUNTED: Final = '<p class="bad"><strong>What is on sale cannot be counted just now.</strong></p>'


def _fine(numbers: Numbers | None) -> str:
    return "" if numbers is None else '<p class="ok"><strong>Nothing is known to be wrong.</strong></p>'


def _sale(numbers: Numbers) -> str:
    countries = sorted({country for pool in numbers.stock.values() for country in pool})
    return _SALE.format(
        total=_sum(numbers.stock),
        online=_sum(numbers.online),
        load=_sum(numbers.load),
        rows="".join(_row(country, row_of(numbers, country)) for country in countries),
    )


def row_of(numbers: Numbers, country: str) -> list[int]:
    """Modems, peers, connected, each tier, paused: of one country."""
    in_pools = [numbers.quality.get(pool.value, {}).get(country, {}) for pool in Pool]
    tiers = (SpeedTier.FAST, SpeedTier.MEDIUM, SpeedTier.SLOW, SpeedTier.UNKNOWN)
    return [
        numbers.stock.get(Pool.MBL.value, {}).get(country, 0),
        numbers.stock.get(Pool.PEER.value, {}).get(country, 0),
        sum(numbers.online.get(pool.value, {}).get(country, 0) for pool in Pool),
        *(sum(found.get(name, 0) for found in in_pools) for name in (*(t.value for t in tiers), PAUSED)),
    ]


def render(
    numbers: Numbers | None, incidents: Sequence[Incident], history: Sequence[Point], span: str, api: str
) -> str:
    """The page. Everything that is not a number of ours is escaped."""
    found = [i for i in incidents if i.closed_at_ms is None]
    state = f'<p class="bad"><strong>Open incidents: {len(found)}.</strong></p>' if found else ""
    return _PAGE.format(
        style=STYLE,
        state=state or _fine(numbers),
        sale=_UNCOUNTED if numbers is None else _sale(numbers),
        incidents=_incidents(found, [i for i in incidents if i.closed_at_ms is not None]),
        span=span,
        plots=_plot(history, "Exits on sale", ("stock.",))
        + _plot(history, "Bytes a second", ("traffic.bytesPerSecond",))
        + _plot(history, "Open connections", ("load.",)),
        at="Not counted" if numbers is None else f"Counted at {_time(numbers.at_ms)}",
        api=html.escape(api, quote=True),
    )


def _sum(counts: dict[str, dict[str, int]]) -> int:
    return sum(count for pool in counts.values() for count in pool.values())


def _row(country: str, cells: Iterable[int]) -> str:
    name = html.escape(country.upper())
    return (
        f'<tr data-country="{name}"><td>{name}</td>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    )


def _incidents(standing: Sequence[Incident], closed: Sequence[Incident]) -> str:
    told = [f"since {_time(i.opened_at_ms)}: {html.escape(i.message)}" for i in standing]
    told += [
        f"{_time(i.opened_at_ms)} to {_time(i.closed_at_ms or 0)}: {html.escape(i.message)}"
        for i in closed[:CLOSED_SHOWN_MAX]
    ]
    return f"<ul>{''.join(f'<li>{text}</li>' for text in told)}</ul>" if told else "<p>None.</p>"


def _plot(history: Sequence[Point], title: str, prefixes: tuple[str, ...]) -> str:
    """A line over time; a gap where nobody counted."""
    values = [sum(n for name, n in point.mean.items() if name.startswith(prefixes)) for point in history]
    if len(values) < 2:
        return f"<p>{title}: not enough was counted yet.</p>"
    first, last, top = history[0].at_ms, history[-1].at_ms, max(*values, 1)
    placed = [
        f"{MARGIN + (point.at_ms - first) * (WIDTH - 2 * MARGIN) // (last - first)},"
        f"{HEIGHT - MARGIN - value * (HEIGHT - 2 * MARGIN) // top}"
        for point, value in zip(history, values, strict=True)
    ]
    step = min(b.at_ms - a.at_ms for a, b in itertools.pairwise(history))
    lines: list[list[str]] = [[placed[0]]]
    for (before, point), place in zip(itertools.pairwise(history), placed[1:], strict=True):
        if point.at_ms - before.at_ms > 2 * step:
            lines.append([])
        lines[-1].append(place)
    drawn = "".join(
        f'<polyline points="{" ".join(line)}" fill="none" stroke="#1f5fa8" stroke-width="2"/>'
        for line in lines
    )
    return (
        f"<figure><figcaption>{title}: last {values[-1]:,}, at most {max(values):,}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over time">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#f6f8fa"/>{drawn}</svg>'
        f"<small>{_time(first)} to {_time(last)}</small></figure>"
    )


def _time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_ms / 1000))


def _history(w: Wiring, now: int) -> tuple[str, Sequence[Point]]:
    """(what they span, points): hours, or minutes while there are no two hours yet."""
    found: Sequence[Point] = ()
    for span, count in ((Span.HOUR, HOURS_SHOWN), (Span.MINUTE, MINUTES_SHOWN)):
        since = max(now - count * span.length_ms, 0)
        found = all_points(w.dynamo, w.settings.table("usage"), span, since, now, count)
        if len(found) > 1:
            break
    return f"The last {count} {span.value}s", found


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of the page."""
    routes = Routes()

    @routes.get("/status", response_class=HTMLResponse, include_in_schema=False)
    @routes.get("/status/", response_class=HTMLResponse)
    def status() -> HTMLResponse:
        w, now = wiring(), now_ms()
        span, found = _history(w, now)
        incidents = all_incidents(w.dynamo, w.settings.table("guard"))
        numbers = known(w.redis, now)
        return HTMLResponse(
            render(numbers, incidents, found, span, w.settings.api_base_url), headers=page_headers(STYLE)
        )

    return routes
