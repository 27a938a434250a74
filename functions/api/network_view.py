"""`GET /v1/admin/network`: the live numbers as every surface has them, and what only operators need beside them.

While the cache cannot be asked it tells the last minute that was written down, how old that is, and `live: false`.
`/admin/` shows it to people: a page that holds nothing, asks with the key that is typed into it, and keeps that nowhere.
"""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse

from functions.api.auth import caller
from functions.api.status_page import STYLE, page_headers
from functions.api.wiring import Wiring
from functions.http import Routes
from shared.access.model import Scope
from shared.grading.live import Lengths, queue_lengths
from shared.guard.service import standing_incidents
from shared.guard.table import read_setting, read_switch
from shared.kernel.traffic import traffic_unit_text
from shared.pool.numbers import Numbers, known
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import SyncRedis
from shared.upkeep.history import Span, newest, numbers_of
from shared.upkeep.purchase import STATE, purchase_fault

INCIDENTS_SHOWN_MAX: Final = 50
_SCRIPT: Final = """
const form = document.querySelector("form"), place = document.querySelector("section");
const add = (to, kind, text = "") => {
  const made = to.appendChild(document.createElement(kind));
  made.textContent = typeof text === "number" ? text.toLocaleString("en") : text;
  return made;
};
const time = (ms) => ms ? new Date(ms).toISOString().slice(0, 16).replace("T", " ") + " UTC" : "never";
const usdc = (micro) => (micro / 1e6).toFixed(2) + " USDC";
const size = (bytes) => bytes < 1e9 ? (bytes / 1e6).toFixed(1) + " MB" : (bytes / 1e9).toFixed(1) + " GB";
const pools = {mbl: "Modems", peer: "Peers"};
const words = (name) => name.replaceAll("_", " ");
function table(title, heads, rows, none) {
  add(place, "h2", title);
  if (!rows.length) { add(place, "p", none); return; }
  const made = add(place, "table"), head = add(add(made, "thead"), "tr"), body = add(made, "tbody");
  for (const name of heads) add(head, "th", name);
  for (const row of rows) {
    const line = add(body, "tr");
    for (const cell of row) cell instanceof Node ? add(line, "td").append(cell) : add(line, "td", cell);
  }
}
function say(text, kind) { const made = add(place, "p"); made.className = kind; add(made, "strong", text); }
function exits(told) {
  const rows = [];
  for (const [pool, countries] of Object.entries(told.stock)) {
    for (const country of Object.keys(countries).sort()) {
      const of = (counts) => (counts[pool] || {})[country] || 0, tiers = (told.quality[pool] || {})[country] || {};
      const name = (pools[pool] || pool) + " " + country.toUpperCase();
      rows.push([name, of(told.stock), of(told.online), of(told.openConnections),
        ...["fast", "medium", "slow", "unknown", "paused"].map((name) => tiers[name] || 0)]);
    }
  }
  return rows;
}
function counted(fleet, kind) {
  const found = Object.entries(fleet).filter(([name]) => name.startsWith(kind + "."));
  return found.sort((a, b) => b[1] - a[1]).map(([name, count]) => [words(name.slice(kind.length + 1)), count]);
}
function headers() {
  const key = form.key.value.trim();
  return key.startsWith("psx_") ? {"X-API-Key": key} : {"Authorization": "Bearer " + key};
}
function closing(one) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = "Close";
  made.addEventListener("click", async () => {
    const reason = window.prompt("Why is it closed? Whoever opened it opens it again if it is still wrong.");
    if (!reason) return;
    try {
      const answer = await fetch("/v1/admin/incidents/" + encodeURIComponent(one.id) + "/close", {method: "POST",
        headers: {...headers(), "Content-Type": "application/json"}, body: JSON.stringify({reason})});
      if (answer.ok) await look(); else say("Refused: " + (await answer.json()).message, "bad");
    } catch (error) { say("No answer: " + error.message, "bad"); }
  });
  return made;
}
function show(told) {
  if (!told.live) say("The cache does not answer. What follows was counted at " + time(told.generatedAt) + ".", "bad");
  if (told.loopsStopped) say("The kill switch is on: jobs, probes and purchases rest.", "bad");
  if (told.incidents.length) say("Open incidents: " + told.incidents.length + ".", "bad");
  else say("Nothing is known to be wrong.", "ok");
  table("Incidents", ["What", "Since", "Kind", ""],
    told.incidents.map((one) => [one.message, time(one.openedAt), words(one.kind), closing(one)]), "None.");
  table("Exits on sale", ["Pool", "On sale", "Connected", "Connections", "Fast", "Medium", "Slow", "Unmeasured", "Paused"],
    exits(told), "Nothing is on sale.");
  table("All devices, and why they are on sale or not", ["Verdict", "Devices"], counted(told.fleet, "verdict"),
    "Nothing was counted in the last hour.");
  table("Speed of all devices", ["Tier", "Devices"], counted(told.fleet, "tier"), "Nothing was counted in the last hour.");
  table("Probes", ["Devices", "Number"], told.probes ? [["reported by customers, probed next", told.probes.urgent],
    ["due by now", told.probes.due], ["being probed", told.probes.underWay],
    ["waiting for their time or due", told.probes.waiting],
    ["how late the stalest one is", (told.probes.stalestLateMs / 1000).toFixed(1) + " s"],
    ["marked for the listing run", told.probes.marksForListing]] : [], "Not known just now.");
  const carried = told.live ? size(told.traffic.totalBytes) : "not known just now";
  table("Traffic", ["Carried", "Now"], [[carried, size(told.traffic.bytesPerSecond) + "/s"]], "");
  table("The synthetic customer", ["Last bought", "Spent that day", "Fault"], [[time(told.purchases.lastBoughtAt),
    usdc(told.purchases.spentMicro), told.purchases.fault || "none"]], "");
  add(add(place, "p"), "small", "Counted at " + time(told.generatedAt) + ".");
}
async function look() {
  place.replaceChildren();
  try {
    const answer = await fetch("/v1/admin/network", {headers: headers(), cache: "no-store"});
    const body = await answer.json();
    if (answer.ok) show(body); else say("Refused: " + body.message, "bad");
  } catch (error) { say("No answer: " + error.message, "bad"); }
}
form.addEventListener("submit", (event) => { event.preventDefault(); look(); });
"""
_PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>psx network</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><main><h1>psx network</h1>
<form><label>API key of an admin, or the token of a sign-in
<input name="key" type="password" autocomplete="off" maxlength="4096" required></label> <button>Look</button></form>
<section></section><p>{traffic_unit_text()}</p></main><script>{_SCRIPT}</script></body></html>
"""


def _known_lengths(redis: SyncRedis) -> Lengths | None:
    try:
        return redis.run(queue_lengths())
    except StoreUnavailable:
        return None


def _lengths(found: Lengths) -> dict[str, int]:
    return {
        "urgent": found.urgent,
        "waiting": found.waiting,
        "due": found.due,
        "underWay": found.leased,
        "stalestLateMs": found.late_ms,
        "marksForListing": found.marks,
    }


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of the view."""
    routes = Routes()

    @routes.get("/admin/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=page_headers(STYLE, _SCRIPT))

    @routes.get("/v1/admin/network")
    def network(request: Request) -> dict[str, Any]:
        w, _ = wiring(), caller(wiring(), request, Scope.ADMIN)
        guard, now = w.settings.table("guard"), now_ms()
        numbers, lengths = known(w.redis, now), _known_lengths(w.redis)
        live = numbers is not None
        if numbers is None:
            last = w.dynamo.run(newest(w.settings.table("usage"), Span.MINUTE))
            numbers = numbers_of(last) if last else Numbers(0)
        switch, purchases = w.dynamo.run(read_switch(guard)), w.dynamo.run(read_setting(guard, STATE)) or {}
        incidents = standing_incidents(w.dynamo, guard)[:INCIDENTS_SHOWN_MAX]
        return {
            "live": live,
            "ageMs": now - numbers.at_ms if numbers.at_ms else None,
            "stock": numbers.stock,
            "online": numbers.online,
            "openConnections": numbers.load,
            "held": numbers.held,
            "quality": numbers.quality,
            "fleet": numbers.fleet,
            "traffic": {
                "totalBytes": numbers.traffic_bytes if live else None,
                "bytesPerSecond": numbers.bytes_per_s,
            },
            "probes": None if lengths is None else _lengths(lengths),
            "purchases": {
                "spentMicro": purchases.get("spent_micro", 0),
                "day": purchases.get("day") or None,
                "lastBoughtAt": purchases.get("bought_ms") or None,
                "fault": purchase_fault(purchases, now),
            },
            "incidents": [
                {"id": i.incident_id, "kind": i.kind, "message": i.message, "openedAt": i.opened_at_ms}
                for i in incidents
            ],
            "loopsStopped": switch.stopped,
            "generatedAt": numbers.at_ms or None,
        }

    return routes
