"""`GET /v1/admin/network`: the live numbers as every surface has them, and what only operators need beside them.

`/admin/` shows it to people: a page that holds nothing, asks with the key that is typed into it, and keeps that nowhere.
"""

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from functions.api.auth import caller
from functions.api.status_page import STYLE, page_headers
from functions.api.wiring import Wiring
from shared.access.model import Scope
from shared.grading.live import Lengths, queue_lengths
from shared.guard.table import open_incidents, read_setting, read_switch
from shared.pool.numbers import live_numbers, run
from shared.runtime.clock import now_ms
from shared.upkeep.purchase import STATE, purchase_fault

INCIDENTS_MAX: Final = 50
_SCRIPT: Final = """
const form = document.querySelector("form"), place = document.querySelector("section");
const cell = (row, text, kind) => { row.appendChild(document.createElement(kind)).textContent = text; };
function told(name, value) {
  place.appendChild(document.createElement("h2")).textContent = name;
  if (value === null || typeof value !== "object") {
    place.appendChild(document.createElement("p")).textContent = String(value);
    return;
  }
  const table = place.appendChild(document.createElement("table"));
  for (const [key, found] of Object.entries(value)) {
    const row = table.appendChild(document.createElement("tr"));
    cell(row, key, "td");
    cell(row, found !== null && typeof found === "object" ? JSON.stringify(found) : String(found), "td");
  }
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = form.key.value.trim();
  const headers = key.startsWith("psx_") ? {"X-API-Key": key} : {"Authorization": "Bearer " + key};
  place.replaceChildren();
  try {
    const answer = await fetch("/v1/admin/network", {headers, cache: "no-store"});
    const body = await answer.json();
    if (!answer.ok) { told("Refused", body.message); return; }
    for (const [name, value] of Object.entries(body)) told(name, value);
  } catch (error) { told("No answer", error.message); }
});
"""
_PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>psx network</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><main><h1>psx network</h1>
<form><label>API key of an admin, or the token of a sign-in
<input name="key" type="password" autocomplete="off" maxlength="4096" required></label> <button>Look</button></form>
<section></section></main><script>{_SCRIPT}</script></body></html>
"""


def _lengths(found: Lengths) -> dict[str, int]:
    return {
        "urgent": found.urgent,
        "waiting": found.waiting,
        "due": found.due,
        "underWay": found.leased,
        "stalestLateMs": found.late_ms,
        "marksForListing": found.marks,
    }


def router(wiring: Callable[[], Wiring]) -> APIRouter:
    """Routes of the view."""
    routes = APIRouter()

    @routes.get("/admin/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=page_headers(STYLE, _SCRIPT))

    @routes.get("/v1/admin/network")
    def network(request: Request) -> dict[str, Any]:
        w, _ = wiring(), caller(wiring(), request, Scope.ADMIN)
        guard, now = w.settings.table("guard"), now_ms()
        numbers = run(w.redis, live_numbers(now))
        switch, purchases = w.dynamo.run(read_switch(guard)), w.dynamo.run(read_setting(guard, STATE)) or {}
        incidents = w.dynamo.run(open_incidents(guard, INCIDENTS_MAX)).rows
        return {
            "stock": numbers.stock,
            "online": numbers.online,
            "openConnections": numbers.load,
            "quality": numbers.quality,
            "fleet": numbers.fleet,
            "traffic": {"totalBytes": numbers.traffic_bytes, "bytesPerSecond": numbers.bytes_per_s},
            "probes": _lengths(w.redis.run(queue_lengths())),
            "purchases": {
                "spentMicro": purchases.get("spent_micro", 0),
                "day": purchases.get("day") or None,
                "lastBoughtAt": purchases.get("bought_ms") or None,
                "fault": purchase_fault(purchases, now),
            },
            "incidents": [
                {"id": i.incident_id, "kind": i.kind, "message": i.message, "openedAt": i.opened_at_ms}
                for i in incidents
                if i.closed_at_ms is None
            ],
            "loopsStopped": switch.stopped,
            "generatedAt": numbers.at_ms,
        }

    return routes
