"""What peers may say in a second: few that flood, or many, leave others their share."""

from itertools import cycle, islice

import pytest

from relay_node.pace import FRAMES_PER_S_SURE, OF_WHAT_IS_LEFT, RELAY_FRAMES_PER_S, STEP_FRAMES, Pace

READ_FRAMES = 64
"""Of one read."""
ALONE = RELAY_FRAMES_PER_S // (OF_WHAT_IS_LEFT + 1)
Sender = tuple[str, str, str]
"""Device, account, address."""

OTHER: Sender = ("other", "other's", "192.0.2.200")


def flood(pace: Pace, senders: list[Sender], now_s: float = 7.5) -> int:
    """All send as fast as they can, in turns, until each has to wait; how many frames that were."""
    sent, still = 0, list(senders)
    while still:
        for sender in list(still):
            sent += READ_FRAMES
            if pace.spend(*sender, READ_FRAMES, now_s):
                still.remove(sender)
    return sent


def devices(count: int, accounts: int, addresses: int) -> list[Sender]:
    owners = islice(cycle(range(accounts)), count)
    lines = islice(cycle(range(addresses)), count)
    return [
        (f"d{number}", f"a{account}", f"198.51.100.{line}")
        for number, (account, line) in enumerate(zip(owners, lines, strict=True))
    ]


def test_a_device_has_so_many_and_waits_until_the_next_second() -> None:
    pace = Pace()
    assert pace.spend(*OTHER, ALONE - STEP_FRAMES, 7.25) == 0
    assert pace.spend(*OTHER, 2 * STEP_FRAMES, 7.25) == 0.75
    assert pace.spend(*OTHER, 1, 8.0) == 0


@pytest.mark.parametrize(
    ("count", "accounts", "addresses"),
    [(16, 1, 16), (64, 1, 64), (64, 64, 1), (64, 1, 1)],
    ids=["16 of one account", "64 of one account", "64 behind one address", "64 of one account and address"],
)
def test_devices_of_one_account_or_address_leave_a_device_most_of_what_it_had_alone(
    count: int, accounts: int, addresses: int
) -> None:
    pace = Pace()
    sent = flood(pace, devices(count, accounts, addresses))
    assert sent <= ALONE + count * (FRAMES_PER_S_SURE + READ_FRAMES)
    assert flood(pace, [OTHER]) >= ALONE * 3 // 5


@pytest.mark.parametrize(("count", "left"), [(16, 3_000), (32, 1_500), (64, 400)])
def test_accounts_that_flood_from_addresses_of_their_own_leave_others_about_as_much_as_each_has(
    count: int, left: int
) -> None:
    pace = Pace()
    sent = flood(pace, devices(count, count, count))
    assert sent <= RELAY_FRAMES_PER_S
    assert flood(pace, [OTHER]) >= left


def test_every_device_has_a_little_whatever_others_do() -> None:
    pace = Pace()
    flood(pace, devices(5_000, 5_000, 255))
    assert pace.spend(*OTHER, FRAMES_PER_S_SURE, 7.5) == 0
    assert pace.spend(*OTHER, STEP_FRAMES, 7.5) == 0.5
    assert pace.spend(*OTHER, 1, 8.5) == 0
