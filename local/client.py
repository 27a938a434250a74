"""Outside clients of the lab: plain HTTP calls from a chosen address, and curl through the gateway."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from local.supervisor import clean_environment

HTTP_TIMEOUT_S: Final = 35
CURL_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer with its JSON body."""

    status: int
    headers: Mapping[str, str]
    body: Any


async def call(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    source: str = "",
) -> Answer:
    """One JSON call, from `source` when given."""
    return await asyncio.to_thread(_call, url, method, dict(headers or {}), body, source)


def _call(url: str, method: str, headers: dict[str, str], body: Any, source: str) -> Answer:
    parts = urlsplit(url)
    bound = (source, 0) if source else None
    connection = http.client.HTTPConnection(parts.netloc, timeout=HTTP_TIMEOUT_S, source_address=bound)
    try:
        data = None if body is None else json.dumps(body)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(
            method, path, data, {"Content-Type": "application/json", **headers} if data else headers
        )
        answer = connection.getresponse()
        raw = answer.read()
        found = {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()
    try:
        return Answer(answer.status, found, json.loads(raw))
    except ValueError:
        return Answer(answer.status, found, raw.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Curled:
    """What curl did: exit status, HTTP and CONNECT status, bytes of body, and the body."""

    exit_code: int
    status: int
    connect_status: int
    size: int
    body: str
    error: str


async def curl(proxy: str, url: str, ca: str, *, keep_body: bool = True, limit_rate: str = "") -> Curled:
    """Fetch a URL through a proxy with the real curl."""
    program = shutil.which("curl")
    if program is None:
        raise FileNotFoundError("curl is not installed")
    output = "-" if keep_body else "/dev/null"
    told = "\n%{http_code} %{http_connect} %{size_download} %{exitcode}"
    # The proxy URL holds a password, so it goes by standard input, not by the argument list.
    config = f'proxy = "{proxy}"\nurl = "{url}"\n'
    arguments = [program, "-sS", "--cacert", ca, "-o", output, "-w", told, "--max-time", str(CURL_TIMEOUT_S)]
    if limit_rate:
        arguments += ["--limit-rate", limit_rate]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        "-K",
        "-",
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(config.encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    body, _, facts = out.decode("utf-8", "replace").rpartition("\n")
    status, connect, size, _ = facts.split(" ")
    return Curled(
        process.returncode or 0, int(status), int(connect), int(size), body, err.decode("utf-8", "replace")
    )
