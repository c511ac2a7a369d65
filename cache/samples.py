"""The table of a store's samples: what each frame is, where it came from, and its split. Shapes: n samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.manifest import canonical
from polyp_difom.cache.text import decode_text, encode_text, hex_digests, raw_digests

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SampleTable:
    """One row a sample, in the order of every array's first dimension.

    Args:
        ids: unique names.
        sha256: of the source image files, hex.
        mask_sha256: of the source mask files, hex.
        pixel_sha256: of the decoded source images, hex.
        height, width: original size in pixels, int32 [n].
        split: "train", "val" or "test".
        dataset: name of the source dataset.

    Raises:
        ValueError: columns of unequal length, no rows, a repeated id, a malformed digest or an unknown split.
    """

    ids: list[str]
    sha256: list[str]
    mask_sha256: list[str]
    pixel_sha256: list[str]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    split: list[str]
    dataset: list[str]

    def __post_init__(self) -> None:
        lengths = {len(column) for column in vars(self).values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"the columns of a sample table must be equally long and not empty, got lengths {sorted(lengths)}")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("the ids of a sample table must be unique")
        digests = [*self.sha256, *self.mask_sha256, *self.pixel_sha256]
        if any(len(digest) != 64 for digest in digests) or len(bytes.fromhex("".join(digests))) != 32 * len(digests):
            raise ValueError("the sha256 columns must hold 64 hex digits a row")
        if unknown := set(self.split) - set(SPLITS):
            raise ValueError(f"unknown splits {sorted(unknown)}, wanted {SPLITS}")

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """sha256 (hex) over ids, file digests and splits; the order of rows matters."""
        rows = list(zip(self.ids, self.sha256, self.mask_sha256, self.split, strict=True))
        return hashlib.sha256(canonical(rows)).hexdigest()

    def to_arrays(self) -> dict[str, tuple[NDArray[Any], dict[str, Any]]]:
        """Columns as fixed-size number arrays with attributes: text as UTF-8 bytes, names as codes of a table."""
        datasets = sorted(set(self.dataset))
        return {
            "id": (encode_text(self.ids), {"encoding": "utf-8, zero padded"}),
            "sha256": (raw_digests(self.sha256), {}),
            "mask_sha256": (raw_digests(self.mask_sha256), {}),
            "pixel_sha256": (raw_digests(self.pixel_sha256), {}),
            "height": (np.asarray(self.height, np.int32), {"unit": "pixel"}),
            "width": (np.asarray(self.width, np.int32), {"unit": "pixel"}),
            "split": (np.array([SPLITS.index(name) for name in self.split], np.uint8), {"names": list(SPLITS)}),
            "dataset": (np.array([datasets.index(name) for name in self.dataset], np.int32), {"names": datasets}),
        }

    @classmethod
    def from_arrays(cls, columns: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]]) -> SampleTable:
        """The inverse of `to_arrays`."""

        def names(column: str) -> list[str]:
            codes, attributes = columns[column]
            return [attributes["names"][code] for code in codes.tolist()]

        return cls(
            ids=decode_text(columns["id"][0]),
            **{name: hex_digests(columns[name][0]) for name in ("sha256", "mask_sha256", "pixel_sha256")},
            height=columns["height"][0],
            width=columns["width"][0],
            split=names("split"),
            dataset=names("dataset"),
        )
