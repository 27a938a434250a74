"""SOCKS5, server side: method choice, username and password, CONNECT; incremental and bounded.

Leaves out BIND and UDP ASSOCIATE (refused). Username/password is the only method ever chosen: access is always paid.
Source: RFC 1928, RFC 1929.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

VERSION: Final = 5
AUTH_VERSION: Final = 1
METHOD_USER_PASSWORD: Final = 2
METHOD_NONE_ACCEPTABLE: Final = 0xFF
COMMAND_CONNECT: Final = 1
_ADDRESS_BYTES: Final = {1: 4, 4: 16}
_NAME: Final = 3
_HOST: Final = re.compile(rb"[A-Za-z0-9._:-]{1,253}")
"""Names, and addresses that clients write as names; nothing that another program could read otherwise (NUL, blanks)."""


class Reply(IntEnum):
    """Reply codes of RFC 1928 section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


@dataclass(frozen=True, slots=True)
class MethodsOffered:
    """The client's greeting; `password_offered` is whether it can send username and password."""

    password_offered: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """Username and password, not yet checked."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class ConnectRequested:
    """A CONNECT to a literal address or a name, as the client wrote it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The conversation cannot go on; send `answer` and close."""

    answer: bytes


class _State(Enum):
    GREETING = 1
    AUTH = 2
    REQUEST = 3
    DONE = 4


Event = MethodsOffered | Credentials | ConnectRequested | Refused


class SocksConversation:
    """Feed bytes with `receive`; `next_event` gives what is complete, in order. The caller answers each event."""

    def __init__(self) -> None:
        self._state = _State.GREETING
        self.buffer = bytearray()

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        self.buffer += data

    def next_event(self) -> Event | None:
        """The next complete message, or None while bytes are missing (or the request is done: the rest is payload)."""
        match self._state:
            case _State.GREETING:
                return self._greeting()
            case _State.AUTH:
                return self._auth()
            case _State.REQUEST:
                return self._request()
            case _State.DONE:
                return None

    def _greeting(self) -> Event | None:
        buffer = self.buffer
        if buffer and buffer[0] != VERSION:
            return self._refuse(b"")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return None
        methods = bytes(buffer[2 : 2 + buffer[1]])
        del buffer[: 2 + buffer[1]]
        if METHOD_USER_PASSWORD not in methods:
            self._state = _State.DONE
            return MethodsOffered(False)
        self._state = _State.AUTH
        return MethodsOffered(True)

    def _auth(self) -> Event | None:
        buffer = self.buffer
        if buffer and buffer[0] != AUTH_VERSION:
            return self._refuse(auth_answer(False))
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        name_end = 2 + buffer[1]
        end = name_end + 1 + buffer[name_end]
        if len(buffer) < end:
            return None
        username, password = bytes(buffer[2:name_end]), bytes(buffer[name_end + 1 : end])
        del buffer[:end]
        self._state = _State.REQUEST
        return Credentials(username.decode("utf-8", "replace"), password.decode("utf-8", "replace"))

    def _request(self) -> Event | None:
        buffer = self.buffer
        if buffer and buffer[0] != VERSION:
            return self._refuse(reply(Reply.GENERAL_FAILURE))
        if len(buffer) < 5:
            return None
        kind = buffer[3]
        start = 5 if kind == _NAME else 4
        length = buffer[4] if kind == _NAME else _ADDRESS_BYTES.get(kind)
        if buffer[1] != COMMAND_CONNECT:
            return self._refuse(reply(Reply.COMMAND_NOT_SUPPORTED))
        if not length:
            return self._refuse(reply(Reply.ADDRESS_NOT_SUPPORTED))
        end = start + length
        if len(buffer) < end + 2:
            return None
        raw, port = bytes(buffer[start:end]), int.from_bytes(buffer[end : end + 2], "big")
        del buffer[: end + 2]
        if kind == _NAME and not _HOST.fullmatch(raw):
            return self._refuse(reply(Reply.ADDRESS_NOT_SUPPORTED))
        host = raw.decode("ascii") if kind == _NAME else str(ipaddress.ip_address(raw))
        self._state = _State.DONE
        return ConnectRequested(host, port)

    def _refuse(self, answer: bytes) -> Refused:
        self._state = _State.DONE
        return Refused(answer)


def method_answer(accepted: bool) -> bytes:
    """The answer to the greeting: username/password, or nothing acceptable."""
    return bytes((VERSION, METHOD_USER_PASSWORD if accepted else METHOD_NONE_ACCEPTABLE))


def auth_answer(accepted: bool) -> bytes:
    """The answer to the credentials."""
    return bytes((AUTH_VERSION, 0 if accepted else 1))


def reply(code: Reply) -> bytes:
    """The answer to the request. The bound address is never told: 0.0.0.0:0."""
    return bytes((VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0))
