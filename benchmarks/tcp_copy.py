"""`python -m benchmarks.tcp_copy PORT TARGET`: what carrying bytes costs when nothing is done to them."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import Final

PIECE_BYTES: Final = 64 * 1024


def main() -> None:
    """Serve until killed."""
    host, _, port = sys.argv[2].rpartition(":")
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as listener:
        while True:
            ours, _ = listener.accept()
            theirs = socket.create_connection((host, int(port)))
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=copy, args=pair, daemon=True).start()


def copy(source: socket.socket, sink: socket.socket) -> None:
    """One direction, to its end."""
    piece = bytearray(PIECE_BYTES)
    view = memoryview(piece)
    with contextlib.suppress(OSError):
        while size := source.recv_into(piece):
            sink.sendall(view[:size])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
