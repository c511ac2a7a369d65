"""Native folder layouts of the public polyp data sets."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from polyp_difom.cache.errors import DataError
from polyp_difom.pipeline.data.frames import read_bytes
from polyp_difom.pipeline.data.layouts import LAYOUTS, Layout, pair_folder
from polyp_difom.pipeline.data.pairing import Pair, first_names, folders, image_files, pair_by_stem, visible


class KvasirSeg(Layout):
    """Kvasir-SEG (Jha et al., MMM 2020) as published; its box file is what marks it."""

    looks_like = "images/X.jpg + masks/X.jpg + kavsir_bboxes.json"

    def matches(self, root: Path) -> bool:
        return (root / "kavsir_bboxes.json").is_file()

    def pairs(self, root: Path) -> list[Pair]:
        return pair_folder(root, "kvasir-seg")


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
        return pair_folder(self._home(root), "cvc-clinicdb")

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
        found = [] if train is None else pair_folder(train, "pranet-train", "train")
        for folder in [] if test is None else folders(test):
            found += pair_folder(folder, folder.name.lower(), "test")
        if not found:
            raise DataError("no test sets", where=test, got="no folders", wanted=self.looks_like)
        return found

    @staticmethod
    def _trees(root: Path) -> tuple[Path | None, Path | None]:
        """The train and the test tree; `root` itself may be one of them."""
        trees = {path.name: path for path in (root, root / "TrainDataset", root / "TestDataset") if path.is_dir()}
        return trees.get("TrainDataset"), trees.get("TestDataset")


LAYOUTS.register("kvasir-seg")(KvasirSeg())
LAYOUTS.register("cvc-clinicdb")(CvcClinicDb())
LAYOUTS.register("cvc-colondb")(NumberedTiff("cvc-colondb", (574, 500)))
LAYOUTS.register("etis-larib")(NumberedTiff("etis-larib", (1225, 966)))
LAYOUTS.register("polypgen")(PolypGen())
LAYOUTS.register("pranet")(PraNet())
