"""The fast reader of answers: rows as botocore would read them, and refusals left to botocore."""

import json
from typing import Any

import pytest
from botocore.hooks import HierarchicalEmitter

from shared.runtime.dynamo_answers import READS, read_fast


class Client:
    """What the reader needs of an AWS client."""

    def __init__(self) -> None:
        self.meta = self
        self.events = HierarchicalEmitter()

    def parsed(self, operation: str, status: int, answer: Any) -> tuple[dict[str, Any], bytes]:
        """What the reader made of an answer, and what it left for botocore."""
        came: dict[str, Any] = {"status_code": status, "body": json.dumps(answer).encode()}
        made: dict[str, Any] = {}
        self.events.emit(
            f"before-parse.dynamodb.{operation}", response_dict=came, customized_response_dict=made
        )
        return made, came["body"]


@pytest.fixture
def client() -> Client:
    made = Client()
    read_fast(made)
    read_fast(made)
    return made


@pytest.mark.parametrize("operation", READS)
def test_rows_are_read_with_their_bytes_and_nothing_is_left_to_read(client: Client, operation: str) -> None:
    row = {"pk": {"S": "a"}, "sealed": {"B": "AAE="}, "in": {"M": {"B": {"S": "no bytes"}, "n": {"N": "1"}}}}
    made, left = client.parsed(operation, 200, {"Items": [row], "Count": 1})
    assert made == {"Items": [{**row, "sealed": {"B": b"\0\1"}}], "Count": 1}
    assert left == b"{}"


def test_a_refusal_is_botocores_to_read(client: Client) -> None:
    refusal = {"__type": "com.amazonaws.dynamodb#ThrottlingException"}
    assert client.parsed("Query", 400, refusal) == ({}, json.dumps(refusal).encode())


def test_other_operations_are_botocores_to_read(client: Client) -> None:
    assert client.parsed("GetItem", 200, {"Item": {}}) == ({}, b'{"Item": {}}')
