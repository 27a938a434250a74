"""What is said of a signed transfer before it is sent, when nodes of the chain disagree: one of them decides nothing."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from eth_account import Account

from local.evm import sign_authorization
from shared.chain.eip3009 import BALANCE_SELECTOR, STATE_SELECTOR, TRANSFER_SELECTOR, read_authorization
from shared.chain.model import Authorization, InvalidReason, ReadFailed
from shared.chain.nodes import Nodes
from shared.chain.settler import EvmSettler

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
WORD = "0x" + "0" * 63
YES, NO, RICH = WORD + "1", WORD + "0", WORD + "f"


@dataclass
class Node:
    """Answers calls of the contract by their selector; None reverts."""

    said: dict[str, str | None]
    provider: Any = field(init=False)

    def __post_init__(self) -> None:
        self.provider = self

    def make_request(self, method: str, params: list[Any]) -> dict[str, Any]:
        answer = self.said[params[0]["data"][:10]]
        reverted = {"code": 3, "message": "execution reverted"}
        return {"error": reverted} if answer is None else {"result": answer}


def node(used: str | None = NO, balance: str | None = RICH, dry_run: str | None = "0x") -> Node:
    return Node({STATE_SELECTOR: used, BALANCE_SELECTOR: balance, TRANSFER_SELECTOR: dry_run})


@pytest.fixture(scope="module")
def authorization() -> Authorization:
    found = read_authorization(sign_authorization(Account.create(), "0x" + "11" * 20, 10))
    assert found is not None
    return found


def settler(*nodes: Node) -> EvmSettler:
    return EvmSettler(Nodes(nodes), 8453, USDC, b"\x01" * 32)


@pytest.mark.parametrize(
    ("liar", "alone"),
    [
        (node(used=YES), InvalidReason.AUTH_USED_OTHERWISE),
        (node(balance=NO), InvalidReason.AUTH_BALANCE),
        (node(balance=None), InvalidReason.AUTH_BALANCE),
        (node(dry_run=None), InvalidReason.AUTH_REVERTED),
    ],
)
def test_one_node_refuses_no_transfer_where_two_must_agree(
    liar: Node, alone: InvalidReason, authorization: Authorization
) -> None:
    assert settler(liar).refused(authorization, 1) is alone
    assert settler(liar, liar).refused(authorization, 2) is alone
    assert settler(liar, node(), node()).refused(authorization, 2) is None
    with pytest.raises(ReadFailed):
        settler(liar, node()).refused(authorization, 2)


def test_one_node_gives_no_transfer_up(authorization: Authorization) -> None:
    with pytest.raises(ReadFailed):
        settler(node(used=NO), node(used=YES)).is_used(authorization, 2)
    assert settler(node(used=NO), node(used=YES), node(used=YES)).is_used(authorization, 2)
    with pytest.raises(ReadFailed):
        settler(node(used=None)).is_used(authorization, 1)
