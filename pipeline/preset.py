"""Recipes by name: small YAML files in presets/, each with some of the settings of `DistillConfig`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.yaml_files import read_mapping

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """All presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset by their names in `DistillConfig`.

    Raises:
        UsageError: no such preset; the message lists close matches.
    """
    names = preset_names()
    if name not in names:
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        raise UsageError(
            f"unknown preset {name!r}", where="--preset", wanted=f"one of: {', '.join(names)}",
            remedy=f"did you mean {' or '.join(close)}?" if close else None,
        )  # fmt: skip
    return {key.replace("-", "_"): value for key, value in read_mapping(FOLDER / f"{name}.yaml").items()}
