"""A sale that takes signed transfers on a real EVM node, and payers who sign."""

from collections.abc import Iterator
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from local import lab
from local.bootstrap import HOUSE
from local.evm import USDC, new_address, sign_authorization
from shared.access import table as access
from shared.chain.eip3009 import read_authorization, transfer_calldata
from shared.runtime.dynamo import SyncDynamo
from tests.support.chain import Anvil, header
from tests.support.functions import PREFIX, Functions, Reply

QUERY = "/v1/x402/pool?traffic=0.1&country=us"
DUE = 400_000
RECIPIENT = new_address()


def echo(amount: int = DUE) -> dict[str, Any]:
    """What a 402 offered, as clients send it back."""
    told = {"scheme": "exact", "network": "eip155:8453", "asset": USDC, "payTo": RECIPIENT}
    return told | {"amount": str(amount)}


class Shop(Functions):
    """The sale on a real chain, with a gas wallet."""

    def __init__(self, dynamo: SyncDynamo, redis_url: str, files: lab.LabFiles, anvil: Anvil) -> None:
        gas = Account.create()
        super().__init__(dynamo, redis_url, files, anvil.url, gas.key.hex(), RECIPIENT)
        anvil.call("anvil_setBalance", gas.address, hex(10**18))
        self.gas_address: str = gas.address
        self.anvil = anvil
        self.open(exact=True)

    def buy(self, payload: dict[str, Any], source: str = "127.20.0.1", **accepted: Any) -> Reply:
        """One request that pays by a signed transfer."""
        return self.call(QUERY, headers=header(payload, echo() | accepted), source=source)

    def minted(self) -> int:
        """How many keys were minted."""
        return len(self.dynamo.run(access.list_paks(f"{PREFIX}access", HOUSE, 1000)).rows)


@pytest.fixture
def shop(dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles, anvil: Anvil) -> Iterator[Shop]:
    made = Shop(dynoxide, valkey_url, lab_files, anvil)
    yield made
    made.close()


def signed(wallet: LocalAccount, amount: int = DUE, to: str = RECIPIENT, **how: Any) -> dict[str, Any]:
    return sign_authorization(wallet, to, amount, **how)


def calldata(payload: dict[str, Any]) -> str:
    found = read_authorization(payload)
    assert found is not None
    return transfer_calldata(found)
