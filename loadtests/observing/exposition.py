"""A service's own numbers, from its /metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
SCRAPE_S = 10.0


@dataclass(frozen=True, slots=True)
class Exposition:
    """Samples of one scrape: name, labels, value."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        wanted = labels.items()
        return ((has, value) for n, has, value in self.samples if n == name and wanted <= has.items())

    def sum(self, name: str, **labels: str) -> float:
        """Of all that carry these labels, of all replicas; 0 if there is none."""
        return sum(value for _, value in self.of(name, **labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sums for each value of a label."""
        sums: dict[str, float] = {}
        for has, value in self.of(name, **labels):
            sums[has.get(label, "")] = sums.get(has.get(label, ""), 0.0) + value
        return sums

    def has(self, name: str) -> bool:
        return any(n == name for n, _, _ in self.samples)


def parse(text: str) -> Exposition:
    """Prometheus text. What can't be read is left out."""
    samples = []
    for line in text.splitlines():
        if line.startswith("#") or (found := _SAMPLE.match(line)) is None:
            continue
        try:
            samples.append((found[1], dict(_LABEL.findall(found[2] or "")), float(found[3])))
        except ValueError:
            continue
    return Exposition(tuple(samples))


def scrape(url: str, key: str = "") -> Exposition:
    """Raises httpx.HTTPError."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{url}/metrics", trust_env=False, timeout=SCRAPE_S, headers=headers)
    return parse(answer.raise_for_status().text)
