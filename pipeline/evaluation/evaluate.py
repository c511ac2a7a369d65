"""Score a model, or the maps of any other tool, on data sets in their native layouts, at the frames' original sizes.

Shapes: h w original size, s frame side.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.data.frames import pixel_digest, read_frame, read_image, read_mask
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Gathered, Source, gather
from polyp_difom.pipeline.data.splitting import policy_name
from polyp_difom.pipeline.evaluation.leaks import Leaks, find_leaks
from polyp_difom.pipeline.evaluation.metrics import PairedDifference, SetScores, Summary, paired_difference, score_set
from polyp_difom.pipeline.evaluation.published import PublishedFigure, published
from polyp_difom.pipeline.evaluation.record import EvaluationRecord, rows_of_other
from polyp_difom.pipeline.evaluation.scoring import THRESHOLD, Case, ImageScore, Measures, get_protocol
from polyp_difom.pipeline.evaluation.targets import Target, open_target
from polyp_difom.pipeline.files import write_bytes
from polyp_difom.pipeline.overlays import overlay
from polyp_difom.pipeline.progress import Advance, Progress

PLAIN_SPLIT = {"policy": "auto", "seed": 0, "val_fraction": 0.1}
"""How frames are split for a target that does not say how it was trained."""


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

    Raises:
        RunError: no such target, or a record that is missing or not to be written to.
        DataError: frames or maps that cannot be used. UsageError: an unknown protocol, or a split that does not fit.
    """
    progress = progress or Progress()
    chosen = get_protocol(protocol)
    if exclude_leaks and chosen.group > 1:
        raise UsageError(f"{protocol} cannot leave frames out", where="--exclude-leaks", remedy="score under per-image")
    target = open_target(path, out=out, device=device, trust=trust)
    record, outdated = EvaluationRecord.prepare(target)
    found = _frames_of(target, sources, split, split_by, seed)
    rivals = rows_of_other(against, protocol, split, list(_by_set(found.pairs)), sources) if against else {}
    for line in [found.policy, *target.prepare(found.pairs)]:
        progress.say(line)
    leaks = find_leaks(target, found, train, progress) if exclude_leaks else None
    reader = _Reader(target, chosen.squared)
    scored = _score(reader, protocol, measures, found.pairs, progress)
    for line in [*target.verify(), *(leaks.told() if leaks else [])]:
        progress.say(line)
    differences = {name: paired_difference(scores.rows, rivals[name]) for name, scores in scored.items() if against}
    if outdated:
        progress.say(f"{target.name} has other weights than when it was last evaluated: those figures are removed")
        record.forget()
    without = _write(record, target, found.pairs, split, scored, leaks)
    pictures = [] if chosen.squared else _draw(record, target, found.pairs, split, scored, overlays)
    return Evaluation(
        target, record.path, split, protocol, [scores.summary() for scores in scored.values()],
        [row for scores in scored.values() for row in scores.rows], without, leaks, differences, _published(found),
        dict(reader.seen), found.policy, pictures,
    )  # fmt: skip


def _by_set(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    return {name: [pair for pair in pairs if pair.dataset == name] for name in sorted({pair.dataset for pair in pairs})}


def _published(found: Gathered) -> list[PublishedFigure]:
    """Other models' figures on those sets of which just the published test frames were scored."""
    sets = _by_set(found.pairs).items()
    return [figure for name, group in sets for figure in published(name, [pair.stem for pair in group])]


def _frames_of(target: Target, sources: tuple[Source, ...], split: str, split_by: str | None, seed: int | None) -> Gathered:
    """The frames to score; a split drawn for data that the target has nothing to do with would be a choice of ours."""
    splits = {"train", "val", "test"} if split == "all" else {split}
    found = gather(sources, splits, **_splitting(target.header.get("split", PLAIN_SPLIT), split_by, seed))
    if split != "all" and (foreign := sorted(found.invented - target.datasets())):
        raise UsageError(
            f"data set {foreign[0]!r} has no {split} split of its own, and {target.name} is not known to have learned from it",
            got=found.policy, wanted="all of its frames", remedy="give --split all, or --split-by FILE.csv",
        )  # fmt: skip
    return found


def _splitting(made: dict[str, Any], split_by: str | None, seed: int | None) -> dict[str, Any]:
    """Arguments of `gather`: as typed, else as the model's store was split."""
    if str(made["policy"]).startswith("csv:") and (split_by is None or policy_name(split_by) != made["policy"]):
        raise UsageError(
            "the model's store was split by another file" if split_by else "the model's store was split by a file",
            where="--split-by", got=policy_name(split_by) if split_by else None, wanted=made["policy"],
            remedy="give the file that the store was split by: --split-by FILE.csv",
        )  # fmt: skip
    return {
        "split_by": made["policy"] if split_by is None else split_by,
        "seed": made["seed"] if seed is None else seed,
        "val_fraction": made["val_fraction"],
    }


class _Reader:
    """Frames as cases, one at a time.

    Attributes:
        seen: pictures that the target was trained or selected on, in whatever file format, counted by split.
    """

    def __init__(self, target: Target, squared: bool):
        self.target, self.squared = target, squared
        self.known = target.seen()
        self.seen: Counter[str] = Counter()

    def cases(self, pairs: Sequence[Pair], advance: Advance) -> Iterator[Case]:
        """The target's answers for `pairs`, with the truth."""
        for pair in pairs:
            yield self._squared(pair) if self.squared else self._original(pair)
            advance(1)

    def _original(self, pair: Pair) -> Case:
        image = read_image(pair.image)
        if self.known:
            self._note(pixel_digest(image))
        return Case(pair.id, pair.dataset, self.target.probability(pair, image), read_mask(pair.mask, image.shape[:2]))

    def _squared(self, pair: Pair) -> Case:
        frame = read_frame(pair, self.target.frame_size)
        self._note(frame.pixel_sha256)
        return Case(pair.id, pair.dataset, self.target.squared_probability(pair, frame.image), frame.mask.astype(bool))

    def _note(self, digest: str) -> None:
        if digest in self.known:
            self.seen[self.known[digest]] += 1


def _score(
    reader: _Reader, protocol: str, measures: Measures, pairs: Sequence[Pair], progress: Progress
) -> dict[str, SetScores]:
    """Scores by data set; set by set, because `pooled-6` must not pool frames of two."""
    with progress.task("scoring", len(pairs)) as advance:
        return {
            name: score_set(protocol, name, reader.cases(group, advance), measures) for name, group in _by_set(pairs).items()
        }


def _write(
    record: EvaluationRecord,
    target: Target,
    pairs: Sequence[Pair],
    split: str,
    scored: dict[str, SetScores],
    leaks: Leaks | None,
) -> list[Summary]:
    """Write everything but the pictures; the figures without leaked frames."""
    record.describe(target, pairs)
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
    record: EvaluationRecord, target: Target, pairs: Sequence[Pair], split: str, scored: dict[str, SetScores], count: int
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
            Image.fromarray(_overlay(target, pair, score)).save(encoded, "jpeg", quality=90)
            write_bytes(file, encoded.getvalue())
            written.append(file)
    return written


def _overlay(target: Target, pair: Pair, score: ImageScore) -> NDArray[np.uint8]:
    """The frame with the outlines of truth and prediction, captioned with its Dice."""
    image = read_image(pair.image)
    truth, prediction = read_mask(pair.mask, image.shape[:2]), target.probability(pair, image) >= THRESHOLD
    return overlay(image, truth, prediction, f"{pair.id}: Dice {score.dice:.3f}")
