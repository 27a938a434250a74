"""Real stores for a benchmark, ended with it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import boto3

from local.paths import DYNOXIDE
from local.stores import redis_command
from local.supervisor import free_port
from local.tables import table_definitions
from shared.runtime.dynamo import SyncDynamo

READY_TIMEOUT_S: Final = 10
FILLED_TIMEOUT_S: Final = 180


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
        client = _client(port)
        for definition in table_definitions(stage):
            client.create_table(**definition)
        yield f"http://127.0.0.1:{port}", SyncDynamo(client)


@contextlib.contextmanager
def filled_dynamo(stage: str, rows: Mapping[str, Iterable[str]]) -> Iterator[SyncDynamo]:
    """A server with the project's tables that holds these rows (each as JSON) by table: read in as an export is, because
    hundreds of thousands of writes take longer than what is to be measured.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        schema = Path(folder, "schema.json")
        schema.write_text(json.dumps([{"Table": definition} for definition in table_definitions(stage)]))
        for table, items in rows.items():
            place = Path(folder, "export", table, "data")
            place.mkdir(parents=True)
            with (place / "rows.json").open("w") as file:
                file.writelines(f'{{"Item": {item}}}\n' for item in items)
        source = ["--source", str(Path(folder, "export")), "--schema", str(schema)]
        command = [str(DYNOXIDE), "import", *source, "--serve", "--port", str(port)]
        with _running(command, port, FILLED_TIMEOUT_S):
            client = _client(port)
            for definition in table_definitions(stage):
                if definition["TableName"] not in rows:
                    client.create_table(**definition)
            yield SyncDynamo(client)


def _client(port: int) -> Any:
    return boto3.client(
        "dynamodb",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="eu-central-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


@contextlib.contextmanager
def _running(command: list[str], port: int, within_s: float = READY_TIMEOUT_S) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + within_s
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
