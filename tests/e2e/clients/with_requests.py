"""requests through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL."""

import base64
import os

import requests

with requests.Session() as session:
    session.trust_env = False
    session.proxies = dict.fromkeys(("http", "https"), os.environ["PROXY"])
    session.verify = os.environ["CA"]
    for url in os.environ["URLS"].split():
        try:
            answer = session.request(os.environ["METHOD"], url, data=os.environ["BODY"] or None, timeout=15)
            print(answer.status_code, base64.b64encode(answer.content).decode())
        except requests.RequestException as error:
            print("error", error)
