"""A request to the page that tells who asks, through the gateway with a key: what a key's holder would see."""

import base64
import http.client
import json
import ssl
from typing import Final
from urllib.parse import urlsplit

from functions.x402.wiring import SaleSettings

ANSWER_MAX_BYTES: Final = 4096


def seen_as(settings: SaleSettings, username: str, secret: str, timeout_s: float) -> str:
    """The address that the page saw; empty when the gateway or the exit refused."""
    url = urlsplit(settings.echo_url)
    token = base64.b64encode(f"{username}:{secret}".encode()).decode()
    context = ssl.create_default_context(cafile=settings.echo_ca or None)
    through = http.client.HTTPSConnection(
        settings.gateway_host, settings.gateway_http_port, timeout=timeout_s, context=context
    )
    through.set_tunnel(url.hostname or "", url.port or 443, {"Proxy-Authorization": f"Basic {token}"})
    try:
        through.request("GET", url.path or "/", headers={"Host": url.netloc, "Connection": "close"})
        said = json.loads(through.getresponse().read(ANSWER_MAX_BYTES))
        return str(said["ip"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
    finally:
        through.close()
