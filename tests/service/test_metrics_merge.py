from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.metrics_merge import merge

STEPS = '# HELP steps_total Steps.\n# TYPE steps_total counter\nsteps_total{model="ett"} 3.0\n'
SECONDS = (
    "# HELP tick_seconds Ticks.\n# TYPE tick_seconds histogram\n"
    'tick_seconds_bucket{le="0.1"} 1.0\ntick_seconds_bucket{le="+Inf"} 2.0\n'
    "tick_seconds_count 2.0\ntick_seconds_sum 0.3\n"
)


def samples(text: bytes) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(text.decode())
    return [(s.name, dict(s.labels), s.value) for f in families for s in f.samples]


def test_each_sample_carries_its_replica() -> None:
    merged = samples(merge({"one": STEPS, "two": STEPS.replace("3.0", "4.0")}))
    assert ("steps_total", {"model": "ett", "replica": "one"}, 3.0) in merged
    assert ("steps_total", {"model": "ett", "replica": "two"}, 4.0) in merged


def test_a_family_of_two_replicas_is_announced_once() -> None:
    text = merge({"one": STEPS + SECONDS, "two": STEPS + SECONDS}).decode()
    lines = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert sorted(lines) == ["# TYPE steps_total counter", "# TYPE tick_seconds histogram"]


def test_a_histogram_stays_whole() -> None:
    merged = samples(merge({"one": SECONDS}))
    assert [(name, value) for name, _, value in merged] == [
        ("tick_seconds_bucket", 1.0),
        ("tick_seconds_bucket", 2.0),
        ("tick_seconds_count", 2.0),
        ("tick_seconds_sum", 0.3),
    ]


def test_a_value_with_quotes_and_newlines_survives() -> None:
    text = '# TYPE x gauge\nx{a="b\\"c\\nd\\\\e"} 1.0\n'
    assert samples(merge({"one": text})) == [("x", {"a": 'b"c\nd\\e', "replica": "one"}, 1.0)]


def test_one_name_of_two_types_keeps_the_first() -> None:
    text = merge({"one": "# TYPE x gauge\nx 1.0\n", "two": "# TYPE x counter\nx 2.0\n"})
    assert samples(text) == [("x", {"replica": "one"}, 1.0)]


def test_no_replica_is_an_empty_exposition() -> None:
    assert samples(merge({})) == []


def test_what_is_no_exposition_is_left_out() -> None:
    assert samples(merge({"one": "x{ 1", "two": STEPS}))[0][2] == 3.0
