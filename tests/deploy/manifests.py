"""The files of deploy/ that are handed to others, as these would read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
Manifest = dict[str, Any]


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice: YAML's own loader takes the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)) and not any(key.tag.endswith(":merge") for key, _ in node.value):
            raise ValueError(f"a key stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def documents(name: str) -> list[Manifest]:
    """Every document of a file."""
    return list(yaml.load_all((DEPLOY / name).read_text(), _Strict))


def parse(text: str) -> Manifest:
    found: Manifest = yaml.load(text, _Strict)
    return found
