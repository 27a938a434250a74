"""Real stores for a benchmark, ended with it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import boto3

from local.network import redis_command
from local.paths import DYNOXIDE
from local.supervisor import free_port
from local.tables import table_definitions
from shared.runtime.dynamo import SyncDynamo

READY_TIMEOUT_S: Final = 10


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """URL of an empty server."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [redis_command(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with _running(command, port):
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def dynamo_server(stage: str) -> Iterator[tuple[str, SyncDynamo]]:
    """(URL, executor) of an empty server with the project's tables."""
    port = free_port()
    with _running([str(DYNOXIDE), "serve", "--port", str(port)], port):
        url = f"http://127.0.0.1:{port}"
        client: Any = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name="eu-central-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        for definition in table_definitions(stage):
            client.create_table(**definition)
        yield url, SyncDynamo(client)


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(5)
