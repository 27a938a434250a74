"""Options of a connection's socket, and a reset: of one that is gone as well."""

import asyncio
import socket
from typing import Any, cast

from shared.runtime.transports import reset, set_option


class Wire:
    """A transport by hand, and the socket below it."""

    def __init__(self, *, gone: bool = False, refuses: bool = False) -> None:
        self.gone, self.refuses, self.aborted = gone, refuses, False
        self.options: list[tuple[Any, ...]] = []

    def get_extra_info(self, name: str) -> Any:
        return None if self.gone else self

    def setsockopt(self, *option: Any) -> None:
        if self.refuses:
            raise OSError
        self.options.append(option)

    def abort(self) -> None:
        self.aborted = True

    @property
    def transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self)


def test_an_option_reaches_the_socket() -> None:
    wire = Wire()
    set_option(wire.transport, socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert wire.options == [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]


def test_a_reset_lets_nothing_linger() -> None:
    wire = Wire()
    reset(wire.transport)
    assert wire.options == [(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")]
    assert wire.aborted


def test_a_connection_that_is_gone_or_takes_no_option_is_reset_all_the_same() -> None:
    for wire in (Wire(gone=True), Wire(refuses=True)):
        reset(wire.transport)
        assert wire.aborted
    reset(None)
