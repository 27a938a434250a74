"""aiohttp through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL.

A ws:// or wss:// URL is a WebSocket: BODY goes out as a text message, and what comes back is the answer.
"""

import asyncio
import base64
import os
import ssl

import aiohttp


async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    """Status and body of one request."""
    if url.startswith("ws"):
        async with session.ws_connect(url) as socket:
            await socket.send_str(os.environ["BODY"])
            return 101, (await socket.receive_str()).encode()
    async with session.request(os.environ["METHOD"], url, data=os.environ["BODY"] or None) as answer:
        return answer.status, await answer.read()


async def main() -> None:
    """All URLs in one session."""
    tls = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=os.environ["CA"]))
    limit = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(connector=tls, proxy=os.environ["PROXY"], timeout=limit) as session:
        for url in os.environ["URLS"].split():
            try:
                status, body = await fetch(session, url)
                print(status, base64.b64encode(body).decode())
            except (aiohttp.ClientError, TimeoutError) as error:
                print("error", repr(error))


asyncio.run(main())
