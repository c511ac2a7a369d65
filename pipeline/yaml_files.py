"""YAML files that may be a stranger's: mappings of plain values, without aliases, which can stand for any number of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20
"""Bytes."""


class _Plain(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            where = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, "an alias (*name), which configurations do not need", where)
        return super().compose_node(parent, index)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        OSError: as the file system gives it. ValueError: too large, too deep, no YAML, or no mapping.
    """
    if path.stat().st_size > LARGEST or not path.is_file():
        raise ValueError(f"no file of at most {LARGEST} bytes")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Plain)  # noqa: S506  (derived from the safe loader)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{place}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(loaded, dict):
        raise ValueError("no mapping: lines of `option: value` are wanted")
    return loaded


def line_of(path: Path, name: str) -> int | None:
    """Number of the line on which a mapping that `read_mapping` read sets an option, with dashes or underscores in its name;
    None where it does not. Of several, the last, whose value counts.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"), _Plain)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    lines = [key.start_mark.line + 1 for key, _ in pairs if str(key.value).replace("-", "_") == name]
    return lines[-1] if lines else None
