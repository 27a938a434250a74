"""A local cloud emulator, and the deploy tool run against it as an operator runs it against AWS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import pytest

from local.paths import ROOT
from local.supervisor import clean_environment
from tests.support.packages import environment_of, runtime_version
from tests.support.stores import await_port, free_port

LOCK: Final = ROOT / "requirements" / "ministack.txt"
REGION: Final = "eu-central-1"
DEPLOY_BOUND_S: Final = 180
STOP_BOUND_S: Final = 15


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    url: str
    log: Path

    def environment(self) -> dict[str, str]:
        """What makes AWS clients talk to it."""
        return {
            **clean_environment(),
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self, service: str) -> Any:
        """A client of one of its services."""
        make: Any = boto3.client  # the stubs ask for a literal name
        return make(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """A cloud of its own on loopback, in the runtime's Python: it runs functions from their uploaded zips."""
    python, port, folder = (
        environment_of("ministack", LOCK, runtime_version()),
        free_port(),
        tmp_path_factory.mktemp("cloud"),
    )
    log = folder / "log"
    env = {
        **clean_environment(),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_REGION": REGION,
        "TMPDIR": str(folder),
        "HOME": str(folder),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python.parent / "ministack")], env=env, stdout=output, stderr=output, cwd=folder
        )
    try:
        await_port(process, port)
        yield Emulator(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(STOP_BOUND_S)


def deploy_tool() -> list[str]:
    """The pinned deploy tool, as package.json installs it."""
    node = shutil.which("node")
    assert node is not None, "Node.js 20 is needed"
    return [node, str(ROOT / "node_modules" / "serverless" / "bin" / "serverless.js")]


def serverless(*arguments: str, env: Mapping[str, str]) -> str:
    """Run the deploy tool in the checkout; answers what it printed. Fails the test when it fails."""
    done = subprocess.run(
        [*deploy_tool(), *arguments],
        cwd=ROOT,
        env={**env, "SLS_NOTIFICATIONS_MODE": "off", "CI": "1"},
        capture_output=True,
        text=True,
        timeout=DEPLOY_BOUND_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def http_call(
    url: str, headers: Mapping[str, str], body: Any = None, method: str = ""
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of a GET, or of a POST of a body; any status is an answer."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data, sent, method=method or None)
    answer: Any
    try:
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=40)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text, told = answer.read().decode(), {k.lower(): v for k, v in answer.headers.items()}
    try:
        return answer.status, told, json.loads(text)
    except ValueError:
        return answer.status, told, text
