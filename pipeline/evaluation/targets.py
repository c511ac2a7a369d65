"""What can be evaluated: a trained model in any format, or a folder of masks or probability maps that any tool wrote.

Shapes: h, w a picture's own size; s the side of a squared frame.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import DataError, RunError
from polyp_difom.pipeline.data.maps import names_of_set, read_map
from polyp_difom.pipeline.data.pairing import Pair, first_names, folders, image_files
from polyp_difom.pipeline.models.loading import KINDS, load_model
from polyp_difom.pipeline.models.protocol import Model, ModelInfo
from polyp_difom.pipeline.runs import RunFolder

MAPS_SIDE = 352
"""Side of the squared frames on which maps are pooled: that of the notebook behind `pooled-6`."""
FAINT = 1.01 / 255  # float32 rounds 1 / 255 up
"""A set of maps that never exceeds it holds class labels 0 and 1 (or 8-bit values in 16-bit files)."""


class Target(ABC):
    """Something that has a lesion probability for every frame.

    Attributes:
        kind: "run", "checkpoint", "onnx", "torchscript", "openvino", "hub-folder" or "masks".
        name: for tables and folders.
        path: as given.
        record: folder where figures go.
        header: what training wrote into the model; {} if unknown.
        info: facts about the model; None for a folder of maps.
        frame_size: side s of the squared frames that `squared_probability` takes.
    """

    kind: str
    name: str
    path: Path
    record: Path
    header: dict[str, Any]
    info: ModelInfo | None
    frame_size: int

    @abstractmethod
    def probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Lesion probability [h, w] in 0..1 of one frame, uint8 [h, w, 3]."""

    @abstractmethod
    def squared_probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Likewise [s, s] of the squared frame, uint8 [3, s, s]."""

    def prepare(self, pairs: Sequence[Pair]) -> list[str]:
        """Check that every frame can be answered, before any is; what the user should know, in words.

        Raises:
            DataError: a frame without a map, or one with two.
        """
        return []

    def verify(self) -> list[str]:
        """Check, once all frames were answered, what only all of them tell; what the user should know, in words.

        Raises:
            DataError: maps that are no probability maps.
        """
        return []

    def digest(self) -> str | None:
        """sha256 over the model's files; None for a folder of maps."""
        return None

    def seen(self) -> dict[str, str]:
        """Split by pixel digest of every frame that the target is known to have learned from or been selected on."""
        return {}

    def datasets(self) -> set[str]:
        """Data sets that the target is known to have learned from."""
        return {entry["name"] for entry in self.header.get("provenance", {}).get("datasets", [])}


def open_target(path: Path, *, out: Path | None = None, device: str = "auto", trust: bool = False) -> Target:
    """The model or the folder of maps at `path`.

    Args:
        out: where figures go; by default a run's own folder, else "evaluations/<name>".
        trust: as in `load_model`.

    Raises:
        RunError: nothing that can be evaluated. MissingDependencyError: the model's backend is not installed.
    """
    if not path.is_dir() or _is_model_folder(path):
        return ModelTarget(load_model(path, device, trust=trust), path, out)
    if image_files(path) or any(image_files(folder) for folder in folders(path)):
        return MapsTarget(path, out)
    raise RunError(
        "nothing to evaluate in this folder", where=path, wanted=f"{KINDS}; or a folder of masks or probability maps"
    )


def _is_model_folder(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "model.safetensors").is_file()


class ModelTarget(Target):
    """A trained model."""

    def __init__(self, model: Model, path: Path, out: Path | None):
        self.model, self.path = model, path
        self.info = model.info
        self.kind, self.header, self.frame_size = model.info.kind, model.info.header, model.info.frame_size
        home = self._run_of_checkpoint()
        if home not in (None, path):
            self.name = f"{home.absolute().name}-{path.stem}"
        elif path.is_file():
            self.name = path.name.replace(".", "-")  # one run may be exported to several formats
        else:
            self.name = path.name if str(path).startswith("hf:") else model.info.name
        self.record = out or (path if self.kind == "run" else Path("evaluations") / self.name)

    def _run_of_checkpoint(self) -> Path | None:
        """The run that the model lies in: itself, or the one above its `checkpoints` folder."""
        if self.kind == "run":
            return self.path
        folder = self.path.absolute().parent
        inside = self.kind == "checkpoint" and folder.name == "checkpoints" and (folder.parent / "samples.csv").is_file()
        return folder.parent if inside else None

    def probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Target.probability`."""
        return self.model.probability(image)

    def squared_probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Target.squared_probability`."""
        return self.model.logits(image[None]).sigmoid()[0, 0].numpy()

    def digest(self) -> str | None:
        """See `Target.digest`."""
        path = self.model.info.path
        files = {"run": [RunFolder(path).best], "hub-folder": [path / "model.safetensors"]}
        files["openvino"] = [path, path.with_suffix(".bin")]
        total = hashlib.sha256()
        for file in files.get(self.kind, [path]):
            total.update(file.read_bytes())
        return total.hexdigest()

    def seen(self) -> dict[str, str]:
        """See `Target.seen`; a run's list of frames, which serves its checkpoints too."""
        home = self._run_of_checkpoint()
        return RunFolder(home).seen() if home else {}

    def datasets(self) -> set[str]:
        """See `Target.datasets`."""
        home = self._run_of_checkpoint()
        return RunFolder(home).datasets() if home else super().datasets()


class MapsTarget(Target):
    """A folder of masks or probability maps: "<folder>/<stem>.png", or "<folder>/<data set>/<stem>.png" for several sets.

    A map is found by its frame's stem and must have the size of the frame. A sub-folder counts as a data set's whatever its
    case and punctuation, and under the set's other names ("Kvasir" for kvasir-seg, "ETIS-LaribPolypDB" for etis-larib, ...).
    """

    kind = "masks"
    info = None
    frame_size = MAPS_SIDE

    def __init__(self, path: Path, out: Path | None):
        self.path = path
        self.name = path.absolute().name
        self.record = out or Path("evaluations") / self.name
        self.header = {}
        self._folders: dict[str, Path] = {}
        self._files: dict[str, dict[str, Path]] = {}
        self._highest: dict[Path, float] = {}
        self._faint: list[Path] = []

    def probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Target.probability`; of the picture only the size counts.

        Raises:
            DataError: no map, one that cannot be read, or one of another size.
        """
        path = self._map(pair)
        values = self._read(path)
        if values.shape != image.shape[:2]:
            raise DataError(
                "the map is not of its frame's size", where=path, got=_size(values), wanted=f"{_size(image)}, as {pair.image}",
                remedy="resize the map to the frame (the probabilities, bilinear, not the mask)",
            )  # fmt: skip
        return values

    def _read(self, path: Path) -> NDArray[np.float32]:
        values = read_map(path)
        highest = float(values.max())
        self._highest[path.parent] = max(highest, self._highest.get(path.parent, 0.0))
        if 0 < highest <= FAINT:
            self._faint.append(path)
        return values

    def squared_probability(self, pair: Pair, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Target.squared_probability`: the map resized, bilinear and antialiased."""
        side = image.shape[-1]
        resized = Image.fromarray(self._read(self._map(pair))).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(resized).clip(0, 1)

    def prepare(self, pairs: Sequence[Pair]) -> list[str]:
        """See `Target.prepare`."""
        told = []
        datasets = {pair.dataset for pair in pairs}
        for dataset in sorted(datasets):
            group = [pair for pair in pairs if pair.dataset == dataset]
            folder = self._folder(dataset)
            if folder == self.path and len(datasets) > 1:
                raise self._no_folder(dataset)
            maps = self._maps(dataset)
            if missing := [pair.stem for pair in group if pair.stem not in maps]:
                raise self._no_map(dataset, missing)
            extra = len(maps) - len(group)
            more = f"; {extra} more files there belong to none of the frames and were left alone" if extra else ""
            told.append(f"{dataset}: {len(group)} maps from {folder}{more}")
        return told

    def verify(self) -> list[str]:
        """See `Target.verify`."""
        labels = [path for path in self._faint if self._highest[path.parent] <= FAINT]
        if labels:
            raise DataError(
                "the maps look like class labels, not like masks or probabilities", where=labels[0],
                got="no value above 1 of 255 in any map of the set", wanted="0 for background, the highest value for lesion",
                remedy="multiply the maps so that lesion pixels have the highest value of the format (255 in 8 bits)",
            )  # fmt: skip
        if not self._faint:
            return []
        return [f"{len(self._faint)} maps hold no value above 1 of 255 and so count as nearly empty; first: {self._faint[0]}"]

    def _map(self, pair: Pair) -> Path:
        if pair.stem not in self._maps(pair.dataset):
            raise self._no_map(pair.dataset, [pair.stem])
        return self._maps(pair.dataset)[pair.stem]

    def _no_map(self, dataset: str, stems: list[str]) -> DataError:
        return DataError(
            "frames without a map", where=self._folder(dataset) / f"{stems[0]}.png", got=f"none for {first_names(stems)}",
            wanted=f"a map for every frame of {dataset}, called like the frame",
            remedy="write the missing maps, or score only the split that they are of: --split",
        )  # fmt: skip

    def _maps(self, dataset: str) -> dict[str, Path]:
        """Maps of a data set by stem."""
        if dataset not in self._files:
            found: dict[str, Path] = {}
            for path in image_files(self._folder(dataset)):
                if path.stem in found:
                    raise DataError(
                        "two maps share one stem", where=path, got=f"{found[path.stem].name} and {path.name}",
                        wanted="one map a frame", remedy="move one of them away",
                    )  # fmt: skip
                found[path.stem] = path
            self._files[dataset] = found
        return self._files[dataset]

    def _folder(self, dataset: str) -> Path:
        """The sub-folder of a data set; the folder itself where there is none and it holds images."""
        if dataset not in self._folders:
            fits = [folder for folder in folders(self.path) if names_of_set(folder.name) == names_of_set(dataset)]
            if len(fits) > 1 or (not fits and not image_files(self.path)):
                raise self._no_folder(dataset)
            self._folders[dataset] = fits[0] if fits else self.path
        return self._folders[dataset]

    def _no_folder(self, dataset: str) -> DataError:
        return DataError(
            f"not one folder of maps for data set {dataset}", where=self.path,
            got=first_names(folder.name for folder in folders(self.path)) + " folders", wanted=f"{self.path / dataset}",
            remedy="make one sub-folder for each data set, or evaluate one set at a time on its own folder",
        )  # fmt: skip


def _size(array: NDArray) -> str:
    return f"{array.shape[0]} x {array.shape[1]} (height x width)"
