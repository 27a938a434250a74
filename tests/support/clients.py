"""Real clients of the gateway: how each is started, and what it said. Their programs stand in `tests/e2e/clients`.

A client runs in an environment of its own in which every variable that could name another CA names the lab's, and gets
credentials by environment, standard input or a private file, never as an argument.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from local.paths import MODULES, ROOT
from local.sdks import go_client

PROGRAMS: Final = ROOT / "tests" / "e2e" / "clients"
RUN_TIMEOUT_S: Final = 30
PIPE_MAX_BYTES: Final = 16 * 1024 * 1024
_CA_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)
_COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": (sys.executable, "with_requests.py"),
    "httpx": (sys.executable, "with_httpx.py"),
    "aiohttp": (sys.executable, "with_aiohttp.py"),
    "websockets": (sys.executable, "with_websockets.py"),
    "undici": ("node", "with_undici.cjs"),
    "java": ("java", "-Djdk.http.auth.tunneling.disabledSchemes=", "-XX:TieredStopAtLevel=1", "WithJdk.java"),
    "chromium": (sys.executable, "with_chromium.py"),
}
"""Programs that take PROXY, CA, METHOD, BODY and URLS; curl, wget and Go are started in their own ways."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a client says of one request: a status with a body, or status 0 and its own words of why not."""

    status: int
    body: bytes = b""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended."""

    exit_code: int
    out: str
    err: str


def program(name: str) -> str:
    """Where a tool is. Without it a test fails in CI, and is skipped elsewhere."""
    found = shutil.which(name)
    if found is None:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"{name} is not installed")
    return str(found)


async def run(
    command: Sequence[str], env: Mapping[str, str], stdin: str = "", timeout_s: float = RUN_TIMEOUT_S
) -> Ran:
    """Run a program to its end; killed when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(env),
        cwd=env["HOME"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=PIPE_MAX_BYTES,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode or 0, out.decode("latin-1"), err.decode("utf-8", "replace"))


class Clients:
    """All clients of one lab; `home` is theirs, `ca` is whom they trust, `certificate` what Chromium pins."""

    def __init__(self, home: Path, ca: Path, certificate: Path) -> None:
        self._home = home
        self._ca = ca
        self._spki = _spki(certificate)
        (home / "no-ca").mkdir(parents=True)

    def environment(self, **more: str) -> dict[str, str]:
        """What a client's process sees, and no more."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_DIR": str(self._home / "no-ca"),
            "NODE_PATH": str(MODULES),
            "PYTHONPATH": str(ROOT),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            **dict.fromkeys(_CA_VARIABLES, str(self._ca)),
            **more,
        }

    async def fetch(
        self, client: str, proxy: str, *urls: str, method: str = "GET", body: str = ""
    ) -> list[Told]:
        """What a client says of each URL, asked for one after the other in one session of it."""
        match client:
            case "curl":
                return await self._curl(proxy, urls, method, body)
            case "wget":
                return [await self._wget(proxy, url) for url in urls]
            case "go":
                program("go")
                command = [str(await asyncio.to_thread(go_client))]
            case _:
                name, *arguments, file = _COMMANDS[client]
                command = [program(name), *arguments, str(PROGRAMS / file)]
        job = {"PROXY": proxy, "CA": str(self._ca), "METHOD": method, "BODY": body, "URLS": " ".join(urls)}
        if client == "chromium":
            job |= {"PROGRAM": program("chromium"), "SPKI": self._spki}
        ran = await run(command, self.environment(**job))
        told = [_told(line) for line in ran.out.splitlines()]
        assert len(told) == len(urls), f"{client} ended with {ran.exit_code}: {ran.err[-2000:]}"
        return told

    async def curl(self, proxy: str, url: str, *options: str) -> Ran:
        """curl with options of the test's own; the answer's head is in the output with `-i`."""
        command = [program("curl"), "-sS", "--max-time", "15", *options, "-K", "-"]
        return await run(command, self.environment(), f'proxy = "{proxy}"\nurl = "{url}"\n')

    async def _curl(self, proxy: str, urls: Sequence[str], method: str, body: str) -> list[Told]:
        with tempfile.TemporaryDirectory(dir=self._home) as folder:
            files = [Path(folder) / str(n) for n in range(len(urls))]
            config = [f'proxy = "{proxy}"']
            for url, file in zip(urls, files, strict=True):
                config += [f'url = "{url}"', f'output = "{file}"']
            options = ["-X", method, *(["--data-binary", body] if body else [])]
            facts = "%{exitcode} %{response_code} %{http_connect} %{errormsg}\n"
            command = [program("curl"), "-sS", "--max-time", "15", *options, "-w", facts, "-K", "-"]
            ran = await run(command, self.environment(), "\n".join(config))
            return [_curled(line, file) for line, file in zip(ran.out.splitlines(), files, strict=True)]

    async def _wget(self, proxy: str, url: str) -> Told:
        env = self.environment(http_proxy=proxy, https_proxy=proxy)
        trust = f"--ca-certificate={self._ca}"
        ran = await run([program("wget"), "-nv", "-S", "-T", "15", "-t", "1", trust, "-O", "-", url], env)
        if ran.exit_code:
            return Told(0, error=ran.err)
        statuses = re.findall(r"^ *HTTP/1\.[01] (\d{3})", ran.err, re.MULTILINE)
        return Told(int(statuses[-1]), ran.out.encode("latin-1"))


def _curled(facts: str, file: Path) -> Told:
    exit_code, status, connect, error = facts.split(" ", 3)
    if exit_code != "0":
        return Told(0, error=f"{connect} {error}")
    return Told(int(status), file.read_bytes() if file.exists() else b"")


def _told(line: str) -> Told:
    status, _, rest = line.partition(" ")
    if status == "error":
        return Told(0, error=rest)
    return Told(int(status), base64.b64decode(rest))


def _spki(certificate: Path) -> str:
    """The hash by which Chromium is told to trust a certificate."""
    key = x509.load_pem_x509_certificates(certificate.read_bytes())[0].public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return base64.b64encode(digest.finalize()).decode()
