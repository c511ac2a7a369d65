"""Native folder layouts of the public polyp data sets: where the frames lie, and which mask belongs to which frame.

Masks are paired by stem, never by position in a listing.
"""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path

from PIL import Image

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import read_bytes
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


def _pair_folder(root: Path, dataset: str, split: str | None = None) -> list[Pair]:
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
        return _pair_folder(root, root.name.lower(), split)


class KvasirSeg(Layout):
    """Kvasir-SEG (Jha et al., MMM 2020) as published; its box file is what marks it."""

    looks_like = "images/X.jpg + masks/X.jpg + kavsir_bboxes.json"

    def matches(self, root: Path) -> bool:
        return (root / "kavsir_bboxes.json").is_file()

    def pairs(self, root: Path) -> list[Pair]:
        return _pair_folder(root, "kvasir-seg")


class CvcClinicDb(Layout):
    """CVC-ClinicDB (Bernal et al., 2015); PNG and TIF hold the same frames, so PNG is read where both are there."""

    looks_like = "PNG/Original/N.png + PNG/Ground Truth/N.png (or TIF/, or both folders directly)"

    def matches(self, root: Path) -> bool:
        home = self._home(root)
        frames, masks = home / "Original", home / "Ground Truth"
        if not (frames.is_dir() and masks.is_dir()):
            return False
        return bool({path.stem for path in image_files(frames)} & {path.stem for path in image_files(masks)})

    def pairs(self, root: Path) -> list[Pair]:
        return _pair_folder(self._home(root), "cvc-clinicdb")

    @staticmethod
    def _home(root: Path) -> Path:
        return next((home for home in (root / "PNG", root / "TIF") if home.is_dir()), root)


class NumberedTiff(Layout):
    """N.tif + pN.tif, in one folder or in sub-folders: CVC-ColonDB and ETIS-Larib, told apart by frame size.

    Args:
        dataset: name of the data set.
        size: width and height of its frames, pixels.
    """

    def __init__(self, dataset: str, size: tuple[int, int]):
        self.dataset, self.size = dataset, size
        self.looks_like = f"N.tif(f) + pN.tif(f) of {size[0]} x {size[1]} pixels, in one folder or in two"

    def matches(self, root: Path) -> bool:
        frames, masks = self._files(root)
        numbered = [path for path in frames if path.stem.isdecimal()]
        return bool(numbered and masks) and self._frame_size(numbered[0]) == self.size

    def pairs(self, root: Path) -> list[Pair]:
        frames, masks = self._files(root)
        return pair_by_stem(
            frames, masks, where=root, dataset=self.dataset, split="test", mask_stem=lambda path: path.stem.removeprefix("p")
        )

    @staticmethod
    def _files(root: Path) -> tuple[list[Path], list[Path]]:
        files = [
            path
            for folder in (root, *folders(root))
            for path in image_files(folder)
            if path.suffix.lower() in {".tif", ".tiff"}
        ]
        masks = [path for path in files if re.fullmatch("p[0-9]+", path.stem)]
        return [path for path in files if path not in set(masks)], masks

    @staticmethod
    def _frame_size(path: Path) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(read_bytes(path)), formats=["TIFF"]) as image:
                return image.size
        except DataError:
            raise
        except Exception as error:  # the decoders raise whatever a damaged file leads them to
            raise DataError(
                "cannot read the image", where=path, got=type(error).__name__, remedy="download the file again"
            ) from error


class PolypGen(Layout):
    """PolypGen (Ali et al., Scientific Data 2023): every `images_<group>` folder beside `masks_<group>`, four levels deep.

    One published frame's stem ends in "_" and its mask's does not, so trailing underscores do not count.
    """

    looks_like = "data_C1/images_C1/X.jpg + data_C1/masks_C1/X_mask.jpg, ..."

    def matches(self, root: Path) -> bool:
        return any(
            folder.with_name(folder.name.replace("images_", "masks_", 1)).is_dir() for folder in self._groups(root, "images_")
        )

    def pairs(self, root: Path) -> list[Pair]:
        return pair_by_stem(
            [path for folder in self._groups(root, "images_") for path in image_files(folder)],
            [path for folder in self._groups(root, "masks_") for path in image_files(folder)],
            where=root,
            dataset="polypgen",
            split="test",
            image_stem=lambda path: path.stem.rstrip("_"),
            mask_stem=lambda path: path.stem.removesuffix("_mask").rstrip("_"),
        )

    @staticmethod
    def _groups(root: Path, prefix: str) -> list[Path]:
        """Folders that start with `prefix`, down to sequenceData/positive/seq1/<prefix>seq1."""
        return [folder for depth in range(4) for folder in sorted(root.glob("*/" * depth + prefix + "*")) if folder.is_dir()]


class PraNet(Layout):
    """PraNet's release (Fan et al., MICCAI 2020): one mixed training folder, one folder a test set."""

    looks_like = "TrainDataset/{image,mask} and TestDataset/<set>/{images,masks}, either or both"

    def matches(self, root: Path) -> bool:
        return any(tree is not None for tree in self._trees(root))

    def pairs(self, root: Path) -> list[Pair]:
        train, test = self._trees(root)
        if train is None and test is None:
            raise DataError(
                "neither TrainDataset nor TestDataset",
                where=root,
                got=first_names(p.name for p in visible(root)),
                wanted=self.looks_like,
            )
        found = [] if train is None else _pair_folder(train, "pranet-train", "train")
        for folder in [] if test is None else folders(test):
            found += _pair_folder(folder, folder.name.lower(), "test")
        if not found:
            raise DataError("no test sets", where=test, got="no folders", wanted=self.looks_like)
        return found

    @staticmethod
    def _trees(root: Path) -> tuple[Path | None, Path | None]:
        """The train and the test tree; `root` itself may be one of them."""
        trees = {path.name: path for path in (root, root / "TrainDataset", root / "TestDataset") if path.is_dir()}
        return trees.get("TrainDataset"), trees.get("TestDataset")


LAYOUTS.register("folder")(Folder())
LAYOUTS.register("kvasir-seg")(KvasirSeg())
LAYOUTS.register("cvc-clinicdb")(CvcClinicDb())
LAYOUTS.register("cvc-colondb")(NumberedTiff("cvc-colondb", (574, 500)))
LAYOUTS.register("etis-larib")(NumberedTiff("etis-larib", (1225, 966)))
LAYOUTS.register("polypgen")(PolypGen())
LAYOUTS.register("pranet")(PraNet())
