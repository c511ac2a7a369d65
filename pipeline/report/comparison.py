"""Evaluated runs and other targets side by side: reads what `evaluate` left in their folders and turns it into report pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import PolypDifomError, RunError
from polyp_difom.pipeline.bench.complexity import complexity
from polyp_difom.pipeline.data.frames import read_image, read_mask
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.evaluation.agreement import Agreement, read_agreement
from polyp_difom.pipeline.evaluation.evaluate import ends_and_middle
from polyp_difom.pipeline.evaluation.paired import PairedDifference, paired_difference
from polyp_difom.pipeline.evaluation.published import PublishedFigure, published
from polyp_difom.pipeline.evaluation.record import EvaluationRecord
from polyp_difom.pipeline.evaluation.scoring import THRESHOLD, ImageScore, get_protocol
from polyp_difom.pipeline.evaluation.targets import Target
from polyp_difom.pipeline.json_files import read_json
from polyp_difom.pipeline.objectives.weighted import is_shuffled, needs_of
from polyp_difom.pipeline.overlays import contact_sheet, overlay
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.reads import conflicting, kept
from polyp_difom.pipeline.report.origins import cautions, facts
from polyp_difom.pipeline.report.values import CONTROL, GalleryItem, RunReport, Timing
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.students.encoder_weights import digest_of
from polyp_difom.pipeline.students.protocol import build_student

SLOWEST = 1e9
"""Milliseconds of one frame that no device takes."""
PICTURES = 6
"""Frames shown for each data set: worst, middle and best."""

RECIPE = (
    *("student", "latents", "pretrained", "encoder_weights", "seed", "epochs", "batch_size", "learning_rate", "weight_decay"),
    *("affine", "views", "optimizer", "schedule", "clip", "ema", "patience", "flips", "colour", "loss", "precision"),
    "frame_size",
)
"""What a control must share with the run that it is the control of, beside the frames."""

_TEACHING = ("objective", "teachers", "scales", "channels", "distill_weight", "weight_schedule", "drop_teachers", "auto")
"""What shapes a taught run beyond its control's recipe."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """One record with what was read of it."""

    record: EvaluationRecord
    about: dict[str, Any]
    scores: dict[str, list[ImageScore]]

    @property
    def header(self) -> dict[str, Any]:
        """As recorded; older runs have latents where their objective reads them, a file of encoder weights is its digest."""
        held = self.about["header"]
        if held.get("encoder_weights"):
            held = {**held, "encoder_weights": digest_of(held["encoder_weights"])}
        return {"latents": needs_of(held["objective"]).latents, **held} if held.get("objective") else held

    @property
    def objective(self) -> str | None:
        return self.header.get("objective")


def compare(paths: list[Path], protocol: str = "per-image", progress: Progress | None = None) -> list[RunReport]:
    """Reports of evaluated targets; a taught one is set against the control (objective `none`) of its own recipe, and against
    the run of that recipe and teaching that learned from the wrong frames' maps (`shuffled`).

    Args:
        paths: run folders, or folders that `evaluate -o` made.

    Raises:
        RunError: a target that was not evaluated under this protocol, or one given twice.
        DataError: targets that were scored on different frames of one set. UsageError: no such protocol.
    """
    progress = progress or Progress()
    get_protocol(protocol)
    entries = []
    for record in map(EvaluationRecord.open, paths):
        entries.append(_Entry(record, record.about(), record.scores(protocol)))
    names = _names([entry.record for entry in entries])
    controls = [_control_of(entry, entries, progress) for entry in entries]
    gains = [_gains(entry, rival) for entry, rival in zip(entries, controls, strict=True)]  # refuses before pictures are drawn
    wrong = [_shuffled_of(entry, entries) for entry in entries]
    over = [_gains(entry, rival) for entry, rival in zip(entries, wrong, strict=True)]
    alone = all(entry.objective == CONTROL for entry in entries)
    drawn = [alone or entry.objective != CONTROL or entry in controls for entry in entries]
    targets = [_opened(entry, progress) if wanted else None for entry, wanted in zip(entries, drawn, strict=True)]
    reports = []
    for number, (entry, rival) in enumerate(zip(entries, controls, strict=True)):
        pictures: list[GalleryItem] = []
        if alone or entry.objective != CONTROL:
            pictures = _gallery(
                entry, targets[number], rival, None if rival is None else targets[entries.index(rival)], progress
            )
        reports.append(
            replace(
                _report(entry, names[number], protocol, entries),
                differences=gains[number],
                gallery=pictures,
                control=None if rival is None else names[entries.index(rival)],
                over_shuffled=over[number],
                shuffled=None if (other := wrong[number]) is None else other.objective,
            )
        )
    return reports


def _report(entry: _Entry, name: str, protocol: str, entries: list[_Entry]) -> RunReport:
    """What the record tells by itself; of what was read, what others read differently under the same name."""
    header, record = entry.header, entry.record
    read = {part for other in entries if other.header for part in conflicting(header, other.header)}
    is_run = entry.about["kind"] == "run" and record.home == record.path
    return RunReport(
        name=name,
        kind=entry.about["kind"],
        recipe={key: _value(header, key) for key in (*RECIPE, *_TEACHING, *sorted(read)) if key != "seed"}
        if header
        else {"target": name},
        student=header.get("student"),
        objective=entry.objective,
        teachers=tuple(header.get("teachers") or ()),
        seed=header.get("seed"),
        epochs=header.get("epochs"),
        parameters=entry.about["parameters"],
        macs=_macs(header),
        timing=_timing(record.path, header.get("frame_size")),
        summaries=[replace(summary, dataset=label) for label, summary in record.summaries(protocol).items()],
        without_leaks=record.without_leaks(protocol),
        dice={label: [row.dice for row in rows] for label, rows in entry.scores.items()},
        rivals={label: _published(rows) for label, rows in entry.scores.items()},
        curve=RunFolder(record.path).history() if is_run else [],
        agreement=_agreement(record.path, entry.about["sha256"]) if is_run else None,
        facts=facts(record.path if is_run else None, entry.about),
        cautions=cautions(header),
    )


def _agreement(folder: Path, sha256: str | None) -> Agreement | None:
    """What `agree` left in a run folder, if it is of these weights."""
    found = read_agreement(RunFolder(folder).agreement)
    return found if found and found.sha256 == sha256 else None


def _published(rows: list[ImageScore]) -> list[PublishedFigure]:
    dataset = rows[0].dataset
    return published(dataset, [row.id.removeprefix(f"{dataset}/") for row in rows])


def _names(records: list[EvaluationRecord]) -> list[str]:
    """What the page calls each target: its own name, or its path where two share one.

    Raises:
        RunError: a folder given twice.
    """
    places = [record.path.resolve() for record in records]
    if twice := [record for number, record in enumerate(records) if places[number] in places[:number]]:
        raise RunError("given twice", where=twice[0].path, remedy="name each folder once")
    names = [record.name for record in records]
    return [str(record.path) if names.count(name) > 1 else name for record, name in zip(records, names, strict=True)]


def _control_of(entry: _Entry, entries: list[_Entry], progress: Progress) -> _Entry | None:
    """The control with just this recipe; says what differs where only another one is there."""
    if entry.objective in (None, CONTROL):
        return None
    mine = entry.header
    differing = {
        number: [*(key for key in RECIPE if other.header.get(key) != mine.get(key)), *conflicting(mine, other.header)]
        for number, other in enumerate(entries)
        if other.objective == CONTROL
    }
    if not differing:
        return None
    closest = min(differing, key=lambda number: len(differing[number]))
    if not differing[closest]:
        return entries[closest]
    theirs = entries[closest].header
    told = ", ".join(f"{key} {_value(theirs, key)} instead of {_value(mine, key)}" for key in differing[closest])
    progress.say(f"no control for {entry.record.name} ({entry.objective}, seed {mine.get('seed')}): the closest has {told}")
    return None


def _shuffled_of(entry: _Entry, entries: list[_Entry]) -> _Entry | None:
    """The run taught alike, seed and all, but with the wrong frames' maps."""
    alike = [key for key in (*RECIPE, *_TEACHING) if key not in ("objective", "auto")]
    mine = entry.header
    for other in entries:
        taught = entry.objective and other.objective and is_shuffled(other.objective, entry.objective)
        same = not conflicting(mine, other.header) and all(other.header.get(key) == mine.get(key) for key in alike)
        if taught and same:
            return other
    return None


def _value(header: Mapping[str, Any], key: str) -> Any:
    """Of a setting, or of a part of the store."""
    return header.get(key, kept(header).get(key))


def _gains(entry: _Entry, rival: _Entry | None) -> dict[str, PairedDifference]:
    """Paired differences on the test sets that both were scored on."""
    shared = [] if rival is None else [label for label in entry.scores if label in rival.scores]
    return {label: paired_difference(entry.scores[label], rival.scores[label]) for label in shared if rival is not None}


def _macs(header: Mapping[str, Any]) -> int | None:
    """Of one frame at the network's own side; None where the header does not name the student."""
    if not {"student", "objective", "frame_size"} <= header.keys():
        return None
    student = build_student(header["student"], header["latents"])
    return complexity(student, header["frame_size"]).macs


def _timing(folder: Path, side: int | None) -> Timing | None:
    """What `bench student` measured of a run at its own side, eager and one frame at a time; None where it did not.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / "bench.json"
    if not path.is_file():
        return None
    try:
        measured = read_json(path)
        if measured["size"] != side:
            return None
        rows = [row["median_ms"] for row in measured["rows"] if (row["runtime"], row["batch"]) == ("eager", 1)]
        if not all(0 < row < SLOWEST for row in rows):
            raise ValueError(f"{rows[0]} ms a frame")
        return Timing(float(rows[0]), f"{measured['device']}, {measured['threads']} threads") if rows else None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the measured latency cannot be read", where=path, got=repr(error), remedy=f"polyp-difom bench student {folder}"
        ) from error


def _opened(entry: _Entry, progress: Progress) -> Target | None:
    """What was scored, to draw its outlines; None, and why, where it is gone or has changed."""
    if str(entry.record.home).startswith("hf:"):
        progress.say(f"no pictures of {entry.record.name}: it lies on the hub, to which a page opens no connection")
        return None
    try:
        target = entry.record.target()
        if target.digest() == entry.about["sha256"]:
            return target
        reason = "its weights have changed since it was evaluated"
    except PolypDifomError as error:
        reason = error.what
    progress.say(f"no pictures of {entry.record.name}: {reason}")
    return None


def _gallery(
    entry: _Entry, target: Target | None, rival: _Entry | None, control: Target | None, progress: Progress
) -> list[GalleryItem]:
    """The worst, middle and best frames of every test set, the control's outlines to the right of the target's."""
    known, items = entry.record.frames(), []
    for label, rows in entry.scores.items() if target else ():
        theirs = {row.id: row.dice for row in rival.scores.get(label, [])} if rival and control else {}
        for score in ends_and_middle([row for row in rows if row.id in known], PICTURES):
            frame = known[score.id]
            if not frame.is_unchanged():
                progress.say(f"no picture of {score.id}: its files are gone or changed since {entry.record.path} was evaluated")
                continue
            beside = f" (left); control {theirs[score.id]:.3f} (right)" if score.id in theirs else ""
            models = [model for model in (target, control if beside else None) if model is not None]
            picture = _side_by_side(Pair(score.id, frame.image, frame.mask, score.dataset), models)
            items.append(GalleryItem(f"{score.id}: Dice {score.dice:.3f}{beside}", picture))
    return items


def _side_by_side(pair: Pair, models: list[Target]) -> NDArray[np.uint8]:
    frame = read_image(pair.image)
    truth = read_mask(pair.mask, frame.shape[:2])
    drawn = [overlay(frame, truth, model.probability(pair, frame) >= THRESHOLD) for model in models]
    return contact_sheet(drawn, columns=len(drawn))
