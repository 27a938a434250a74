"""The prober classes an exit by the address that the target saw, and an operator's word on that address comes first."""

from typing import Any

from gateway_node.prober.service import OVERRIDES_KEPT_MS, Pace, Prober
from shared.grading.dialer import Seen
from shared.grading.model import Failure, ProbeResult
from shared.kernel.codes import IpType
from shared.kernel.ids import Country
from shared.supply.model import Origin

HOSTING = Origin(Country("nl"), IpType.DATACENTER, 64999, "Lab Hosting")


class Settings:
    """The setting that operators write, and how often it was read."""

    def __init__(self) -> None:
        self.value: dict[str, Any] | None = None
        self.reads = 0

    async def run(self, request: Any) -> Any:
        self.reads += 1
        return self.value


def prober(settings: Settings, now: list[int]) -> Prober:
    nothing: Any = None
    dynamo: Any = settings
    return Prober(
        dynamo,
        nothing,
        str,
        nothing,
        "",
        lambda address: HOSTING,
        nothing,
        nothing,
        Pace(1, 1, 1),
        lambda: now[0],
    )


async def test_an_operators_word_on_the_exits_own_address_decides_its_class() -> None:
    settings, now = Settings(), [OVERRIDES_KEPT_MS]
    probing = prober(settings, now)
    exit_seen = Seen(ProbeResult(1), "198.51.100.7")
    await probing._read_overrides()
    assert probing._classified(exit_seen).exit_ip_type is IpType.DATACENTER
    settings.value = {"198.51.100.0/24": {"class": "mobile"}, "AS64999": {"class": "residential"}}
    await probing._read_overrides()
    assert (settings.reads, probing._classified(exit_seen).exit_ip_type) == (1, IpType.DATACENTER)
    now[0] += OVERRIDES_KEPT_MS
    await probing._read_overrides()
    assert probing._classified(exit_seen).exit_ip_type is IpType.MOBILE
    elsewhere = probing._classified(Seen(ProbeResult(1), "203.0.113.7"))
    assert (elsewhere.exit_ip_type, elsewhere.exit_asn) == (IpType.RESIDENTIAL, 64999)


async def test_a_probe_that_saw_no_exit_is_classed_as_nothing() -> None:
    failed = Seen(ProbeResult(1, Failure.PEER_OFFLINE), "")
    assert prober(Settings(), [0])._classified(failed).exit_ip_type is IpType.UNKNOWN
