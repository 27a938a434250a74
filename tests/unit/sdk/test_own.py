"""What a device takes for its own networks."""

import ipaddress

from psx_peer.own import TOLD_MAX, OwnNetworks, read_interfaces


def test_this_machine_s_interfaces_are_read_with_their_prefixes() -> None:
    assert ("127.0.0.1", 8) in read_interfaces()
    for address, prefix in read_interfaces():
        ipaddress.ip_interface(f"{address}/{prefix}")


def test_interfaces_and_what_relays_tell_are_the_device_s_own() -> None:
    own = OwnNetworks(lambda: [("91.198.174.192", 24), ("not an address", 24)])
    own.told("2a02:8108:1:2::5")
    own.told("auto")
    assert [str(network) for network in own()] == ["2a02:8108:1:2::/64", "91.198.174.0/24"]


def test_the_newest_addresses_that_relays_told_are_kept() -> None:
    own = OwnNetworks(list)
    for number in range(1, TOLD_MAX + 2):
        own.told(f"91.198.174.{number}")
        own.told("91.198.175.1")
    told = {str(network.network_address) for network in own()}
    assert len(told) == TOLD_MAX
    assert {"91.198.175.1", f"91.198.174.{TOLD_MAX + 1}"} <= told
    assert "91.198.174.1" not in told
