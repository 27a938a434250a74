"""httpx through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL."""

import base64
import os
import ssl

import httpx

tls = ssl.create_default_context(cafile=os.environ["CA"])
with httpx.Client(proxy=os.environ["PROXY"], verify=tls, trust_env=False, timeout=15) as client:
    for url in os.environ["URLS"].split():
        try:
            answer = client.request(os.environ["METHOD"], url, content=os.environ["BODY"] or None)
            print(answer.status_code, base64.b64encode(answer.content).decode())
        except httpx.HTTPError as error:
            print("error", error)
