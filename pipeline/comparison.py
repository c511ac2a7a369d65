"""Runs side by side: reads what `evaluate` left in their folders and turns it into report pages."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.data.frames import read_image, read_mask
from polyp_difom.pipeline.evaluate import Predictor, ends_and_middle, frames_file, scores_folder
from polyp_difom.pipeline.metrics import paired_difference, read_scores_csv, summarise
from polyp_difom.pipeline.overlays import contact_sheet, overlay
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.report import GalleryItem, RunReport
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.scoring import THRESHOLD, ImageScore

PICTURES = 6
"""Frames shown for each data set: worst, middle and best of the first taught run."""

RECIPE = (
    *("student", "seed", "epochs", "batch_size", "learning_rate", "weight_decay", "affine"),
    *("precision", "frame_size", "signature"),
)
"""What a control must share with the run that it is the control of."""

Scores = dict[str, list[ImageScore]]
"""Rows by "<data set> (<split>)"."""


def compare(paths: list[Path], protocol: str = "per-image", progress: Progress | None = None) -> list[RunReport]:
    """Reports of evaluated runs; a taught one is set against the control (objective `none`) of its own recipe.

    Raises:
        RunError: a run that was not evaluated under this protocol. DataError: runs that were scored on different frames.
    """
    progress = progress or Progress()
    runs = [RunFolder.open(path) for path in paths]
    predictors = [Predictor(run) for run in runs]
    scores = [_scores(run, protocol) for run in runs]
    headers = [predictor.header for predictor in predictors]
    reports = []
    for number, (run, predictor) in enumerate(zip(runs, predictors, strict=True)):
        header = predictor.header
        is_control = header["objective"] == "none"
        rival = None if is_control else _control_of(header, headers, progress)
        reports.append(
            RunReport(
                name=run.path.name,
                student=header["student"],
                objective=header["objective"],
                teachers=tuple(header["teachers"]),
                seed=header["seed"],
                epochs=header["epochs"],
                parameters=predictor.parameters,
                summaries=[
                    replace(summarise(rows, protocol, rows[0].dataset), dataset=label) for label, rows in scores[number].items()
                ],
                differences={
                    label: paired_difference(rows, scores[rival][label])
                    for label, rows in scores[number].items()
                    if rival is not None and label in scores[rival]
                },
                gallery=[]
                if is_control and len(runs) > 1
                else _gallery(run, predictor, scores[number], None if rival is None else predictors[rival], progress),
                curve=run.history(),
            )
        )
    return reports


def _control_of(header: dict[str, Any], headers: list[dict[str, Any]], progress: Progress) -> int | None:
    """Number of the control with just this recipe; says what differs where only another one is there."""
    controls = [number for number, other in enumerate(headers) if other["objective"] == "none"]
    differing = {number: [key for key in RECIPE if headers[number][key] != header[key]] for number in controls}
    exact = [number for number, keys in differing.items() if not keys]
    if not exact and differing:
        closest = min(differing, key=lambda number: len(differing[number]))
        told = ", ".join(f"{key} {headers[closest][key]} instead of {header[key]}" for key in differing[closest])
        progress.say(f"no control for {header['objective']}, seed {header['seed']}: the closest has {told}")
    return exact[0] if exact else None


def _scores(run: RunFolder, protocol: str) -> Scores:
    files = sorted(scores_folder(run, protocol).glob("*.csv"))
    if not files:
        raise RunError(
            f"the run was not evaluated under protocol {protocol!r}",
            where=run.path,
            remedy=f"polyp-difom evaluate {run.path} --data DIR --protocol {protocol}",
        )
    named = [(file, *file.stem.rpartition("-")[::2]) for file in files]
    return {f"{dataset} ({split})": read_scores_csv(file) for file, dataset, split in named}


def _gallery(
    run: RunFolder, predictor: Predictor, scores: Scores, rival: Predictor | None, progress: Progress
) -> list[GalleryItem]:
    with frames_file(run).open(newline="") as file:
        known = {row["id"]: (Path(row["image"]), Path(row["mask"])) for row in csv.DictReader(file)}
    items = []
    for rows in scores.values():
        for score in ends_and_middle([row for row in rows if row.id in known], PICTURES):
            if gone := [path for path in known[score.id] if not path.is_file()]:
                progress.say(f"no picture of {score.id}: {gone[0]} is gone since {run.path} was evaluated")
                continue
            picture = _side_by_side(*known[score.id], predictor, rival)
            beside = " (left) and of the control (right)" if rival else ""
            items.append(GalleryItem(f"{score.id}: Dice {score.dice:.3f}; outlines of {run.path.name}{beside}", picture))
    return items


def _side_by_side(image: Path, mask: Path, predictor: Predictor, rival: Predictor | None) -> NDArray[np.uint8]:
    frame = read_image(image)
    truth = read_mask(mask, frame.shape[:2])
    models = [model for model in (predictor, rival) if model is not None]
    drawn = [overlay(frame, truth, model.probability(frame) >= THRESHOLD) for model in models]
    return contact_sheet(drawn, columns=len(drawn))


def provenance(path: Path) -> dict[str, str]:
    """Where a run's figures come from: store signature, versions, hardware."""
    run = RunFolder.open(path)
    config, environment = run.config(), json.loads((run.path / "env.json").read_text())
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    hardware = ", ".join(environment["gpus"]) or f"{environment['cpus']} CPU cores"
    return {
        "store": config["cache"],
        "store signature": config["signature"],
        "packages": packages,
        "python": environment["python"],
        "platform": environment["platform"],
        "hardware": f"{hardware}, {config['precision']}",
    }
