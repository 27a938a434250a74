"""The public page for whoever finds a device id: what it is, whether its owner agreed, and a stop that works.

It is read by people, so it says what happens and not which route does it. The stop takes the account's API key, in the
body of a form: a device id proves nothing.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.responses import HTMLResponse

from functions.api.audit import concerns
from functions.api.auth import api_key
from functions.api.consent import Consents, who
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes, source_network
from functions.limits import spend
from shared.access.live import Limit
from shared.access.model import Scope
from shared.kernel.ids import DEVICE_ID, DeviceId
from shared.runtime.clock import now_ms
from shared.supply.table import get_device

STOPS: Final = Limit("device_stop", 10, 60)
FORM_MAX_BYTES: Final = 4096
_STYLE: Final = (
    "body{font:1rem/1.5 sans-serif;max-width:42rem;margin:2rem auto;padding:0 1rem}"
    "label,button{display:block;margin:.4rem 0}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Is this device sharing its connection? - psx</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main><h1>Is this device sharing its internet connection?</h1>
<p>psx pays people for letting others use their internet connection. Websites that those others visit see the address of
your connection. Nobody can reach your files, your other devices or your home network through it.</p>
<p>Every device that takes part has a name that we call a device id. It is no password: whoever knows it can read this
page, and nothing more.</p>
<form method="get" action="/peer/device"><label>Device id <input name="id" value="{given}" maxlength="128"></label>
<button>Look it up</button></form>
{found}
<h2>How to stop it</h2>
<ol><li><strong>On the device:</strong> close the app, press its Stop button, or end the program psx-peer. Sharing ends in
that moment, and it does not start again by itself. <code>psx-peer -withdraw</code> also takes your agreement back, with no
API key.</li>
<li><strong>From anywhere,</strong> with the API key of the account that the device belongs to:
<form method="post" action="/peer/device">
<label>Device id <input name="id" value="{given}" maxlength="128" required></label>
<label>API key <input name="key" type="password" autocomplete="off" maxlength="256" required></label>
<button>Stop sharing and withdraw my agreement</button></form></li></ol>
<p>After that the device carries nothing more: what is open ends within seconds, and it stays off until its owner agrees
again. What it has earned stays yours.</p>
<p>You never agreed, and this is your device? End the program, then remove it: it cannot hide and has no right to be there.
Programs do the same by the interface: <code>DELETE {api}/v1/peer/my-devices/&lt;id&gt;/consent</code>.</p>
</main></body></html>
"""


def _page(api: str, given: str, found: str, refused: ProblemError | None = None) -> HTMLResponse:
    page = _PAGE.format(style=_STYLE, given=html.escape(given, quote=True), found=found, api=html.escape(api))
    if refused is None:
        return HTMLResponse(page, headers=_HEADERS)
    return HTMLResponse(page, refused.status, {**_HEADERS, **refused.headers})


def _told(facts: dict[str, Any]) -> str:
    """What is known of a device, in a sentence."""
    if not facts["known"]:
        return "<p><strong>No device of psx has this id.</strong></p>"
    if facts["consent"]["withdrawnAt"]:
        return "<p><strong>This device takes no part any more: its owner withdrew.</strong></p>"
    if facts["consent"]["recorded"]:
        return "<p><strong>This is a device of psx. Its owner agreed to share its connection.</strong></p>"
    return "<p><strong>This is a device of psx. Nobody has agreed, so nothing of it is shared.</strong></p>"


def _fields(request: Request, body: bytes) -> tuple[str, str]:
    """(device id, API key) of a form; 400 for what is none."""
    if len(body) > FORM_MAX_BYTES:
        raise ProblemError(400, "INVALID_FIELD", f"body: at most {FORM_MAX_BYTES} bytes")
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            given = json.loads(body)
            return str(given["id"]).strip(), str(given["key"]).strip()
        form = parse_qs(body.decode(), max_num_fields=8)
        return form["id"][0].strip(), form["key"][0].strip()
    except (KeyError, TypeError, ValueError):
        raise ProblemError(400, "INVALID_FIELD", "id, key: both are needed") from None


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of the page."""
    routes = Routes()
    consents = Consents(wiring)

    @routes.get("/peer/device", response_class=HTMLResponse)
    def page(request: Request, id: str = "") -> HTMLResponse:
        facts = consents.about(request, id)
        return _page(consents.w.settings.api_base_url, id[:128], _told(facts) if id else "")

    @routes.post("/peer/device", response_class=HTMLResponse)
    async def stop(request: Request) -> HTMLResponse:
        body = await request.body()
        return answer(request, body)

    def answer(request: Request, body: bytes) -> HTMLResponse:
        """A person reads it, also when nothing was done."""
        api, device_id = consents.w.settings.api_base_url, ""
        try:
            device_id, key = _fields(request, body)
            withdraw(request, device_id, key)
        except ProblemError as refused:
            told = f"<p><strong>Nothing was changed. {html.escape(refused.message)}</strong></p>"
            return _page(api, device_id[:128], told, refused)
        done = "<p><strong>Done. This device takes no part any more; what was open ends now.</strong></p>"
        return _page(api, device_id, done)

    def withdraw(request: Request, device_id: str, text: str) -> None:
        w = consents.w
        spend(request, w.redis, [STOPS], f"ip:{source_network(request)}", now_ms(), closed=True)
        key = api_key(w, text)
        known = DEVICE_ID.fullmatch(device_id) is not None
        device = w.dynamo.run(get_device(consents.table, DeviceId(device_id))) if known else None
        if device is None or device.account_id != key.account_id or Scope.SUPPLY not in key.scopes:
            raise ProblemError(404, "NOT_FOUND", "the account of this API key has no such device")
        concerns(request, f"dev#{device_id}", key.account_id, "api_key")
        consents.withdraw(request, device, who(key), "page")

    return routes
