# pragma version ^0.4.0
# A contract wallet with one owner: it calls what the owner signs for, and says whether a signature is the owner's (EIP-1271).
# The owner is written into storage, because the code is placed at an address without being deployed.

MAGIC: constant(bytes4) = 0x1626ba7e
REFUSED: constant(bytes4) = 0xffffffff

owner: public(address)


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[65]) -> bytes4:
    if len(signature) != 65:
        return REFUSED
    r: bytes32 = extract32(signature, 0)
    s: bytes32 = extract32(signature, 32)
    v: uint8 = convert(slice(signature, 64, 1), uint8)
    signer: address = ecrecover(digest, v, r, s)
    return MAGIC if signer != empty(address) and signer == self.owner else REFUSED


@external
def execute(target: address, data: Bytes[1024]):
    assert msg.sender == self.owner, "not the owner"
    raw_call(target, data)
