"""Every refusal has its status, its SOCKS reply and its Proxy-Status; the body says code, message and request."""

import pytest

from gateway_node.refusals import HTTP_STATUS, PROXY_STATUS, SOCKS_REPLY, RefusedRequest, http_answer
from shared.kernel.codes import Refusal
from shared.wire.http1 import take_response_head


@pytest.mark.parametrize("table", [HTTP_STATUS, SOCKS_REPLY, PROXY_STATUS])
def test_the_tables_are_total(table: dict[Refusal, object]) -> None:
    assert set(table) == set(Refusal)


@pytest.mark.parametrize("code", list(Refusal))
def test_an_answer_is_a_whole_http_answer(code: Refusal) -> None:
    raw = bytearray(http_answer(RefusedRequest(code, "why"), "req-1", ("ttl=60",), keep=True))
    head = take_response_head(raw)
    assert head is not None
    assert head.status == HTTP_STATUS[code]
    assert raw.decode() == f"{code.value}: why (req: req-1)\n"
    assert head.header("content-length") == str(len(raw))
    assert head.header("x-request-id") == "req-1"
    assert head.header("x-psx-corrections") == "ttl=60"
    assert (head.header("proxy-authenticate") is not None) is (head.status == 407)
    assert (head.header("retry-after") is not None) is (head.status == 429)


def test_a_head_request_gets_no_body() -> None:
    raw = http_answer(RefusedRequest(Refusal.AUTH_REQUIRED, "x"), "r", (), keep=False, body=False)
    assert raw.endswith(b"Connection: close\r\n\r\n")
