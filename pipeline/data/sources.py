"""From the folders a user names to one list of split frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.layouts import LAYOUTS, detect_layout, find_pairs
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.splitting import POLICIES, assign_splits, has_own_split, merge, select


@dataclass(frozen=True)
class Source:
    """A data folder and, where the user named it, its layout."""

    root: Path
    layout: str | None = None


@dataclass(frozen=True)
class Gathered:
    """Frames of several sources in one list.

    Attributes:
        pairs: with splits, ids unique.
        layouts: layout of each data set, by data set name.
        policy: one sentence on how the splits were made, and why.
        others: the frames of the sources that lie in other splits.
        invented: data sets that bring no split along, so that a seeded one was drawn.
        predicted: folders of the data sets whose masks are a network's, by data set name.
    """

    pairs: list[Pair]
    layouts: dict[str, str]
    policy: str
    others: list[Pair]
    invented: frozenset[str]
    predicted: dict[str, Path]


def parse_source(text: str) -> Source:
    """`DIR` or `LAYOUT=DIR`; a folder whose name holds "=" is taken as a folder if it exists.

    Raises:
        UsageError: unknown layout (close matches are listed).
    """
    name, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return Source(Path(text))
    LAYOUTS.get(name)
    return Source(Path(folder), name)


def gather(
    sources: tuple[Source, ...],
    splits: set[str],
    *,
    limit: int | None = None,
    split_by: str = "auto",
    val_fraction: float = 0.1,
    seed: int = 0,
    to_score: bool = False,
) -> Gathered:
    """All pairs of the sources that lie in `splits`, at most `limit` in the splits' own proportion.

    Args:
        to_score: masks must be people's, and the pairs may be fewer than a CSV of splits has rows for.

    Raises:
        DataError: a folder that cannot be read as data, ids that occur twice, or nothing left.
    """
    merged, layouts, predicted = _found(sources, to_score)
    by_dataset = {name: [pair for pair in merged if pair.dataset == name] for name in layouts}
    drawn = {name: group for name, group in by_dataset.items() if name not in predicted}
    seeded = {name for name, group in drawn.items() if split_by == "seeded" or not has_own_split(group)}
    pairs, policy = assign_splits(merged, policy=split_by, val_fraction=val_fraction, seed=seed, partial=to_score)
    return Gathered(
        pairs=select(pairs, splits, limit),
        layouts=layouts,
        policy=policy,
        others=[pair for pair in pairs if pair.split not in splits],
        invented=frozenset(seeded) if split_by in POLICIES else frozenset(),
        predicted=predicted,
    )


def gather_all(sources: tuple[Source, ...]) -> Gathered:
    """All pairs of the sources, to be scored, without splits.

    Raises:
        DataError: as `gather`.
    """
    merged, layouts, predicted = _found(sources, to_score=True)
    pairs = [replace(pair, split=None) for pair in merged]
    return Gathered(pairs, layouts, "all frames, whatever their split", [], frozenset(), predicted)


def _found(sources: tuple[Source, ...], to_score: bool) -> tuple[list[Pair], dict[str, str], dict[str, Path]]:
    """Pairs with unique ids, layouts, and folders of predicted masks, both by data set name."""
    groups: list[list[Pair]] = []
    layouts: dict[str, str] = {}
    predicted: dict[str, Path] = {}
    for source in sources:
        layout = source.layout or detect_layout(source.root)
        pairs = find_pairs(source.root, layout)
        names = {pair.dataset for pair in pairs}
        masked = {pair.dataset for pair in pairs if pair.predicted}
        if masked and to_score:
            raise DataError(
                "these masks are a network's own, no truth to score against", where=source.root,
                got="a folder that predict wrote", wanted="masks that people drew",
            )  # fmt: skip
        if shared := names & (predicted.keys() | (layouts.keys() if masked else set())):
            raise DataError(
                "a prediction's folder is called like another data set", where=source.root, got=min(shared),
                wanted="a name of its own, by which its frames are known", remedy="rename the prediction's folder",
            )  # fmt: skip
        layouts |= dict.fromkeys(names, layout)
        predicted |= dict.fromkeys(masked, source.root)
        groups.append(pairs)
    return merge(groups), layouts, predicted
