"""Which frame trains, which selects, which tests: published stem lists, the layout's own trees, a file, or a seeded hash."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.pairing import Pair, first_names

SPLITS = ("train", "val", "test")
POLICIES = ("auto", "pranet", "seeded")
LISTED = ("kvasir-seg", "cvc-clinicdb")  # data sets whose stems PraNet's split lists


def assign_splits(
    pairs: Sequence[Pair],
    policy: str = "auto",
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    partial: bool = False,
) -> tuple[list[Pair], str]:
    """Gives every pair its split, and says in one sentence what was chosen and why.

    Each data set is split by itself; one with predicted masks is train whatever the policy. Validation is carved out of train,
    never out of test, unless the split names it already.

    Args:
        pairs: of one or more data sets, ids unique.
        policy: "auto" keeps what the layout fixes, takes PraNet's lists where they apply and "seeded" elsewhere; "pranet" wants
            the lists; "seeded" ranks ids by a hash and ignores the layout's own split; anything else is the path of a CSV
            `stem,split`.
        val_fraction: share of train that becomes val, at least one frame; 0 for none.
        test_fraction: share of a data set that becomes test under "seeded", at least one frame; 0 for none.
        seed: of the hash.
        partial: the pairs may be fewer than a CSV has rows for; validation that was carved out of all of them is not told then.

    Raises:
        DataError: stems and lists disagree, or nothing would be left to train on.
        UsageError: unknown policy, or a fraction outside 0..1.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise UsageError("not a share of the frames", where=name, got=fraction, wanted="at least 0 and below 1")
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if not pair.predicted:
            groups[pair.dataset if policy in POLICIES else policy].append(pair)
    table = {pair.id: "train" for pair in pairs if pair.predicted}
    reasons = [f"{name}: to train on, its masks are predicted" for name in sorted({p.dataset for p in pairs if p.predicted})]
    for name, group in groups.items():
        if policy in POLICIES:
            (chosen, reason), further = _by_policy(group, policy, test_fraction, seed), 0
        else:
            (chosen, further), reason = _by_csv(group, policy, partial), "as this file says"
        if "val" not in chosen.values() and not further:
            train = [key for key, split in chosen.items() if split == "train"]
            chosen |= dict.fromkeys(_carve(train, val_fraction, seed, f"{name}: validation"), "val")
        table |= chosen
        reasons.append(f"{name}: {reason}")
    counts = Counter(table.values())
    numbers = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    return [replace(pair, split=table[pair.id]) for pair in pairs], f"split {numbers}: {'; '.join(reasons)}"


def select(pairs: Sequence[Pair], splits: set[str], limit: int | None = None) -> list[Pair]:
    """The pairs of `splits`, in their order; a limit keeps the proportion of the splits, at least one frame of each.

    Raises:
        DataError: no frames are left, or none to train on though train was asked for.
        UsageError: a limit too small for one frame of each split.
    """
    if limit is not None and limit < 1:
        raise UsageError("the limit leaves nothing", where="--limit", got=limit, wanted="at least 1")
    kept = [pair for pair in pairs if pair.split in splits]
    counts = Counter(str(pair.split) for pair in kept)
    if not kept or ("train" in splits and not counts["train"]):
        found = Counter(str(pair.split) for pair in pairs)
        raise DataError(
            "no frames to train on" if kept else "no frames in these splits",
            got=", ".join(f"{number} {split}" for split, number in found.items()) or "no frames",
            wanted=f"frames in: {', '.join(sorted(splits))}",
            remedy="choose other splits, or add a data set that has them",
        )
    if limit is None or limit >= len(kept):
        return kept
    quota = _quotas(counts, limit)
    chosen = {
        name
        for split, number in quota.items()
        for name in ranked((pair.id for pair in kept if pair.split == split), seed=0)[:number]
    }
    return [pair for pair in kept if pair.id in chosen]


def merge(groups: Iterable[Iterable[Pair]]) -> list[Pair]:
    """Several data sets as one list.

    Raises:
        DataError: two pairs share an id.
    """
    merged = [pair for group in groups for pair in group]
    counts = Counter(pair.id for pair in merged)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        remedy = "name each folder once, and give folders of one name different ones"
        raise DataError("two data sets share frame ids", got=first_names(twice), wanted="unique ids", remedy=remedy)
    return merged


def _by_policy(group: list[Pair], policy: str, test_fraction: float, seed: int) -> tuple[dict[str, str], str]:
    """Split of every id of one data set, before validation is carved, and the reason."""
    dataset = group[0].dataset
    fixed = {pair.id: pair.split for pair in group if pair.split is not None}
    if policy == "seeded":
        return _seeded(group, test_fraction, seed), f"seeded split (seed {seed}) as asked"
    if len(fixed) == len(group):
        return fixed, "fixed by the data set's layout"
    listed = _pranet_lists(dataset) if dataset in LISTED else {}
    if policy == "pranet" and not listed:
        raise DataError(
            "PraNet's split does not list this data set",
            where=dataset,
            wanted=" or ".join(LISTED),
            remedy="choose the seeded split or a CSV",
        )
    unknown = [pair.stem for pair in group if pair.stem not in listed]
    if policy == "auto" and len(unknown) == len(group):
        return _seeded(group, test_fraction, seed), f"seeded split (seed {seed}) because no published split lists its frames"
    if unknown:
        raise DataError(
            "some frames are not in PraNet's split",
            where=dataset,
            got=first_names(unknown),
            wanted=f"the {len(listed)} published stems",
            remedy="choose explicitly: the seeded split, or a CSV with the columns stem,split",
        )
    why = "as asked" if policy == "pranet" else "because all its stems are in the published lists"
    return {pair.id: listed[pair.stem] for pair in group}, f"PraNet's split {why}"


def policy_name(policy: str) -> str:
    """A policy as stores keep it: its own name, or "csv:" and the sha256 of a file, so that its path does not count.

    Raises:
        DataError: the file cannot be read.
    """
    if policy in POLICIES:
        return policy
    try:
        return f"csv:{hashlib.sha256(Path(policy).read_bytes()).hexdigest()}"
    except OSError as error:
        raise DataError(
            "the split file cannot be read", where=policy, got=error.strerror, wanted=", ".join(POLICIES)
        ) from error


def published_test(dataset: str) -> frozenset[str]:
    """Stems of PraNet's test frames of a data set; empty where they are not listed here."""
    listed = _pranet_lists(dataset) if dataset in LISTED else {}
    return frozenset(stem for stem, split in listed.items() if split == "test")


def has_own_split(group: Sequence[Pair]) -> bool:
    """Whether a data set brings its split along: fixed by its layout, or published for just these stems."""
    listed = _pranet_lists(group[0].dataset) if group[0].dataset in LISTED else {}
    return all(pair.split is not None or pair.stem in listed for pair in group)


def _seeded(group: list[Pair], test_fraction: float, seed: int) -> dict[str, str]:
    """Train or test for every id of one data set, by hash rank."""
    ids = [pair.id for pair in group]
    test = set(_carve(ids, test_fraction, seed, f"{group[0].dataset}: test"))
    return {name: "test" if name in test else "train" for name in ids}


def _pranet_lists(dataset: str) -> dict[str, str]:
    """Split by stem, from the lists that ship with the package."""
    folder = files("polyp_difom.pipeline.data") / "splits"
    return {
        stem: split
        for split in ("train", "test")
        for stem in (folder / f"{dataset}_{split}.txt").read_text(encoding="utf-8").split()
    }


def _by_csv(pairs: list[Pair], policy: str, partial: bool) -> tuple[dict[str, str], int]:
    """Split of every id, from a file with the columns stem and split, and how many further rows it has, if it may.

    The fractions have no say in it.
    """
    path = Path(policy).expanduser()
    if not path.is_file():
        raise UsageError(
            "no such split", where="--split-by", got=policy, wanted=f"one of: {', '.join(POLICIES)}, or an existing CSV file",
            remedy="give --split-by auto, or a CSV with the columns stem,split",
        )  # fmt: skip
    rows = _csv_rows(path)
    stems = [pair.stem for pair in pairs]
    missing, further = set(stems) - rows.keys(), rows.keys() - set(stems)
    shared = [stem for stem, count in Counter(stems).items() if count > 1]
    for what, names, remedy in (
        ("frames without a row in the split file", missing, "add a row for each"),
        (
            "rows of the split file without a frame",
            () if partial else further,
            "remove them, or point at the folder that holds these frames",
        ),
        ("several data sets share stems of the split file", shared, "split one data set at a time"),
    ):
        if names:
            raise DataError(what, where=path, got=first_names(names), wanted="one row for each frame", remedy=remedy)
    return {pair.id: rows[pair.stem] for pair in pairs}, len(further)


def _csv_rows(path: Path) -> dict[str, str]:
    """Split by stem; DataError for other columns, unknown splits and doubled stems."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if sorted(reader.fieldnames or []) != ["split", "stem"]:
                raise DataError("wrong columns in the split file", where=path, got=reader.fieldnames, wanted="stem,split")
            rows = [(row["stem"], row["split"] if None not in row else "too many cells") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("cannot read the split file", where=path, got=str(error), wanted="a CSV in UTF-8") from error
    strange = [f"{stem},{split}" for stem, split in rows if split not in SPLITS]
    if strange:
        raise DataError(
            "unknown splits in the split file", where=path, got=first_names(strange), wanted=f"one of: {', '.join(SPLITS)}"
        )
    twice = [stem for stem, count in Counter(stem for stem, _ in rows).items() if count > 1]
    if twice:
        raise DataError(
            "stems met twice in the split file", where=path, got=first_names(twice), wanted="one row for each frame"
        )
    return dict(rows)


def ranked(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in the order of a seeded hash: adding frames moves few others."""
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def _carve(ids: list[str], fraction: float, seed: int, what: str) -> list[str]:
    """The first `fraction` of the ids by hash rank, at least one; DataError where none would be left."""
    if not ids or fraction == 0:
        return []
    count = max(1, round(len(ids) * fraction))
    if count >= len(ids):
        raise DataError("too few frames to split", where=what, got=len(ids), wanted=f"more than {count}", remedy="add frames")
    return ranked(ids, seed)[:count]


def _quotas(counts: Counter[str], limit: int) -> dict[str, int]:
    """Frames per split under a limit: every split its share, at least one; the rest to train, or else to the largest."""
    main = "train" if "train" in counts else max(counts, key=lambda split: counts[split])
    quota = {split: max(1, round(limit * number / counts.total())) for split, number in counts.items() if split != main}
    rest = limit - sum(quota.values())
    if rest < 1:
        raise UsageError(
            "the limit leaves nothing", where="--limit", got=limit, wanted=f"at least {len(quota) + 1}, one frame a split"
        )
    return {**quota, main: rest}
