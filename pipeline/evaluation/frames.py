"""The frames of an evaluation: which they are, and their pictures and masks, decoded once for all targets.

Shapes: h w original size, s frame side.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyp_difom.cache.errors import DataError, UsageError, first_line
from polyp_difom.pipeline.data.frames import Frame, pixel_digest, read_frame, read_image, read_mask
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Gathered, Source, gather, gather_all
from polyp_difom.pipeline.data.splitting import policy_name
from polyp_difom.pipeline.evaluation.scoring import Case
from polyp_difom.pipeline.evaluation.targets import Target
from polyp_difom.pipeline.files import sha256_of
from polyp_difom.pipeline.memory import free_memory
from polyp_difom.pipeline.progress import Advance

PLAIN_SPLIT = {"policy": "auto", "seed": 0, "val_fraction": 0.1}
"""How frames are split for a target that does not say how it was trained."""
MEMORY_SHARE = 0.5
"""Share of free memory that decoded frames may take."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A frame at its own size: image uint8 [h, w, 3], truth bool [h, w], and the digest of its pixels."""

    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    digest: str


class Frames:
    """Frames decoded when they are first asked for.

    Args:
        keep: they stay in memory while there is room, for the next target.
    """

    def __init__(self, keep: bool = False):
        self._room = MEMORY_SHARE * free_memory(torch.device("cpu")) if keep else 0.0
        self._held: dict[Pair, Decoded] = {}
        self._digests: dict[Pair, tuple[str, str]] = {}
        self.fault: DataError | None = None
        """Of a frame that cannot be used, whatever is scored on it."""

    def get(self, pair: Pair) -> Decoded:
        """One frame.

        Raises:
            DataError: see `read_image` and `read_mask`.
        """
        if pair in self._held:
            return self._held[pair]
        with self._noting():
            image = read_image(pair.image)
            found = Decoded(image, read_mask(pair.mask, image.shape[:2]), pixel_digest(image))
        size = found.image.nbytes + found.truth.nbytes
        if size <= self._room:
            self._held[pair], self._room = found, self._room - size
        return found

    def squared(self, pair: Pair, side: int) -> Frame:
        """One squared frame; see `read_frame`."""
        with self._noting():
            return read_frame(pair, side)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.fault = error
            raise

    def digests(self, pair: Pair) -> tuple[str, str]:
        """sha256 of the two files, image and mask."""
        if pair not in self._digests:
            with self._noting():
                self._digests[pair] = _sha256(pair.image), _sha256(pair.mask)
        return self._digests[pair]

    def digest(self, pairs: Sequence[Pair]) -> str:
        """One for all of these frames: their ids and both files' content."""
        rows = sorted((pair.id, *self.digests(pair)) for pair in pairs)
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(
            "a file cannot be read", where=path, got=first_line(error), remedy="check the file and its rights"
        ) from error


def by_set(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Frames by data set, in the order of the sets' names."""
    return {name: [pair for pair in pairs if pair.dataset == name] for name in sorted({pair.dataset for pair in pairs})}


def frames_of(target: Target, sources: tuple[Source, ...], split: str, split_by: str | None, seed: int | None) -> Gathered:
    """The frames to score a target on.

    Raises:
        DataError: masks that a network predicted.
        UsageError: a split that would have to be drawn for data that the target has nothing to do with: a choice of ours.
    """
    made = target.header.get("split", PLAIN_SPLIT)
    if split == "all":
        by_file = split_by is None and _is_file(made["policy"])
        every = {"train", "val", "test"}
        return gather_all(sources) if by_file else gather(sources, every, to_score=True, **_arguments(made, split_by, seed))
    found = gather(sources, {split}, to_score=True, **_splitting(made, split_by, seed))
    if foreign := sorted(found.invented - target.datasets()):
        raise UsageError(
            f"data set {foreign[0]!r} has no {split} split of its own, and {target.name!r} did not learn from it",
            got=found.policy, wanted="all of its frames", remedy="give --split all, or --split-by FILE.csv",
        )  # fmt: skip
    return found


def _splitting(made: dict[str, Any], split_by: str | None, seed: int | None) -> dict[str, Any]:
    """Arguments of `gather`: as typed, else as the model's store was split."""
    if _is_file(made["policy"]) and (split_by is None or policy_name(split_by) != made["policy"]):
        raise UsageError(
            "the model's store was split by another file" if split_by else "the model's store was split by a file",
            where="--split-by", got=policy_name(split_by) if split_by else None, wanted=made["policy"],
            remedy="give the file that the store was split by: --split-by FILE.csv; or --split all",
        )  # fmt: skip
    return _arguments(made, split_by, seed)


def _is_file(policy: object) -> bool:
    return str(policy).startswith("csv:")


def _arguments(made: dict[str, Any], split_by: str | None, seed: int | None) -> dict[str, Any]:
    return {
        "split_by": made["policy"] if split_by is None else split_by,
        "seed": made["seed"] if seed is None else seed,
        "val_fraction": made["val_fraction"],
    }


class Reader:
    """Frames as cases, one at a time.

    Attributes:
        seen: pictures that the target was trained or selected on, in whatever file format, counted by data set and split.
    """

    def __init__(self, target: Target, squared: bool, frames: Frames):
        self.target, self.squared, self.frames = target, squared, frames
        self.known = target.seen()
        self.seen: dict[str, Counter[str]] = defaultdict(Counter)

    def cases(self, pairs: Sequence[Pair], advance: Advance) -> Iterator[Case]:
        """The target's answers for `pairs`, with the truth."""
        for pair in pairs:
            yield self._squared(pair) if self.squared else self._original(pair)
            advance(1)

    def _original(self, pair: Pair) -> Case:
        frame = self.frames.get(pair)
        self._note(pair, frame.digest)
        return Case(pair.id, pair.dataset, self.target.probability(pair, frame.image), frame.truth)

    def _squared(self, pair: Pair) -> Case:
        frame = self.frames.squared(pair, self.target.frame_size)
        self._note(pair, frame.pixel_sha256)
        return Case(pair.id, pair.dataset, self.target.squared_probability(pair, frame.image), frame.mask.astype(bool))

    def _note(self, pair: Pair, digest: str) -> None:
        if digest in self.known:
            self.seen[pair.dataset][self.known[digest]] += 1
