"""Score a model, or the maps of any other tool, on data sets in their native layouts, at the frames' original sizes.

Shapes: h w original size, s frame side.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Gathered, Source
from polyp_difom.pipeline.evaluation.done import Done, Job
from polyp_difom.pipeline.evaluation.frames import Decoded, Frames, Reader, by_set, frames_of
from polyp_difom.pipeline.evaluation.leaks import Leaks, find_leaks
from polyp_difom.pipeline.evaluation.metrics import SetScores, Summary, score_set
from polyp_difom.pipeline.evaluation.paired import PairedDifference, paired_difference
from polyp_difom.pipeline.evaluation.published import PublishedFigure, published
from polyp_difom.pipeline.evaluation.record import EvaluationRecord, rows_of_other
from polyp_difom.pipeline.evaluation.scoring import THRESHOLD, ImageScore, Measures, get_protocol
from polyp_difom.pipeline.evaluation.targets import Target, open_target
from polyp_difom.pipeline.files import write_bytes
from polyp_difom.pipeline.overlays import overlay
from polyp_difom.pipeline.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """Figures of one target.

    Attributes:
        record: folder that holds them.
        summaries: one a data set.
        scores: one a frame (or group of frames, under `pooled-6`).
        without_leaks: figures without leaked frames, of those data sets that have such frames.
        leaks: what was compared and found; None where it was not asked for.
        differences: Dice minus another record's, by data set; {} where it was not asked for.
        published: figures of other models on the same test sets, under their own protocol.
        seen: how many of the scored frames the target was trained or selected on, by split.
        policy: how the frames were split.
        overlays: pictures written.
        kept: nothing was scored, because the record held just these figures.
    """

    target: Target
    record: Path
    split: str
    protocol: str
    summaries: list[Summary]
    scores: list[ImageScore]
    without_leaks: list[Summary]
    leaks: Leaks | None
    differences: dict[str, PairedDifference]
    published: list[PublishedFigure]
    seen: dict[str, int]
    policy: str
    overlays: list[Path]
    kept: bool = False

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows, for `--json`."""
        return {
            "run": str(self.target.path), "kind": self.target.kind, "name": self.target.name, "record": str(self.record),
            "split": self.split, "protocol": self.protocol, "seen_in_training": self.seen, "policy": self.policy,
            "sets": [asdict(summary) for summary in self.summaries],
            "sets_without_leaks": [asdict(summary) for summary in self.without_leaks],
            "leaks": asdict(self.leaks) if self.leaks else None,
            "differences": {name: asdict(difference) for name, difference in self.differences.items()},
            "published": [asdict(figure) for figure in self.published],
            "overlays": [str(path) for path in self.overlays],
        }  # fmt: skip


def evaluate(
    path: Path,
    sources: tuple[Source, ...],
    *,
    split: str = "test",
    split_by: str | None = None,
    seed: int | None = None,
    protocol: str = "per-image",
    measures: Measures = "all",
    overlays: int = 6,
    out: Path | None = None,
    against: Path | None = None,
    exclude_leaks: bool = False,
    train: Sequence[Source] = (),
    device: str = "auto",
    trust: bool = False,
    progress: Progress | None = None,
    frames: Frames | None = None,
    again: bool = True,
) -> Evaluation:
    """Score a target and write the figures into its record, see `evaluations`; nothing is written before all frames are scored.

    Args:
        split: "train", "val", "test" or "all".
        split_by, seed: how splits are made; None takes what the model was trained with.
        measures: "all", or "overlap" for the quick ones.
        overlays: pictures a data set: the worst, middle and best frames.
        out: as in `open_target`.
        against: a record of another target, scored on the same frames under the same protocol.
        exclude_leaks: a second set of figures without frames that the target learned from, see `find_leaks`.
        train: further folders that it learned from.
        trust: as in `load_model`.
        frames: pictures and masks, where they serve several targets.
        again: whether to score where the record holds the figures of the same weights, frames and settings already.

    Raises:
        RunError: no such target, or a record that is missing or not to be written to.
        DataError: frames or maps that cannot be used. UsageError: an unknown protocol, or a split that does not fit.
    """
    progress, frames = progress or Progress(), frames or Frames()
    chosen = get_protocol(protocol)
    if exclude_leaks and chosen.group > 1:
        raise UsageError(f"{protocol} cannot leave frames out", where="--exclude-leaks", remedy="score under per-image")
    target = open_target(path, out=out, device=device, trust=trust)
    record, outdated = EvaluationRecord.prepare(target)
    found = frames_of(target, sources, split, split_by, seed)
    settings = {
        "measures": measures, "overlays": overlays, "exclude_leaks": exclude_leaks, "train": [str(one.root) for one in train],
    }  # fmt: skip
    digests = {name: frames.digest(group) for name, group in by_set(found.pairs).items()}
    job = Job(protocol, split, target.digest(), digests, settings)
    done = None if outdated else job.complete(record.folder)
    if done is not None and not again:
        return _kept(record, target, job, found, done)
    rivals = rows_of_other(against, protocol, split, list(by_set(found.pairs)), sources) if against else {}
    for line in [found.policy, *target.prepare(found.pairs)]:
        progress.say(line)
    leaks = find_leaks(target, found, train, progress) if exclude_leaks else None
    reader = Reader(target, chosen.squared, frames)
    scored = _score(reader, protocol, measures, found.pairs, progress)
    for line in [*target.verify(), *(leaks.told() if leaks else [])]:
        progress.say(line)
    differences = {name: paired_difference(scores.rows, rivals[name]) for name, scores in scored.items() if against}
    if outdated:
        progress.say(f"{target.name} has other weights than when it was last evaluated: those figures are removed")
        record.forget()
    job.begin(record.folder)
    without = _write(record, target, found.pairs, split, scored, leaks, frames)
    pictures = [] if chosen.squared else _draw(record, target, found.pairs, split, scored, overlays, frames)
    job.finish(record.folder, reader.seen)
    return Evaluation(
        target, record.path, split, protocol, [scores.summary() for scores in scored.values()],
        [row for scores in scored.values() for row in scores.rows], without, leaks, differences, _published(found),
        _summed(reader.seen.values()), found.policy, pictures,
    )  # fmt: skip


def _kept(record: EvaluationRecord, target: Target, job: Job, found: Gathered, done: list[Done]) -> Evaluation:
    """What the record holds of a job that is complete; no leaked frames by name, which it does not keep."""
    labels = [f"{name} ({job.split})" for name in job.frames]
    summaries, without = record.summaries(job.protocol), record.without_leaks(job.protocol)
    rows = record.scores(job.protocol)
    folders = [record.path / "overlays" / f"{name}-{job.split}" for name in job.frames]
    return Evaluation(
        target, record.path, job.split, job.protocol, [summaries[label] for label in labels],
        [row for label in labels for row in rows[label]], [without[label] for label in labels if label in without], None, {},
        _published(found), _summed(entry.seen for entry in done), found.policy,
        [path for folder in folders for path in sorted(folder.glob("*.jpg"))], kept=True,
    )  # fmt: skip


def _summed(seen: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(one) for one in seen), Counter()))


def _published(found: Gathered) -> list[PublishedFigure]:
    """Other models' figures on those sets of which just the published test frames were scored."""
    sets = by_set(found.pairs).items()
    return [figure for name, group in sets for figure in published(name, [pair.stem for pair in group])]


def _score(
    reader: Reader, protocol: str, measures: Measures, pairs: Sequence[Pair], progress: Progress
) -> dict[str, SetScores]:
    """Scores by data set; set by set, because `pooled-6` must not pool frames of two."""
    with progress.task("scoring", len(pairs)) as advance:
        return {
            name: score_set(protocol, name, reader.cases(group, advance), measures) for name, group in by_set(pairs).items()
        }


def _write(
    record: EvaluationRecord,
    target: Target,
    pairs: Sequence[Pair],
    split: str,
    scored: dict[str, SetScores],
    leaks: Leaks | None,
    frames: Frames,
) -> list[Summary]:
    """Write everything but the pictures; the figures without leaked frames."""
    record.describe(target, pairs, frames)
    without = []
    for name, scores in scored.items():
        record.write_set(split, scores.summary(), scores.rows)
        leaked = leaks.of(name) if leaks else []
        if 0 < len(leaked) < len(scores.rows):
            without.append(scores.summary({twin.frame for twin in leaked}))
            record.write_without_leaks(split, without[-1], leaked)
    record.write_results()
    return without


def ends_and_middle(scores: list[ImageScore], count: int) -> list[ImageScore]:
    """`count` rows from worst to best: the first third from the bottom, the next around the median, the rest from the top."""
    ranked = sorted(scores, key=lambda score: (score.dice, score.id))
    if count >= len(ranked):
        return ranked
    low = -(-count // 3)
    high = count // 3
    middle = count - low - high
    start = max(low, (len(ranked) - middle) // 2)
    return [*ranked[:low], *ranked[start : start + middle], *ranked[len(ranked) - high :]]


def _draw(
    record: EvaluationRecord,
    target: Target,
    pairs: Sequence[Pair],
    split: str,
    scored: dict[str, SetScores],
    count: int,
    frames: Frames,
) -> list[Path]:
    by_id = {pair.id: pair for pair in pairs}
    written = []
    for name, scores in scored.items():
        folder = record.path / "overlays" / f"{name}-{split}"
        shutil.rmtree(folder, ignore_errors=True)  # pictures of an earlier evaluation
        for rank, score in enumerate(ends_and_middle(scores.rows, count)):
            pair = by_id[score.id]
            file = folder / f"{rank:02d}-dice{score.dice:.3f}-{pair.stem}.jpg"
            encoded = io.BytesIO()
            Image.fromarray(_overlay(target, pair, score, frames.get(pair))).save(encoded, "jpeg", quality=90)
            write_bytes(file, encoded.getvalue())
            written.append(file)
    return written


def _overlay(target: Target, pair: Pair, score: ImageScore, frame: Decoded) -> NDArray[np.uint8]:
    """The frame with the outlines of truth and prediction, captioned with its Dice."""
    prediction = target.probability(pair, frame.image) >= THRESHOLD
    return overlay(frame.image, frame.truth, prediction, f"{pair.id}: Dice {score.dice:.3f}")
