"""The folder that a prediction is written to: never one that holds anything else, never one that holds its own inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.pipeline.files import contents, empty, write_text
from polyp_difom.pipeline.predict.pictures import Source

MARKER = "predict.json"
CONTENTS = frozenset(
    [MARKER, "predictions.csv", "masks", "probabilities", "overlays", "uncertainty", "frames", "coco.json", "label-studio.json"]
)
"""What an output folder may hold; `--overwrite` deletes nothing else."""


def refuse_to_lose(out: Path, overwrite: bool, texts: Sequence[str], sources: Sequence[Source]) -> None:
    """Check that the output folder may be written, before anything costly begins.

    Raises:
        UsageError: inputs lie in the output folder, or it lies in an input folder.
        RunError: the folder holds something, and `overwrite` was not asked for or no prediction wrote it.
    """
    place = out.resolve()
    folders = [Path(text).resolve() for text in texts if Path(text).is_dir()]
    if any(place.is_relative_to(folder) for folder in folders) or any(
        source.path.resolve().is_relative_to(place) for source in sources
    ):
        raise UsageError("outputs and inputs would lie in one folder", where=out, remedy="give another -o, beside the inputs")
    if not out.exists() or (out.is_dir() and not contents(out)):
        return
    held = contents(out) if out.is_dir() else {out.name}
    strangers = sorted(held - CONTENTS)
    if strangers or MARKER not in held:
        raise RunError(
            "will not write among files that no prediction wrote", where=out, got=(strangers or sorted(held))[0],
            wanted="a new or empty folder, or one of an earlier prediction", remedy="give another -o",
        )  # fmt: skip
    if not overwrite and not _is_vain(out, held):
        state = "a prediction already" if "predictions.csv" in held else "a prediction that was not finished"
        raise RunError(f"the output folder holds {state}", where=out, remedy="give another -o, or --overwrite to start afresh")


def _is_vain(out: Path, held: set[str]) -> bool:
    """Whether an earlier prediction left nothing behind but its record: no picture could be read, or it was killed early."""
    table = out / "predictions.csv"
    without_rows = not table.exists() or table.read_text(encoding="utf-8").count("\n") <= 1
    return without_rows and not {"masks", "probabilities", "overlays", "uncertainty"} & held


def start_afresh(out: Path, about: Mapping[str, Any]) -> None:
    """An empty folder with its record; call `refuse_to_lose` first.

    Raises:
        RunError: the folder cannot be made or emptied.
    """
    try:
        empty(out, last=MARKER)
    except OSError as error:
        raise RunError("the folder cannot be emptied", where=out, got=error.strerror, remedy="give another -o") from error
    write_text(out / MARKER, json.dumps(about, indent=2, default=str))
