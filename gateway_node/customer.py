"""What both listeners share: a customer's connection, until and while it has a tunnel."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from gateway_node.pipeline import Pipeline
from gateway_node.tunnel import WRITE_HIGH_BYTES, Tunnel, pause_exit, resume_exit

EARLY_MAX_BYTES: Final = 64 * 1024
"""What a customer may send before its tunnel is open; beyond it reading stops."""


class CustomerSide(asyncio.Protocol):
    """One connection of a customer. A listener adds how requests are read and answered."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tunnel: Tunnel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._address = str((transport.get_extra_info("peername") or ("",))[0])

    def pause_writing(self) -> None:
        pause_exit(self._tunnel)

    def resume_writing(self) -> None:
        resume_exit(self._tunnel)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._tunnel is not None:
            self._tunnel.finish()

    def abort_after(self, timeout_s: float) -> None:
        """Hang up unless the timer is cancelled: slow heads hold no connection."""
        self._timer = self._loop.call_later(timeout_s, self._too_slow)

    def _too_slow(self) -> None:
        if self._transport is not None:
            self._transport.abort()
