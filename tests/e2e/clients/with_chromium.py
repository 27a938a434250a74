"""Chromium through a proxy, over a CDP pipe. PROXY, SPKI and URLS from the environment; a line of answer for each URL.

The proxy belongs to one browser context and every name resolves to nothing, so the browser's own errands reach neither the
proxy nor the world. Credentials are given once, when the browser asks; asked again, it is told to give up. A ws:// or wss://
URL is a WebSocket opened by a page: BODY goes out, what comes back is the answer. The browser ends when its pipe is closed.
"""

import base64
import fcntl
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root, where Chromium has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PIPE_IN, PIPE_OUT = 3, 4  # the browser's descriptors by the meaning of --remote-debugging-pipe
FIRST_FREE = 10
ALL_TIMEOUT_S = 25
SOCKET_PAGE = """new Promise((done, failed) => {
  const socket = new WebSocket(%s);
  socket.onopen = () => socket.send(%s);
  socket.onmessage = (event) => { done(event.data); socket.close(); };
  socket.onerror = () => failed(new Error("the socket failed"));
})"""


def _pipe() -> tuple[int, int]:
    """A pipe above the two descriptors that the browser's ends take."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]


class Browser:
    """A CDP conversation: calls with answers, and events in order."""

    def __init__(self, profile: str) -> None:
        theirs_in, out = _pipe()
        into, theirs_out = _pipe()
        os.dup2(theirs_in, PIPE_IN)
        os.dup2(theirs_out, PIPE_OUT)
        trusted = f"--ignore-certificate-errors-spki-list={os.environ['SPKI']}"
        self.process = subprocess.Popen(
            [os.environ["PROGRAM"], *FLAGS, trusted, f"--user-data-dir={profile}"],
            pass_fds=(PIPE_IN, PIPE_OUT),
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, PIPE_IN, PIPE_OUT):
            os.close(end)
        self._out, self._into = os.fdopen(out, "wb", 0), os.fdopen(into, "rb")
        self._read = bytearray()
        self._number = 0
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _method, _told: None

    def close(self) -> None:
        """Close the pipe; the browser goes by itself."""
        self._out.close()
        self.process.wait()

    def send(self, method: str, session: str = "", **parameters: Any) -> int:
        """Order something; the answer comes under this number."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._out.write(
            json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0"
        )
        return self._number

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Order and wait, while events go to `on_event`; raises RuntimeError with the browser's words."""
        number = self.send(method, session, **parameters)
        while (answer := self._message()).get("id") != number:
            self._event(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def step(self) -> None:
        """Wait for one event."""
        self._event(self._message())

    def _event(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self.on_event(message["method"], message["params"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            part = self._into.read1()
            if not part:
                raise RuntimeError("the browser ended")
            self._read += part
        text, _, rest = bytes(self._read).partition(b"\0")
        self._read = bytearray(rest)
        message: dict[str, Any] = json.loads(text)
        return message


class Tab:
    """A page of a context that has the proxy."""

    def __init__(self, browser: Browser, proxy: str) -> None:
        parts = urlsplit(proxy)
        self._given = {"username": parts.username or "", "password": parts.password or ""}
        self._asked: set[str] = set()
        self._answer: dict[str, Any] = {}
        self._loaded = False
        self._browser = browser
        server = f"http://{parts.hostname}:{parts.port}"
        context = browser.call("Target.createBrowserContext", proxyServer=server)
        page = browser.call("Target.createTarget", url="about:blank", **context)
        attached = browser.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        browser.on_event = self._event
        for domain in ("Page.enable", "Network.enable"):
            self._call(domain)
        self._call("Fetch.enable", handleAuthRequests=True)

    def fetch(self, url: str) -> tuple[int, str]:
        """Status and text of a page, or of a socket's echo. Raises RuntimeError."""
        if url.startswith("ws"):
            return 101, self._socket(url)
        self._answer, self._loaded = {}, False
        gone = self._call("Page.navigate", url=url)
        if gone.get("errorText"):
            status = self._answer.get("response", {}).get("status", "no status")
            raise RuntimeError(f"{status} {gone['errorText']}")
        while not self._loaded:
            self._browser.step()
        body = self._call("Network.getResponseBody", requestId=self._answer["requestId"])
        return self._answer["response"]["status"], body["body"]

    def _socket(self, url: str) -> str:
        script = SOCKET_PAGE % (json.dumps(url), json.dumps(os.environ["BODY"]))
        told = self._call("Runtime.evaluate", expression=script, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["exception"]["description"])
        return str(told["result"]["value"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def _event(self, method: str, told: dict[str, Any]) -> None:
        if method == "Fetch.requestPaused":
            self._browser.send("Fetch.continueRequest", self._session, requestId=told["requestId"])
        elif method == "Fetch.authRequired":
            self._credentials(told["requestId"])
        elif method == "Network.responseReceived" and told["type"] == "Document":
            self._answer = told
        elif method == "Page.loadEventFired":
            self._loaded = True

    def _credentials(self, request: str) -> None:
        again = request in self._asked
        self._asked.add(request)
        answer = {"response": "CancelAuth"} if again else {"response": "ProvideCredentials", **self._given}
        self._browser.send(
            "Fetch.continueWithAuth", self._session, requestId=request, authChallengeResponse=answer
        )


def main() -> None:
    """All URLs in one tab."""
    signal.alarm(ALL_TIMEOUT_S)
    with tempfile.TemporaryDirectory(dir=os.environ["HOME"], ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            tab = Tab(browser, os.environ["PROXY"])
            for url in os.environ["URLS"].split():
                try:
                    status, body = tab.fetch(url)
                    print(status, base64.b64encode(body.encode()).decode())
                except RuntimeError as error:
                    print("error", error)
        finally:
            browser.close()


main()
