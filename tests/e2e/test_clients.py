"""Real clients through the real gateway: what they get, what the target sees, and what they say of a wrong password."""

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from local import lab
from local.client import call
from local.network import LocalNetwork
from local.sdks import ToolMissing, go_client
from tests.support.clients import Clients, Told, program, run
from tests.support.doorway import Doorway
from tests.support.network import put_on_sale, reseller_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]
ACCOUNT = "psx_reseller1"
REFUSED_WITHIN_S = 10
HTTP_CLIENTS = ("curl", "wget", "requests", "httpx", "aiohttp", "undici", "go", "java", "chromium")
SOCKS_CLIENTS = {"curl": "socks5h", "requests": "socks5h", "httpx": "socks5", "go": "socks5"}
POSTING_CLIENTS = ("curl", "requests", "httpx", "aiohttp", "undici", "go", "java")
REFUSALS = {
    "wget": "Proxy Authentication Required",
    "go": "Proxy Authentication Required",
    "java": "too many authentication attempts",
    "chromium": "ERR_INVALID_AUTH_CREDENTIALS|ERR_TUNNEL_CONNECTION_FAILED",
}
"""What a client says instead of the number 407."""
TELLTALE = re.compile(r"via|forwarded|x-forwarded.*|x-real-ip|client-ip|proxy-.*|x-psx.*|x-request-id")


class Lab:
    """A network with a few exits on sale, a key of a reseller, and clients."""

    def __init__(self, net: LocalNetwork, key: str, clients: Clients) -> None:
        self.net = net
        self.key = key
        self.clients = clients
        self.exits = {plan.address for plan in lab.PEERS[:3]} | {plan.exit_address for plan in lab.MODEMS}
        self._strangers = itertools.count(1)

    def proxy(self, scheme: str = "http", port: int = 0, account: str = ACCOUNT, password: str = "") -> str:
        """A proxy URL with credentials; right ones unless told otherwise."""
        port = port or (self.net.ports.http if scheme == "http" else self.net.ports.socks)
        return f"{scheme}://{account}-any-any:{password or self.key}@127.0.0.1:{port}"

    def url(self, path: str, scheme: str = "https") -> str:
        """A page of the second site."""
        return self.net.site_urls[scheme] + path

    def doorway(self, scheme: str = "http") -> Doorway:
        """A way to the gateway that nobody else uses."""
        port = self.net.ports.http if scheme == "http" else self.net.ports.socks
        return Doorway(port, f"127.20.1.{next(self._strangers)}")

    def sees_only_the_exit(
        self, seen: dict[str, Any], scheme: str, own: frozenset[str] = frozenset()
    ) -> None:
        """A request as the target saw it names neither the proxy nor the customer; `own` are the client's own words."""
        assert seen["address"] in self.exits
        headers = dict(seen["headers"])
        assert headers["host"] == self.url("", scheme).partition("://")[2]
        assert {name for name in headers if TELLTALE.fullmatch(name)} <= own
        values = " ".join(headers.values())
        assert ACCOUNT not in values
        assert self.key not in values
        assert "127.0.0.1" not in values

    async def requests(self, part: str) -> list[dict[str, Any]]:
        """Requests for a path that the second site has seen."""
        control = f"http://127.0.0.1:{self.net.ports.target_control}/requests"
        return [seen for seen in (await call(control)).body if part in seen["target"]]

    async def fetch_wrong(self, client: str, scheme: str, *urls: str) -> list[Told]:
        """What a client says with a wrong password, in time."""
        async with self.doorway(scheme.removesuffix("h")) as door:
            # An account of its own: bans by account are nobody else's either.
            proxy = self.proxy(scheme, door.port, account=f"psx_wrong{client}", password="pak_" + "0" * 24)
            began = time.monotonic()
            told = await self.clients.fetch(client, proxy, *urls)
            assert time.monotonic() - began < REFUSED_WITHIN_S
        return told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def psx(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    with contextlib.suppress(ToolMissing):
        await asyncio.to_thread(go_client)  # before anything is timed
    net = LocalNetwork()
    clients = Clients(tmp_path_factory.mktemp("clients"), net.files.ca, net.files.target_cert)
    async with net:
        await put_on_sale(net, 3, modems=True)
        yield Lab(net, (await reseller_key(net, "clients"))["key"], clients)


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("client", HTTP_CLIENTS)
async def test_a_client_reads_a_page_and_the_target_sees_the_exit(psx: Lab, client: str, scheme: str) -> None:
    (told,) = await psx.clients.fetch(client, psx.proxy(), psx.url(f"/echo?{client}", scheme))
    assert (told.status, told.error) == (200, "")
    seen = json.loads(told.body)
    assert (seen["method"], seen["target"]) == ("GET", f"/echo?{client}")
    # wget says Proxy-Connection to the target itself, inside TLS, where no proxy can take it away.
    own = frozenset({"proxy-connection"} if (client, scheme) == ("wget", "https") else ())
    psx.sees_only_the_exit(seen, scheme, own)


@pytest.mark.parametrize("client", HTTP_CLIENTS)
async def test_a_wrong_password_is_a_407_to_every_client(psx: Lab, client: str) -> None:
    urls = psx.url("/echo?wrong", "https"), psx.url("/echo?wrong", "http")
    for told in await psx.fetch_wrong(client, "http", *urls):
        assert told.status == 407 or re.search(f"407|{REFUSALS.get(client, '407')}", told.error), told
    assert await psx.requests("/echo?wrong") == []


@pytest.mark.parametrize("client", SOCKS_CLIENTS)
async def test_a_client_reads_pages_over_socks(psx: Lab, client: str) -> None:
    urls = [psx.url(f"/echo?socks-{client}", scheme) for scheme in ("https", "http")]
    pages = await psx.clients.fetch(client, psx.proxy(SOCKS_CLIENTS[client]), *urls)
    for told, scheme in zip(pages, ("https", "http"), strict=True):
        assert (told.status, told.error) == (200, "")
        psx.sees_only_the_exit(json.loads(told.body), scheme)


@pytest.mark.parametrize("client", SOCKS_CLIENTS)
async def test_a_wrong_password_is_a_refusal_over_socks(psx: Lab, client: str) -> None:
    (told,) = await psx.fetch_wrong(client, SOCKS_CLIENTS[client], psx.url("/echo?wrong-socks"))
    assert told.status == 0
    assert told.error
    assert await psx.requests("/echo?wrong-socks") == []


@pytest.mark.parametrize("client", POSTING_CLIENTS)
async def test_a_body_arrives_whole_both_ways(psx: Lab, client: str) -> None:
    body = "0123456789abcdef" * 1000
    urls = psx.url("/echo?post", "https"), psx.url("/echo?post", "http")
    for told in await psx.clients.fetch(client, psx.proxy(), *urls, method="POST", body=body):
        assert (told.status, told.error) == (200, "")
        seen = json.loads(told.body)
        assert seen["method"] == "POST"
        assert seen["body"] == body


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_git_clones_over_https(psx: Lab, scheme: str, tmp_path: Path) -> None:
    remote = await _publish(psx, f"{scheme}.git")
    env = psx.clients.environment(https_proxy=psx.proxy(scheme))
    git = program("git")
    listed = await run([git, "ls-remote", remote], env)
    assert "refs/heads/main" in listed.out, listed.err
    cloned = await run([git, "clone", "-q", remote, str(tmp_path / "copy")], env)
    assert cloned.exit_code == 0, cloned.err
    assert (tmp_path / "copy" / "README").read_text() == "lab\n"
    seen = await psx.requests(f"/files/{scheme}.git/")
    assert seen
    for request in seen:
        psx.sees_only_the_exit(request, "https")


async def test_git_says_407_for_a_wrong_password(psx: Lab) -> None:
    remote = psx.url("/files/none.git")
    async with psx.doorway() as door:
        proxy = psx.proxy(port=door.port, account="psx_wronggit", password="pak_" + "0" * 24)
        env = psx.clients.environment(https_proxy=proxy)
        listed = await run([program("git"), "ls-remote", remote], env)
    assert listed.exit_code != 0
    assert "407" in listed.err


async def _publish(psx: Lab, name: str) -> str:
    """A repository with one commit, as plain files of the second site; its URL."""
    folder = psx.net.site_files
    git, work = program("git"), folder / f"work-{name}"
    who = ["-c", "user.name=lab", "-c", "user.email=lab@lab.psx.example"]
    work.mkdir()
    (work / "README").write_text("lab\n")
    for command in (
        ["init", "-q", "-b", "main", str(work)],
        ["-C", str(work), "add", "README"],
        ["-C", str(work), *who, "commit", "-q", "-m", "First"],
        ["clone", "-q", "--bare", str(work), str(folder / name)],
        ["-C", str(folder / name), "update-server-info"],
    ):
        done = await run([git, *command], psx.clients.environment())
        assert done.exit_code == 0, done.err
    return psx.url(f"/files/{name}")


async def test_curl_that_waits_to_be_asked_gets_through(psx: Lab) -> None:
    for scheme in ("https", "http"):
        ran = await psx.clients.curl(psx.proxy(), psx.url("/echo?anyauth", scheme), "--proxy-anyauth", "-s")
        assert ran.exit_code == 0, ran.err
        psx.sees_only_the_exit(json.loads(ran.out), scheme)


async def test_head_of_a_plain_page_has_no_body(psx: Lab) -> None:
    ran = await psx.clients.curl(psx.proxy(), psx.url("/chunked/3", "http"), "--head")
    assert ran.exit_code == 0, ran.err
    assert ran.out.startswith("HTTP/1.1 200 ")


async def test_a_304_ends_without_a_body(psx: Lab) -> None:
    fresh = await psx.clients.curl(psx.proxy(), psx.url("/cached", "http"))
    assert fresh.out == "fresh\n"
    known = await psx.clients.curl(
        psx.proxy(), psx.url("/cached", "http"), "-i", "-H", 'If-None-Match: "psx-lab"'
    )
    assert known.exit_code == 0, known.err
    assert known.out.startswith("HTTP/1.1 304 ")


async def test_a_body_that_waits_for_100_continue_is_sent(psx: Lab) -> None:
    began = time.monotonic()
    ran = await psx.clients.curl(
        psx.proxy(),
        psx.url("/echo?expect", "http"),
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "8",
        "--data-binary",
        "waited",
    )
    assert ran.exit_code == 0, ran.err
    assert json.loads(ran.out)["body"] == "waited"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("client", ["curl", "requests", "httpx", "aiohttp", "go", "java"])
async def test_plain_pages_of_every_framing_share_one_connection(psx: Lab, client: str) -> None:
    async with psx.doorway() as door:
        paths = (f"/echo?keep-{client}", "/chunked/300", "/cached", "/chunked/0", "/none", "/cached")
        urls = [psx.url(path, "http") for path in paths]
        pages = await psx.clients.fetch(client, psx.proxy(port=door.port), *urls)
        assert [told.status for told in pages] == [200, 200, 200, 200, 404, 200]
        bodies = [told.body for told in pages[1:4]]
        assert bodies == [b"c" * 300 * 1024, b"fresh\n", b""]
        assert pages[-1].body == b"fresh\n"
        assert door.connections == 1


@pytest.mark.parametrize("client", ["curl", "requests", "httpx", "aiohttp", "go"])
async def test_plain_posts_share_one_connection(psx: Lab, client: str) -> None:
    """The JDK is left out: it sends a body before it is asked for a password, and that costs the connection."""
    async with psx.doorway() as door:
        urls = [psx.url(f"/echo?{n}", "http") for n in range(3)]
        proxy = psx.proxy(port=door.port)
        pages = await psx.clients.fetch(client, proxy, *urls, method="POST", body="post " * 500)
        assert [json.loads(told.body)["body"] for told in pages] == ["post " * 500] * 3
        assert door.connections == 1


@pytest.mark.parametrize(
    ("client", "scheme"),
    [
        ("websockets", "wss"),
        ("websockets", "ws"),  # by CONNECT
        ("aiohttp", "wss"),
        ("aiohttp", "ws"),  # in absolute form
    ],
)
async def test_a_websocket_passes(psx: Lab, client: str, scheme: str) -> None:
    url = psx.url("/ws", {"wss": "https", "ws": "http"}[scheme]).replace("http", "ws", 1)
    (told,) = await psx.clients.fetch(client, psx.proxy(), url, body="hello")
    assert told == Told(101, b"hello")


async def test_chromium_opens_a_websocket_from_a_page(psx: Lab) -> None:
    socket = psx.url("/ws").replace("https", "wss", 1)
    page, told = await psx.clients.fetch("chromium", psx.proxy(), psx.url("/echo"), socket, body="hello")
    assert page.status == 200
    assert told == Told(101, b"hello")
