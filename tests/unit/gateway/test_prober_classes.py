"""The prober classes an exit by the address that the target saw, and an operator's word on that address comes first."""

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from gateway_node.prober.service import SETTINGS_KEPT_MS, Parts, Prober
from gateway_node.prober.settings import parse_targets
from gateway_node.prober.target import TargetService
from shared.grading.asking import ASKED_WITHIN_S, question
from shared.grading.dialer import Seen
from shared.grading.live import Leased
from shared.grading.model import Failure, ProbeResult
from shared.grading.rules import MEASURING_BYTES, plain_page
from shared.guard.model import Switch
from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.supply.model import Device, Kind, Origin

ASKING = "probers and targets know it"
HOSTING = Origin(Country("nl"), IpType.DATACENTER, 64999, "Lab Hosting")
DEVICE = Device(DeviceId("d"), AccountId("psx_s"), "n", Kind.AGENT, HOSTING, "", "eu", 0)


class Settings:
    """The setting that operators write, and how often settings were read."""

    def __init__(self) -> None:
        self.value: dict[str, Any] | None = None
        self.grading: dict[str, Any] = {"interval_s": 7}
        self.switch = Switch()
        self.reads = 0

    async def run(self, request: Any) -> Any:
        if "switch" in str(request.params):
            return self.switch
        self.reads += 1
        return self.value if "ip_classes" in str(request.params) else self.grading


class Queue:
    """A queue in which nothing is due, that tells how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def run(self, call: Any) -> Leased:
        self.asked += 1
        return Leased((), 0, 0)


def prober(settings: Settings, now: list[int], queue: Any = None) -> Prober:
    nothing: Any = None
    dynamo: Any = settings
    return Prober(
        Parts(
            dynamo=dynamo,
            redis=queue,
            table=str,
            box=nothing,
            mesh_token="",
            origin=lambda address: HOSTING,
            targets=(),
            trust=nothing,
            concurrency=1,
            now_ms=lambda: now[0],
        )
    )


async def test_an_operators_word_on_the_exits_own_address_decides_its_class() -> None:
    settings, now = Settings(), [SETTINGS_KEPT_MS]
    probing = prober(settings, now)
    exit_seen = Seen(ProbeResult(1), "198.51.100.7")
    await probing._read_settings()
    assert probing._thresholds.interval_s == 7
    assert probing._classified(DEVICE, exit_seen).exit_ip_type is IpType.DATACENTER
    settings.value = {"198.51.100.0/24": {"class": "mobile"}, "AS64999": {"class": "residential"}}
    await probing._read_settings()
    seen = probing._classified(DEVICE, exit_seen)
    assert (settings.reads, seen.exit_ip_type) == (2, IpType.DATACENTER)
    now[0] += SETTINGS_KEPT_MS
    await probing._read_settings()
    assert probing._classified(DEVICE, exit_seen).exit_ip_type is IpType.MOBILE
    elsewhere = probing._classified(DEVICE, Seen(ProbeResult(1), "203.0.113.7"))
    assert (elsewhere.exit_ip_type, elsewhere.exit_asn) == (IpType.RESIDENTIAL, 64999)


async def test_the_kill_switch_stops_probing_within_the_age_of_settings_and_lets_it_go_on() -> None:
    settings, now, queue = Settings(), [SETTINGS_KEPT_MS], Queue()
    probing = prober(settings, now, queue)
    for stopped, asked in ((False, 1), (True, 1), (False, 2)):
        settings.switch = Switch(stopped)
        now[0] += SETTINGS_KEPT_MS
        assert await probing._take() == 0
        assert queue.asked == asked
    settings.switch = Switch(True)
    await probing._take()
    assert queue.asked == 3, "read a moment ago"


async def test_a_probe_that_saw_no_exit_is_classed_as_nothing() -> None:
    failed = Seen(ProbeResult(1, Failure.PEER_OFFLINE), "")
    assert prober(Settings(), [0])._classified(DEVICE, failed).exit_ip_type is IpType.UNKNOWN


@pytest.mark.parametrize(
    ("registered", "differs"),
    [
        (HOSTING, ""),
        (Origin(), ""),
        (replace(HOSTING, country=Country("us")), "country"),
        (replace(HOSTING, ip_type=IpType.MOBILE), "class"),
        (Origin(Country("us"), IpType.RESIDENTIAL), "country,class"),
    ],
)
def test_an_exit_that_is_elsewhere_or_else_than_it_registered_is_named(
    registered: Origin, differs: str
) -> None:
    probing = prober(Settings(), [0])
    device = replace(DEVICE, origin=registered)
    assert probing._classified(device, Seen(ProbeResult(1), "198.51.100.7")).differs == differs


@pytest.mark.parametrize("text", ["", "[]x", "[{}]", '[{"place": "eu"}]', "[1]"])
def test_targets_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="place, name"):
        parse_targets(text)


async def test_a_setting_that_this_version_does_not_know_ends_no_prober(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings, now, queue = Settings(), [SETTINGS_KEPT_MS], Queue()
    settings.grading = {"interval_s": 9, "of_a_later_version": 1}
    probing = prober(settings, now, queue)
    assert await probing._take() == 0
    assert (queue.asked, probing._thresholds.interval_s) == (1, 9)
    assert "of_a_later_version" in caplog.records[-1].reason  # type: ignore[attr-defined]


def test_an_exits_network_is_a_digest_unless_an_operator_spoke_of_it() -> None:
    probing = prober(Settings(), [0])

    def network(address: str) -> str:
        return probing._classified(DEVICE, Seen(ProbeResult(1), address)).exit_network

    assert network("198.51.100.7") == network("198.51.100.200") != network("198.51.101.7")
    assert network("2001:db8:1::7") == network("2001:db8:1:ffff::9")
    assert "198" not in network("198.51.100.7")
    probing._overrides = {"198.51.100.0/24": {"class": "residential"}}
    assert network("198.51.100.7") == ""


def test_what_one_address_draws_from_a_target_is_bounded_by_the_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway_node.prober.target.ADDRESS_BYTES_PER_MINUTE", 2_500)
    clock = [60]
    service = TargetService("eu", "", "", lambda: clock[0])
    assert [service._may_draw("203.0.113.1", 1_000) for _ in range(4)] == [True, True, False, False]
    assert service._may_draw("203.0.113.2", 1_000)
    clock[0] += 60
    assert service._may_draw("203.0.113.1", 1_000)


def test_nobody_makes_a_target_work_for_more_than_a_probe_needs() -> None:
    service = TargetService("eu", "", ASKING, lambda: 60)
    _, body = service._body(question(ASKING, "a", 100_000_000, 60), encrypted=True)
    assert body is not None
    assert len(body) == MEASURING_BYTES


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (question(ASKING, "a", 9, 60), True),
        (question(f"{ASKING},old", "a", 9, 60 + ASKED_WITHIN_S), True),
        (question("the next one", "a", 9, 60 - ASKED_WITHIN_S), True),
        (question(ASKING, "a", 9, 61 + ASKED_WITHIN_S), False),
        (question(ASKING, "a", 9, 59 - ASKED_WITHIN_S), False),
        (question("guessed", "a", 9, 60), False),
        (question("", "a", 9, 60), False),
        (question(ASKING, "a", 9, 60).replace("size=9", "size=10"), False),
        (question(ASKING, "a", 9, 60).replace("nonce=a", "nonce=b"), False),
        ("/probe?nonce=a&size=9&at=60", False),
        ("/probe?nonce=a&size=9", False),
        ("/probe?nonce=a", False),
    ],
)
def test_a_target_sends_bodies_to_probers_alone(asked: str, served: bool) -> None:
    """While keys are rotated it knows two of them. A page is for anybody: a balancer looks whether it is there."""
    service = TargetService("eu", "", f"{ASKING},the next one,", lambda: 60)
    assert (service._body(asked, encrypted=True)[1] is not None) is served
    assert service._body(asked, encrypted=False)[1] is None
    assert service._body("/page?nonce=a", encrypted=False)[1] == plain_page("a")


def test_an_older_target_answers_what_a_newer_prober_asks() -> None:
    """It reads nonce and size, and nothing else: so probers are updated before targets."""
    fields = dict(parse_qsl(urlsplit(question(ASKING, "a", 9, 60)).query))
    assert (fields["nonce"], fields["size"]) == ("a", "9")
