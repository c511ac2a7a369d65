"""Frames and masks on disk: which files count, and which mask belongs to which frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from polyp_difom.cache.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
CLUTTER = (".", "__MACOSX")  # hidden files, and what one archiver leaves behind


@dataclass(frozen=True)
class Pair:
    """One frame and its mask on disk.

    Attributes:
        id: "<dataset>/<stem>", the key of the frame everywhere.
        dataset: name of the data set, lower case.
        split: "train", "val" or "test"; None where the layout leaves it open.
        predicted: the mask is a network's, so the frame is for training alone, whatever the split of the others.
    """

    id: str
    image: Path
    mask: Path
    dataset: str
    split: str | None = None
    predicted: bool = False

    @property
    def stem(self) -> str:
        """The id without its data set."""
        return self.id.removeprefix(f"{self.dataset}/")


def visible(folder: Path) -> list[Path]:
    """What `folder` holds, without hidden entries, in natural order; DataError where it may not be listed."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(CLUTTER)]
    except OSError as error:
        raise DataError("cannot list the folder", where=folder, got=error.strerror, remedy="check its permissions") from error
    return sorted(found, key=lambda path: (natural_key(path.name), path.name))


def folders(folder: Path) -> list[Path]:
    """Sub-folders of `folder`, in natural order."""
    return [path for path in visible(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Image files directly in `folder`, a dangling link included: it must fail when it is read, not vanish."""
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]


def natural_key(name: str) -> list[str | int]:
    """Sort key under which frame 2 comes before frame 10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def printable(path: Path | str) -> str:
    """A path as text that any file and terminal takes: control characters become `_`, undecodable bytes `?`."""
    text = str(path).encode("utf-8", "replace").decode()
    return "".join(character if character.isprintable() else "_" for character in text)


def first_names(names: Iterable[str], count: int = 5) -> str:
    """How many names there are, and the first few of them."""
    known = sorted(map(printable, names), key=lambda name: (natural_key(name), name))
    return f"{len(known)}: {', '.join(known[:count])}{', ...' if len(known) > count else ''}"


def _by_stem(files: list[Path], stem_of: Callable[[Path], str], where: Path) -> dict[str, Path]:
    """Files by stem; DataError where two files share one."""
    counts = Counter(stem_of(path) for path in files)
    twice = [path.name for path in files if counts[stem_of(path)] > 1]
    if twice:
        raise DataError(
            "two files share one stem",
            where=where,
            got=first_names(twice),
            wanted="one file a stem",
            remedy="remove or rename one",
        )
    return {stem_of(path): path for path in files}


def require_fit_names(dataset: str, files: list[Path], where: Path) -> None:
    """Ids go to terminals, tables and pages: DataError for control characters, and where a spreadsheet would see a formula."""
    if unfit := [name for name in (dataset, *(path.name for path in files)) if not name.isprintable()]:
        raise DataError(
            "names with control characters or of no known encoding", where=printable(where), got=first_names(map(ascii, unfit)),
            remedy="rename them",
        )  # fmt: skip
    if dataset.startswith(("=", "+", "-", "@")):
        raise DataError(
            "the data set's name begins like a formula of a spreadsheet", where=where, got=dataset, remedy="rename the folder"
        )


def pair_by_stem(
    images: list[Path],
    masks: list[Path],
    *,
    where: Path,
    dataset: str,
    split: str | None = None,
    image_stem: Callable[[Path], str] = lambda path: path.stem,
    mask_stem: Callable[[Path], str] = lambda path: path.stem,
) -> list[Pair]:
    """Pairs by equal stem; DataError for no files at all, a frame without a mask, a mask without a frame, a stem met twice,
    or a name that is not fit for an id.
    """
    if not images and not masks:
        raise DataError(
            "no images",
            where=where,
            got="no file with an image suffix",
            wanted=f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))}",
            remedy="name the folder that holds images and masks; polyp-difom data check FOLDER reads it for a trial",
        )
    require_fit_names(dataset, [*images, *masks], where)
    frames, labels = _by_stem(images, image_stem, where), _by_stem(masks, mask_stem, where)
    for what, wanted, lonely in (
        ("image without a mask", "a mask of the same stem", [frames[stem] for stem in sorted(frames.keys() - labels.keys())]),
        (
            "mask without an image",
            "an image of the same stem",
            [labels[stem] for stem in sorted(labels.keys() - frames.keys())],
        ),
    ):
        if lonely:
            names = first_names(path.name for path in lonely)
            raise DataError(
                what, where=lonely[0].parent, got=names, wanted=wanted, remedy="add the partners, or move these away"
            )
    return [Pair(f"{dataset}/{stem}", frames[stem], labels[stem], dataset, split) for stem in frames]
