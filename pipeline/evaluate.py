"""Score a run on data sets in their native layouts, at the frames' original sizes.

Shapes: h w original size, s frame side.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.data.frames import pixel_digest, read_frame, read_image, read_mask
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Gathered, Source, gather
from polyp_difom.pipeline.data.splitting import policy_name
from polyp_difom.pipeline.device import autocast, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.files import write_bytes, write_csv
from polyp_difom.pipeline.metrics import Summary, summarise, write_scores_csv
from polyp_difom.pipeline.overlays import overlay
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint
from polyp_difom.pipeline.scoring import THRESHOLD, Case, ImageScore, get_protocol, score_cases
from polyp_difom.pipeline.students.protocol import build_student, parameter_count


class Predictor:
    """The best checkpoint of a run as a function from pictures to lesion probabilities.

    Args:
        run: a run folder with a checkpoint.
        device, precision: as for training; float32 by default, so that figures do not hang on the machine.
    """

    def __init__(self, run: RunFolder, device: str = "auto", precision: str = "float32"):
        tensors, self.header = read_checkpoint(run.best)
        keep_freed_memory()
        self.device = pick_device(device)
        self.precision, _ = pick_precision(self.device, precision)
        latents = any(name.startswith("latents.") for name in tensors)
        self.student = build_student(self.header["student"], latents)
        self.student.load_state_dict(tensors)
        self.student.to(self.device).to(memory_format=torch.channels_last).eval()
        self.size: int = self.header["frame_size"]
        self.parameters = parameter_count(self.student)

    @torch.no_grad()
    def logits(self, squared: NDArray[np.uint8]) -> torch.Tensor:
        """Float32 logits [1, 1, s, s] of one squared frame, uint8 [3, s, s]."""
        frame = torch.from_numpy(squared).to(self.device)[None].float() / 255
        with autocast(self.device, self.precision):
            return self.student(frame.contiguous(memory_format=torch.channels_last)).float()

    def probability(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Lesion probability [h, w] of a picture, uint8 [h, w, 3]: squared, segmented, logits resized back bilinearly."""
        squared = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR)
        logits = self.logits(np.ascontiguousarray(np.asarray(squared).transpose(2, 0, 1)))
        resized = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
        return resized.sigmoid()[0, 0].cpu().numpy()


@dataclass(frozen=True)
class Evaluation:
    """Figures of one run.

    Attributes:
        summaries: one a data set.
        scores: one a frame (or group of frames, under `pooled-6`).
        seen: how many of the scored frames the run was trained or selected on, by split.
        policy: how the frames were split.
        overlays: pictures written.
    """

    run: Path
    split: str
    summaries: list[Summary]
    scores: list[ImageScore]
    seen: dict[str, int]
    policy: str
    overlays: list[Path]

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows, for `--json`."""
        return {
            "run": str(self.run), "split": self.split, "seen_in_training": self.seen, "policy": self.policy,
            "sets": [asdict(summary) for summary in self.summaries], "overlays": [str(path) for path in self.overlays],
        }  # fmt: skip


def evaluate(
    path: Path,
    sources: tuple[Source, ...],
    *,
    split: str = "test",
    split_by: str | None = None,
    seed: int | None = None,
    protocol: str = "per-image",
    overlays: int = 6,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Score a run's best checkpoint and write the figures into its folder.

    `evaluation/<protocol>/<dataset>-<split>.csv` holds one row a frame, `results.csv` one row a data set,
    `overlays/<dataset>-<split>/` the worst, middle and best frames.

    Args:
        split: "train", "val", "test" or "all".
        split_by, seed: how splits are made; None takes what the run's store was made with.
        overlays: pictures a data set.

    Raises:
        RunError: no such run. DataError: frames that cannot be used. UsageError: an unknown protocol.
    """
    progress = progress or Progress()
    chosen = get_protocol(protocol)
    run = RunFolder.open(path)
    predictor = Predictor(run, device)
    found = _frames_of(run, predictor, sources, split, split_by, seed)
    progress.say(found.policy)
    with progress.task("scoring", len(found.pairs)) as advance:

        def cases(dataset: str) -> Iterator[Case]:
            for pair in (pair for pair in found.pairs if pair.dataset == dataset):
                yield _squared_case(predictor, pair) if chosen.squared else _case(predictor, pair)
                advance(1)

        # set by set: `pooled-6` must not pool frames of two sets
        by_dataset = {name: list(score_cases(protocol, cases(name))) for name in sorted({pair.dataset for pair in found.pairs})}
    scores = [score for rows in by_dataset.values() for score in rows]
    summaries, pictures = [], []
    for dataset, rows in by_dataset.items():
        summaries.append(summarise(rows, protocol, dataset))
        write_scores_csv(scores_folder(run, protocol) / f"{dataset}-{split}.csv", rows)
        if not chosen.squared:
            pictures += _draw(predictor, found.pairs, rows, overlays, path / "overlays" / f"{dataset}-{split}")
    _write_results(path / "results.csv", split, summaries)
    _write_frames(frames_file(run), found.pairs)
    return Evaluation(path, split, summaries, scores, _seen(run, found.pairs), found.policy, pictures)


def _frames_of(
    run: RunFolder, predictor: Predictor, sources: tuple[Source, ...], split: str, split_by: str | None, seed: int | None
) -> Gathered:
    """The frames to score; a split drawn for data that the run has nothing to do with would be a choice of ours."""
    splits = {"train", "val", "test"} if split == "all" else {split}
    found = gather(sources, splits, **_splitting(predictor.header["split"], split_by, seed))
    if split != "all" and (foreign := sorted(found.invented - run.datasets())):
        raise UsageError(
            f"data set {foreign[0]!r} has no {split} split of its own, and the run did not learn from it",
            got=found.policy, wanted="all of its frames", remedy="give --split all, or --split-by FILE.csv",
        )  # fmt: skip
    return found


def _splitting(made: dict[str, Any], split_by: str | None, seed: int | None) -> dict[str, Any]:
    """Arguments of `gather`: as typed, else as the run's store was split."""
    if str(made["policy"]).startswith("csv:") and (split_by is None or policy_name(split_by) != made["policy"]):
        raise UsageError(
            "the run's store was split by another file" if split_by else "the run's store was split by a file",
            where="--split-by", got=policy_name(split_by) if split_by else None, wanted=made["policy"],
            remedy="give the file that the store was split by: --split-by FILE.csv",
        )  # fmt: skip
    return {
        "split_by": made["policy"] if split_by is None else split_by,
        "seed": made["seed"] if seed is None else seed,
        "val_fraction": made["val_fraction"],
    }


def scores_folder(run: RunFolder, protocol: str) -> Path:
    """Where a run keeps its per-frame scores under a protocol, one CSV for each data set and split."""
    return run.path / "evaluation" / protocol


def frames_file(run: RunFolder) -> Path:
    """Where a run remembers which files it was scored on."""
    return run.path / "evaluation" / "frames.csv"


def _write_frames(path: Path, pairs: list[Pair]) -> None:
    rows = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
    for pair in pairs:
        rows[pair.id] = {"id": pair.id, "image": str(pair.image.absolute()), "mask": str(pair.mask.absolute())}
    write_csv(path, ("id", "image", "mask"), list(rows.values()))


def _case(predictor: Predictor, pair: Pair) -> Case:
    image = read_image(pair.image)
    return Case(pair.id, pair.dataset, predictor.probability(image), read_mask(pair.mask, image.shape[:2]))


def _squared_case(predictor: Predictor, pair: Pair) -> Case:
    frame = read_frame(pair, predictor.size)
    return Case(pair.id, pair.dataset, predictor.logits(frame.image).sigmoid()[0, 0].cpu().numpy(), frame.mask.astype(bool))


def _seen(run: RunFolder, pairs: list[Pair]) -> dict[str, int]:
    """Scored pictures that the run was trained or selected on, in whatever file format, counted by split."""
    known = run.seen()
    digests = (pixel_digest(read_image(pair.image)) for pair in pairs)
    return dict(Counter(known[digest] for digest in digests if digest in known))


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


def _draw(predictor: Predictor, pairs: list[Pair], scores: list[ImageScore], count: int, folder: Path) -> list[Path]:
    by_id = {pair.id: pair for pair in pairs}
    shutil.rmtree(folder, ignore_errors=True)  # pictures of an earlier evaluation
    written = []
    for rank, score in enumerate(ends_and_middle(scores, count)):
        pair = by_id[score.id]
        target = folder / f"{rank:02d}-dice{score.dice:.3f}-{pair.stem}.jpg"
        encoded = io.BytesIO()
        Image.fromarray(draw_overlay(predictor, pair, score)).save(encoded, "jpeg", quality=90)
        write_bytes(target, encoded.getvalue())
        written.append(target)
    return written


def draw_overlay(predictor: Predictor, pair: Pair, score: ImageScore) -> NDArray[np.uint8]:
    """The frame with the outlines of truth and prediction, captioned with its Dice."""
    case, image = _case(predictor, pair), read_image(pair.image)
    return overlay(image, case.truth, case.probability >= THRESHOLD, f"{pair.id}: Dice {score.dice:.3f}")


RESULT_COLUMNS = (
    *("dataset", "split", "protocol", "images"),
    *("mdice", "dice_low", "dice_high", "miou", "precision", "recall", "mae"),
)


def _write_results(path: Path, split: str, summaries: list[Summary]) -> None:
    """One row for each data set, split and protocol; a row that is scored again replaces the old one."""
    rows = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {(row["dataset"], row["split"], row["protocol"]): row for row in csv.DictReader(file)}
    for summary in summaries:
        low, high = summary.dice_interval
        figures = {**asdict(summary), "split": split, "dice_low": low, "dice_high": high}
        rows[summary.dataset, split, summary.protocol] = {name: str(figures[name]) for name in RESULT_COLUMNS}
    write_csv(path, RESULT_COLUMNS, list(rows.values()))
