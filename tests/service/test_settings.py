from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import SettingError, Settings, direct_port_range, read, settings_table, shown


def test_without_flags_and_variables_every_setting_has_its_default() -> None:
    assert read({}, {}) == Settings()


def test_a_variable_sets_what_no_flag_sets() -> None:
    settings = read({"port": "8001"}, {"CELLSTATE_PORT": "8002", "CELLSTATE_NUM_GPUS": "0.5"})
    assert (settings.port, settings.num_gpus) == (8001, 0.5)


def test_a_flag_that_is_not_given_leaves_the_variable() -> None:
    assert read({"host": None}, {"CELLSTATE_HOST": "0.0.0.0"}).host == "0.0.0.0"


def test_other_variables_are_no_concern_of_ours() -> None:
    assert read({}, {"PORT": "nonsense", "RAY_ADDRESS": "auto"}) == Settings()


def test_a_misspelt_variable_is_an_error() -> None:
    with pytest.raises(SettingError, match="CELLSTATE_PROT: no such setting"):
        read({}, {"CELLSTATE_PROT": "1"})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("port", "http", "port: 'http' is not a whole number"),
        ("port", "0", "port: must be at least 1, not 0"),
        ("port", "80.5", "port: '80.5' is not a whole number"),
        ("ttl_s", "soon", "ttl_s: 'soon' is not a number"),
        ("ttl_s", "inf", "ttl_s: must be finite"),
        ("ttl_s", "nan", "ttl_s: must be finite"),
        ("log_level", "loud", "log_level: 'loud' is not one of debug, info"),
        ("direct_ports", "9-", None),
        ("direct_ports", "8200-8100", "direct_ports: must be a range"),
        ("direct_ports", "ports", "direct_ports: must be a range"),
        ("direct_ports", "1-70000", "direct_ports: must be a range"),
        ("history", "1w", "history: '1w' is not steps"),
        ("history", "ett=7d", "history: it does not say how much of models"),
        ("store", "floppy:", "store: 'floppy:' is not known"),
    ],
)
def test_a_bad_value_is_named_with_its_reason(name: str, text: str, reason: str | None) -> None:
    if reason is None:
        assert list(direct_port_range(read({name: text}, {}))) == [9]
        return
    with pytest.raises(SettingError, match=reason):
        read({name: text}, {})


def test_replicas_need_a_store_that_they_share() -> None:
    with pytest.raises(SettingError, match="replicas"):
        Settings(replicas=2, store="memory:")
    assert Settings(replicas=2).replicas == 2


def test_replicas_are_a_number_or_one_for_each_node() -> None:
    store = {"store": "redis://there:6379/0"}
    assert read({"replicas": "3"}, {}).replicas == 3
    everywhere, marked = (
        read({"replicas": "nodes", **store}, {}),
        read({"replicas": "nodes:gpu", **store}, {}),
    )
    assert (everywhere.on_each_node, everywhere.node_resource) == (True, "")
    assert (marked.on_each_node, marked.node_resource) == (True, "gpu")
    assert (Settings().on_each_node, Settings().node_resource) == (False, "")


@pytest.mark.parametrize(
    ("replicas", "store", "reason"),
    [
        ("node", "redis://there", "replicas: 'node' is not a whole number or nodes"),
        ("nodesx", "redis://there", "replicas: 'nodesx' is not a whole number or nodes"),
        ("0", "redis://there", "replicas: must be at least 1"),
        ("nodes:", "redis://there", "replicas: nodes:RESOURCE names"),
        ("nodes", "sqlite:", "replicas: nodes needs a redis://"),
        ("nodes", "memory:", "replicas: more than 1 needs"),
    ],
)
def test_other_replicas_are_refused(replicas: str, store: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        read({"replicas": replicas, "store": store}, {})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replicas": "4", "max_replicas": "3"}, "max_replicas: must be at least replicas, 4, not 3"),
        ({"max_replicas": "3", "store": "memory:"}, "max_replicas: needs a store"),
        (
            {"max_replicas": "3", "replicas": "nodes", "store": "redis://there"},
            "max_replicas: with replicas: nodes",
        ),
        ({"target_occupancy": "1.5"}, "target_occupancy: is a share, at most 1"),
        ({"scale_in_s": "-1"}, "scale_in_s: must be at least 0"),
    ],
)
def test_scaling_that_makes_no_sense_is_refused(values: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        read(values, {})


def test_a_file_is_no_store_of_a_cluster() -> None:
    with pytest.raises(SettingError, match="redis://"):
        Settings(address="auto")


def test_the_default_store_is_a_file_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().store_address == f"sqlite:{tmp_path / 'cellstate' / 'sessions.db'}"
    assert (tmp_path / "cellstate").stat().st_mode & 0o777 == 0o700
    assert Settings(store="sqlite:x.db").store_address == "sqlite:x.db"


def test_every_setting_has_a_line_of_help_and_a_row_in_the_table() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(shown())
    for f, row in zip(shown(), rows, strict=True):
        assert f.metadata["help"]
        assert row.startswith(f"| `{f.name}` | ")
        assert row.endswith(f" | {f.metadata['help']} |")


def test_what_is_hidden_is_in_no_table_and_can_be_set() -> None:
    assert "unsafe" not in settings_table()
    assert read({}, {"CELLSTATE_UNSAFE": "window"}).unsafe == "window"


def test_the_table_names_no_place_of_the_machine_it_was_made_on() -> None:
    assert str(Settings().models) not in settings_table()
