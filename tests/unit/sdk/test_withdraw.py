"""Taking the agreement back for a whole fleet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from psx_peer import __main__ as command
from psx_peer.identity import ApiRefused


def test_a_device_that_fails_keeps_no_other_one_of_the_fleet_agreed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = {"a-00": KeyError("deviceId"), "a-02": ApiRefused(503, "away")}

    class Keeper:
        def __init__(self, options: Any) -> None:
            self.name = options.name

        def withdraw(self) -> None:
            if self.name in faults:
                raise faults[self.name]

    monkeypatch.setattr(command, "IdentityKeeper", Keeper)
    fleet: Any = [SimpleNamespace(name=f"a-{n:02d}", state_file=Path(f"s{n}")) for n in range(4)]
    assert command.withdraw(fleet) == 2
    assert command.withdraw(fleet[1:]) == 1
    assert command.withdraw([fleet[1], fleet[3]]) == 0
    told = capsys.readouterr()
    assert told.out.count("a-01: withdrawn") == told.out.count("a-03: withdrawn") == 3
    assert "s0 holds no registered device" in told.err
    assert "a-02: not withdrawn: 503" in told.err
