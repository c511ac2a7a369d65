"""Scored frames that are not a test, because the target learned from them or from their twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.sources import Gathered, Source, gather
from polyp_difom.pipeline.data.splitting import SPLITS
from polyp_difom.pipeline.data.twins import Looks, Twin, closest_twins, look
from polyp_difom.pipeline.evaluation.targets import Target
from polyp_difom.pipeline.progress import Advance, Progress


@dataclass(frozen=True)
class Leaks:
    """Leaked frames among the scored ones.

    Attributes:
        twins: each leaked frame (`frame`) with the frame of the training (`other`) that it equals or resembles most.
        compared: how many frames of the training were looked at, by data set.
        unseen: data sets that the target learned from, but whose pictures were not given: their near twins are not found.
    """

    twins: list[Twin]
    compared: dict[str, int]
    unseen: list[str]

    def of(self, dataset: str) -> list[Twin]:
        """Those of one data set."""
        return [twin for twin in self.twins if twin.frame.startswith(f"{dataset}/")]

    def told(self) -> list[str]:
        """What was compared and found, in words."""
        sets = ", ".join(f"{count} of {name}" for name, count in self.compared.items()) or "none"
        same = sum(twin.identical for twin in self.twins)
        lines = [
            f"leaks: compared with {sum(self.compared.values())} frames of the training ({sets}): {same} scored frames are "
            f"identical to one, {len(self.twins) - same} more are near twins"
        ]
        if self.unseen:
            lost = ", ".join(self.unseen)
            lines.append(
                f"leaks: the training's pictures of {lost} were not given, so near twins are not found: give --train DIR"
            )
        return lines


def find_leaks(target: Target, found: Gathered, train: Sequence[Source], progress: Progress) -> Leaks:
    """Scored frames that are identical to, or near twins of, frames that the target learned from or was selected on.

    A run knows its frames by their pixels; their pictures are searched for in the scored data sets (all splits) and in `train`.
    Of any other target, the frames of train and val count, of data sets that bring a split along or that its header names.

    Raises:
        UsageError: nothing to compare with. DataError: a picture that cannot be read.
    """
    known = target.seen()
    drawn_by_us = found.invented - target.datasets()
    taught = [pair for pair in found.others if pair.dataset not in drawn_by_us and (known or pair.split in ("train", "val"))]
    own = [known != {} or (pair.dataset not in drawn_by_us and pair.split in ("train", "val")) for pair in found.pairs]
    further = [pair for source in train for pair in _training_frames(source)]
    with progress.task("looking for twins", len(found.pairs) + len(taught) + len(further)) as advance:

        def read(pairs: Sequence[Pair]) -> Looks:
            return look(_advancing(pairs, advance))

        scored = read(found.pairs)
        references = [scored.only(own), read(taught)]
        if known:
            references = [looks.only([digest in known for digest in looks.digests]) for looks in references]
        references.append(read(further))
    everything = Looks.joined(references)
    if not everything.ids and not known:
        raise UsageError(
            f"nothing is known of what {target.name} learned from", where="--exclude-leaks",
            got="no train or validation frames in the data given", remedy="name the folders that it learned from: --train DIR",
        )  # fmt: skip
    twins = {twin.frame: twin for twin in closest_twins(scored, everything)}
    for name, digest in zip(scored.ids, scored.digests, strict=True):
        if digest in known and not (name in twins and twins[name].identical):
            twins[name] = Twin(name, f"a {known[digest]} frame of the run", 1.0, "identity", True)
    compared = Counter(name.partition("/")[0] for name in everything.ids)
    return Leaks(
        [twins[name] for name in scored.ids if name in twins], dict(compared), sorted(target.datasets() - compared.keys())
    )


def _training_frames(source: Source) -> list[Pair]:
    """Frames of a folder that was trained on: train and val where it brings a split along, else all."""
    found = gather((source,), set(SPLITS))
    return [pair for pair in found.pairs if pair.dataset in found.invented or pair.split != "test"]


def _advancing(pairs: Sequence[Pair], advance: Advance) -> Iterator[Pair]:
    for pair in pairs:
        yield pair
        advance(1)
