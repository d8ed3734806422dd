"""Many expositions of metrics as one: every sample under the label of the replica it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

LABEL = "replica"


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _parse(text: str) -> list[Metric]:
    try:
        return list(text_string_to_metric_families(text))
    except ValueError:
        return []


def merge(expositions: Mapping[str, str]) -> bytes:
    """Prometheus text from the texts by replica.

    A family that two replicas know becomes one, as the format allows a name only once. A text that is no
    exposition is left out, and so is a family whose name was another type's before.
    """
    families: dict[str, Metric] = {}
    for replica, text in expositions.items():
        for family in _parse(text):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            if merged.type != family.type:
                continue
            for sample in family.samples:
                labels = {**sample.labels, LABEL: replica}
                merged.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)
