"""Pictures with the masks that `predict` gave them, as a data set to train on: pseudo-labels (Lee, ICML workshop 2013)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import DataError, first_line
from polyp_difom.pipeline.data.layouts import LAYOUTS, Layout
from polyp_difom.pipeline.data.pairing import IMAGE_SUFFIXES, Pair, first_names, require_fit_names
from polyp_difom.pipeline.json_files import read_json, read_text

PREDICTED = "predicted"
RECORD = "predict.json"
_REMEDY = "run polyp-difom predict MODEL PICTURES -o FOLDER --save mask again"


class Predicted(Layout):
    """What `predict` wrote; every picture is for training, none for validation or test."""

    looks_like = f"{RECORD} + predictions.csv + masks/X.png, which predict --save mask writes; the pictures lie where they lay"

    def matches(self, root: Path) -> bool:
        return (root / RECORD).is_file()

    def pairs(self, root: Path) -> list[Pair]:
        home, rows, dataset = Path(_record(root).get("directory", "")), _rows(root), root.name.lower()
        require_fit_names(dataset, [Path(part) for row in rows for part in row["name"].split("/")], root)
        if unfit := [row["source"] for row in rows if row["frame"] or Path(row["source"]).suffix.lower() not in IMAGE_SUFFIXES]:
            raise DataError(
                "not predicted from picture files", where=root, got=first_names(unfit),
                wanted=f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))}; no films, pages or DICOM files",
                remedy="save them, or their frames, as PNG, and predict those",
            )  # fmt: skip
        found = [
            Pair(f"{dataset}/{row['name'].removeprefix('./')}", home / row["source"],
                 root / "masks" / f"{row['name']}.png", dataset, "train", predicted=True)
            for row in rows
        ]  # fmt: skip
        for what, lost in (
            ("pictures that were predicted are gone", [pair.image for pair in found if not _is_file(pair.image)]),
            ("pictures without a predicted mask", [pair.mask for pair in found if not _is_file(pair.mask)]),
        ):
            if lost:
                raise DataError(what, where=root, got=first_names(map(str, lost)), wanted="all of them", remedy=_REMEDY)
        return found


def labelling_run(root: Path) -> tuple[Path, str] | None:
    """The run folder whose network predicted the masks, and the signature of the store that it was trained on.

    None where it was another kind of model, or has gone.
    """
    record = _record(root)
    run, header = Path(record.get("directory", "")) / str(record.get("model", "")), record.get("header")
    if record.get("kind") == "checkpoint" and run.parent.name == "checkpoints":
        run = run.parent.parent
    elif record.get("kind") != "run":
        return None
    signature = str(header.get("signature")) if isinstance(header, dict) else ""
    return (run, signature) if _is_file(run / "samples.csv") else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, say
        return False


def _record(root: Path) -> dict[str, Any]:
    path = root / RECORD
    try:
        record = read_json(path)
        if not isinstance(record, dict) or not isinstance(record.get("directory", ""), str):
            raise ValueError("not a prediction's record")
        return record
    except (OSError, ValueError) as error:
        raise DataError("the prediction's record cannot be read", where=path, got=first_line(error), remedy=_REMEDY) from error


def _rows(root: Path) -> list[dict[str, str]]:
    path = root / "predictions.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
        if not rows or any(None in row.values() or not {"name", "source", "frame"} <= row.keys() for row in rows):
            raise ValueError("no rows with name, source and frame")
        if outside := [row["name"] for row in rows if ".." in Path(row["name"]).parts or Path(row["name"]).is_absolute()]:
            raise ValueError(f"a mask outside the folder: {outside[0]}")
        return rows
    except (OSError, ValueError, csv.Error) as error:
        raise DataError("the table of predictions cannot be read", where=path, got=first_line(error), remedy=_REMEDY) from error


LAYOUTS.register(PREDICTED)(Predicted())
