"""What every tunnel or frame counts: the metrics library's own counters and gauges take a lock for each change."""

from collections.abc import Iterable

from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """One count, or one level, that one thread changes."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add."""
        self.value += amount


def level(name: str, documentation: str) -> Tally:
    """A gauge that shows a tally."""
    tally = Tally()
    Gauge(name, documentation).set_function(lambda: tally.value)
    return tally


class Tallies(Collector):
    """A counter by labels, made once per name."""

    def __init__(self, name: str, documentation: str, *labels: str) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        REGISTRY.register(self)

    def of(self, *values: str) -> Tally:
        """The count under these values of the labels."""
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally()
        return tally

    def collect(self) -> Iterable[Metric]:
        found = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, tally in list(self._tallies.items()):
            found.add_metric(values, tally.value)
        yield found
