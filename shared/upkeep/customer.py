"""A customer's fetch of a page of a probe target through a gateway, over HTTP CONNECT or SOCKS5. Blocking.

Source: RFC 9110 section 9.3.6, RFC 1928, RFC 1929.
"""

import base64
import contextlib
import json
import secrets
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from shared.grading.asking import question
from shared.grading.model import PROOF_HEADER, Target
from shared.grading.rules import compare_body
from shared.wire.http1 import HeadError, basic_header, connect_head, take_response_head

TIMEOUT_S: Final = 15.0
HEAD_MAX_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Door:
    """A gateway: its name, where its two ports are, and whose key to use there."""

    name: str
    host: str
    http_port: int
    socks_port: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """How a fetch went: the exit that the target saw, or why not (`refused_407`, `timeout`, …)."""

    exit_ip: str = ""
    fault: str = ""
    body_bytes: int = 0
    ms: int = 0

    @property
    def ok(self) -> bool:
        """Whether the page came through as it was signed."""
        return not self.fault


class _Fault(Exception):
    pass


def fetch(
    door: Door | None,
    username: str,
    password: str,
    target: Target,
    tls: ssl.SSLContext,
    asking_keys: str,
    *,
    socks: bool = False,
) -> Fetched:
    """One fetch through a gateway, or straight to the target without one. Never raises for what the network does."""
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as open_:
            if door is None:
                raw = open_.enter_context(socket.create_connection((target.address, target.port), TIMEOUT_S))
            else:
                port = door.socks_port if socks else door.http_port
                raw = open_.enter_context(socket.create_connection((door.host, port), TIMEOUT_S))
                (_socks if socks else _connect)(raw, username, password, target)
            stream = open_.enter_context(tls.wrap_socket(raw, server_hostname=target.name))
            return _page(stream, target, asking_keys, began)
    except _Fault as fault:
        return Fetched(fault=str(fault), ms=_since(began))
    except TimeoutError:
        return Fetched(fault="timeout", ms=_since(began))
    except ssl.SSLError:
        return Fetched(fault="tls", ms=_since(began))
    except (OSError, HeadError) as error:
        return Fetched(fault=type(error).__name__.lower(), ms=_since(began))


def _connect(raw: socket.socket, username: str, password: str, target: Target) -> None:
    head = [("Proxy-Authorization", basic_header(username, password))]
    raw.sendall(connect_head(target.name, target.port, head))
    answer = take_response_head(bytearray(_until_blank(raw)), HEAD_MAX_BYTES)
    if answer is None or answer.status != 200:
        raise _Fault(f"refused_{answer.status if answer else 0}")


def _socks(raw: socket.socket, username: str, password: str, target: Target) -> None:
    raw.sendall(b"\x05\x01\x02")
    if _exactly(raw, 2) != b"\x05\x02":
        raise _Fault("socks_method")
    user, secret = username.encode(), password.encode()
    raw.sendall(bytes([1, len(user)]) + user + bytes([len(secret)]) + secret)
    if _exactly(raw, 2)[1]:
        raise _Fault("refused_407")
    name = target.name.encode()
    raw.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + target.port.to_bytes(2, "big"))
    answer = _exactly(raw, 4)
    _exactly(raw, {1: 4, 4: 16}.get(answer[3], 0) + 2)
    if answer[1]:
        raise _Fault(f"socks_{answer[1]}")


def _page(stream: ssl.SSLSocket, target: Target, asking_keys: str, began: float) -> Fetched:
    nonce = secrets.token_hex(8)
    path = question(asking_keys, nonce, BODY_BYTES, int(time.time()))
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {target.name}\r\nConnection: close\r\n\r\n".encode())
    head = take_response_head(bytearray(_until_blank(stream)), HEAD_MAX_BYTES)
    if head is None or head.status != 200:
        raise _Fault(f"status_{head.status if head else 0}")
    body = _exactly(stream, BODY_BYTES)
    if compare_body(body, nonce, BODY_BYTES) is not None:
        raise _Fault("body_altered")
    return Fetched(_exit_ip(head.header(PROOF_HEADER.lower()) or ""), "", len(body), _since(began))


def _exit_ip(proof: str) -> str:
    """The address that the target saw. Its signature is for probers: here TLS vouches for the target."""
    with contextlib.suppress(ValueError, IndexError):
        payload = proof.split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(told.get("ip", ""))
    return ""


def _until_blank(raw: socket.socket) -> bytes:
    """A head, byte by byte: what follows it is not ours to read yet."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += _exactly(raw, 1)
        if len(head) > HEAD_MAX_BYTES:
            raise _Fault("head_too_long")
    return bytes(head)


def _exactly(raw: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = raw.recv(size - len(parts))
        if not part:
            raise _Fault("closed")
        parts += part
    return bytes(parts)


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
