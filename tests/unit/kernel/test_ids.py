"""A device's id is a function of the key and the name it first registered with."""

from shared.kernel.ids import ACCOUNT_ID, DEVICE_ID, agent_device_id


def test_same_key_and_name_give_the_same_device_for_ever() -> None:
    assert agent_device_id("psx_k", "rig-1") == "agent_c8a5c48b3f62ca3d1670d9f9737f85a8"


def test_key_and_name_both_count() -> None:
    ids = {agent_device_id(k, n) for k in ("psx_a", "psx_b") for n in ("one", "two")}
    assert len(ids) == 4


def test_derived_ids_have_the_published_shape() -> None:
    assert DEVICE_ID.fullmatch(agent_device_id("psx_k", "x"))
    assert ACCOUNT_ID.fullmatch("psx_x402pool")
    assert not ACCOUNT_ID.fullmatch("psx_A")
