"""A WebSocket through a proxy with `websockets`: BODY goes out, what comes back is the answer. Environment as beside it."""

import base64
import os
import ssl

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

for url in os.environ["URLS"].split():
    tls = ssl.create_default_context(cafile=os.environ["CA"]) if url.startswith("wss") else None
    try:
        with connect(url, ssl=tls, proxy=os.environ["PROXY"], open_timeout=15) as socket:
            socket.send(os.environ["BODY"])
            told = socket.recv(timeout=15)
        print(101, base64.b64encode(told.encode() if isinstance(told, str) else told).decode())
    except (WebSocketException, OSError) as error:
        print("error", error)
