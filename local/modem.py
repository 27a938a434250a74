"""`python -m local.modem`: a farm of modems, each an HTTP CONNECT proxy on its own port with its own credentials and exit.

MODEMS is JSON: [{"port", "username", "password", "exit"}]. Real farms do the same with real radios.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Final

import uvloop

from shared.wire.http1 import HeadError, basic_credentials, build_head, split_authority, take_request_head

READ_BYTES: Final = 64 * 1024
DIAL_TIMEOUT_S: Final = 8.0
HEAD_MAX_BYTES: Final = 16 * 1024


class Modem:
    """One modem's proxy."""

    def __init__(self, username: str, password: str, exit_address: str) -> None:
        self._credentials = (username, password)
        self._exit = exit_address

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One customer connection."""
        try:
            head = take_request_head(bytearray(await reader.readuntil(b"\r\n\r\n")), HEAD_MAX_BYTES)
            if head is None or basic_credentials(head.header("proxy-authorization")) != self._credentials:
                writer.write(
                    build_head("HTTP/1.1 407 Proxy Authentication Required", [("Content-Length", "0")])
                )
                return
            await self._tunnel(*split_authority(head.target), reader, writer)
        except (OSError, HeadError, EOFError, asyncio.LimitOverrunError):
            pass  # a modem says nothing more to whoever breaks off
        finally:
            writer.close()

    async def _tunnel(
        self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            dialling = asyncio.open_connection(host, port, local_addr=(self._exit, 0))
            target_reader, target_writer = await asyncio.wait_for(dialling, DIAL_TIMEOUT_S)
        except (OSError, TimeoutError):
            writer.write(build_head("HTTP/1.1 502 Bad Gateway", [("Content-Length", "0")]))
            return
        writer.write(build_head("HTTP/1.1 200 Connection established", []))
        try:
            await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))
        finally:
            target_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()  # half-close: the other direction may still carry its last bytes


async def main() -> None:
    """Serve until killed."""
    for entry in json.loads(os.environ["MODEMS"]):
        modem = Modem(entry["username"], entry["password"], entry["exit"])
        await asyncio.start_server(modem.serve, "127.0.0.1", entry["port"])
    sys.stderr.write("modems ready\n")
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
