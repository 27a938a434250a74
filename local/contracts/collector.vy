# pragma version ^0.4.0
# Moves a token for several payers in one transaction, as a batching contract does.

interface Token:
    def transferFrom(sender: address, receiver: address, amount: uint256) -> bool: nonpayable


@external
def collect(token: address, payers: DynArray[address, 8], receiver: address, amount: uint256):
    for payer: address in payers:
        assert extcall Token(token).transferFrom(payer, receiver, amount)
