"""Folder layouts: where a data set's frames lie, and which mask belongs to which frame; those of public sets in `public_sets`.

Masks are paired by stem, never by position in a listing.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.pairing import Pair, first_names, folders, image_files, natural_key, pair_by_stem, visible
from polyp_difom.pipeline.registry import Registry

IMAGE_FOLDERS = (frozenset({"images", "image", "img", "imgs", "original"}), frozenset({"frames"}))
MASK_FOLDERS = (
    frozenset({"masks", "mask", "labels", "gt", "ground truth", "annotations"}), frozenset({"segmentations", "segmentation"})
)  # fmt: skip
"""Names of folders; the later ones count where there is none of the earlier."""


class Layout(ABC):
    """How one data set is laid out on disk; an instance joins by `LAYOUTS.register(name)(instance)`.

    Attributes:
        looks_like: one line for messages: what such a folder holds.
        generic: True for a layout that only counts where no other matches.
    """

    looks_like: str
    generic: bool = False

    @abstractmethod
    def matches(self, root: Path) -> bool:
        """Whether `root` (an existing folder) looks like this layout."""

    @abstractmethod
    def pairs(self, root: Path) -> list[Pair]:
        """All pairs under `root`, in any order; DataError where a frame or a mask lacks its partner."""


LAYOUTS: Registry[Layout] = Registry("data set layout", "polyp_difom.pipeline.data")


def find_pairs(root: Path | str, layout: str | None = None) -> list[Pair]:
    """All frames of one data set with their masks, in natural stem order (1, 2, 10).

    Args:
        root: the data set's folder.
        layout: a name in `LAYOUTS`; found from the folder's content where None.

    Raises:
        DataError: no such folder, no or several layouts fit, no frames, or a frame, mask or stem that does not pair one to one.
        UsageError: no layout is called `layout`.
    """
    root = _checked_root(root)
    pairs = LAYOUTS.get(layout or detect_layout(root)).pairs(root)
    return sorted(pairs, key=lambda pair: (natural_key(pair.id), pair.id))


def detect_layout(root: Path | str) -> str:
    """Name of the one layout that fits `root`; "folder" only where no specific one does.

    Raises:
        DataError: none or several fit.
    """
    root = _checked_root(root)
    fits = [name for name in LAYOUTS.names() if LAYOUTS.get(name).matches(root)]
    names = [name for name in fits if not LAYOUTS.get(name).generic] or fits
    if len(names) == 1:
        return names[0]
    if names:
        raise DataError(
            "several data set layouts fit this folder",
            where=root,
            got=", ".join(names),
            wanted="exactly one",
            remedy=f"name it: --data {names[0]}={root} (or --layout {names[0]} for data check)",
        )
    if bool(named_folders(root, IMAGE_FOLDERS)) != bool(named_folders(root, MASK_FOLDERS)):
        _folder_pair(root)  # says which of the two is missing
    known = "".join(f"\n    {name}: {LAYOUTS.get(name).looks_like}" for name in LAYOUTS.names())
    raise DataError(
        "no known data set layout fits this folder",
        where=root,
        got=first_names(path.name for path in visible(root)),
        wanted=f"one of:{known}",
        remedy="point at the folder that holds the images and masks folders, or name the layout: --data NAME=FOLDER (or "
        "--layout NAME for data check)",
    )


def _checked_root(root: Path | str) -> Path:
    """`root` as an absolute path to a folder with something in it."""
    path = Path(os.path.abspath(Path(root).expanduser()))  # "." gets a name, a link keeps its own
    if not path.exists():
        raise DataError("no such folder", where=path, wanted="a data set's folder", remedy="check the path")
    if not path.is_dir():
        raise DataError(
            "not a folder", where=path, got="a file", wanted="a data set's folder", remedy="unpack it first if it is an archive"
        )
    if not visible(path):
        raise DataError("the folder is empty", where=path, wanted="images and masks", remedy="download the data set into it")
    return path


def named_folders(root: Path, kinds: Iterable[Collection[str]]) -> list[Path]:
    """Sub-folders of `root` by name, of the first kind of names that is there; case, "-" and "_" do not count."""
    held = {path: re.sub(r"[-_]", " ", path.name.lower()) for path in folders(root)}
    found = ([path for path, name in held.items() if name in names] for names in kinds)
    return next((paths for paths in found if paths), [])


def _listed(kinds: Iterable[Collection[str]]) -> str:
    return ", ".join(name for names in kinds for name in sorted(names))


def _folder_pair(root: Path) -> tuple[Path, Path]:
    """The one image folder and the one mask folder of `root`; DataError where there is none or more than one."""
    found = []
    for kind, kinds in (("image", IMAGE_FOLDERS), ("mask", MASK_FOLDERS)):
        folders = named_folders(root, kinds)
        if len(folders) != 1:
            raise DataError(
                f"{'no' if not folders else 'more than one'} {kind} folder",
                where=root,
                got=first_names(path.name for path in folders or visible(root)),
                wanted=f"one folder called {_listed(kinds)}",
                remedy="rename or move folders until one is left",
            )
        found.append(folders[0])
    return found[0], found[1]


def pair_folder(root: Path, dataset: str, split: str | None = None) -> list[Pair]:
    """Frames and masks of the image folder and the mask folder of `root`; DataError unless there is just one of each."""
    images, masks = _folder_pair(root)
    return pair_by_stem(image_files(images), image_files(masks), where=root, dataset=dataset, split=split)


class Folder(Layout):
    """A folder of images beside a folder of masks, under usual names; the data set is called like the folder around both."""

    looks_like = f"images/X.jpg + masks/X.png; images may lie in {_listed(IMAGE_FOLDERS)}, masks in {_listed(MASK_FOLDERS)}"
    generic = True

    def matches(self, root: Path) -> bool:
        return bool(named_folders(root, IMAGE_FOLDERS) and named_folders(root, MASK_FOLDERS))

    def pairs(self, root: Path) -> list[Pair]:
        # one set of PraNet's release: it tests, whatever its own name
        split = "test" if root.parent.name == "TestDataset" else None
        return pair_folder(root, root.name.lower(), split)


LAYOUTS.register("folder")(Folder())
