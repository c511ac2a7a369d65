"""What shaped a store: the manifest, its signature, and the table of samples.

Shapes: n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from polyp_difom.cache.text import decode_text, encode_text, hex_digests, raw_digests

SPLITS = ("train", "val", "test")
Spectra = Literal["full", "low", "none"]
"""What is stored beside the maps: whole half spectra, their low block alone, or nothing."""
CHUNK_OVERHEAD = 4 + 16 + 16
"""Most bytes that a chunk adds to its payload: crc32c, its index entry, and blosc's header where blosc cannot compress."""

ArrayKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArraySpec(_Model):
    """One array of the store, described per sample.

    Args:
        shape: of one sample, without n; (v, c, h, w) for an embedding, (3, s, s) for a frame.
        dtype: numpy name ("float16", "uint8", ...); see `fill`.
        chunk_dims: leading dimensions of `shape` that a chunk holds one index of; 1 for an embedding: (sample, view) chunks.
        compressed: blosc (zstd, bitshuffle) before the crc32c, or the crc32c alone.
    """

    shape: tuple[Annotated[int, Field(gt=0)], ...]
    dtype: str
    chunk_dims: int = Field(ge=0)
    compressed: bool

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        try:
            known = np.dtype(value).name == value and np.dtype(value).kind in "biuf"
        except TypeError:
            known = False
        if not known:
            raise ValueError(f"{value!r} is not the name of a plain numpy number type")
        return value

    @model_validator(mode="after")
    def _chunk_dims_within_shape(self) -> ArraySpec:
        if self.chunk_dims > len(self.shape):
            raise ValueError(f"chunk_dims {self.chunk_dims} exceeds the {len(self.shape)} dimensions of {self.shape}")
        return self

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """What one chunk holds: `shape` without its leading `chunk_dims`."""
        return self.shape[self.chunk_dims :]

    @property
    def chunks_per_sample(self) -> int:
        """Chunks that one sample is made of."""
        return math.prod(self.shape[: self.chunk_dims])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk before any codec."""
        return math.prod(self.chunk_shape) * np.dtype(self.dtype).itemsize

    @property
    def is_float(self) -> bool:
        """Whether values can be NaN or infinite."""
        return np.dtype(self.dtype).kind == "f"

    @property
    def fill(self) -> float | int:
        """What Zarr's own readers give for a chunk that was never written: NaN, the lowest signed integer, or 0."""
        kind = np.dtype(self.dtype).kind
        return np.nan if kind == "f" else int(np.iinfo(self.dtype).min) if kind == "i" else 0


class MapEntry(_Model):
    """One of several maps of a teacher, and the stored scales that are made from it."""

    scales: tuple[str, ...]
    stride: int
    native_channels: int
    channels: int


class TeacherEntry(_Model):
    """A teacher as it ran: which weights, which preprocessing, what it may have seen in its own training.

    Args:
        stride: input pixels per cell of its map, of the finest where several are stored.
        native_channels, channels: of that map, and how many of them are stored.
        maps: all maps where several are stored; a store of single maps is written without this field.
    """

    name: str
    weights_digest: str
    input_size: int
    preprocessing: str
    stride: int
    native_channels: int
    channels: int
    licence: str
    contamination: str
    maps: tuple[MapEntry, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty_maps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if not self.maps:
            fields.pop("maps", None)
        return fields

    def map_at(self, scale: str) -> tuple[int, int, int]:
        """Stride, native channels and stored channels of the map that a scale is made from."""
        held = next((entry for entry in self.maps if scale in entry.scales), self)
        return held.stride, held.native_channels, held.channels

    def channels_at(self, scale: str) -> int:
        """Stored channels of a scale's maps."""
        return self.map_at(scale)[2]


class DatasetEntry(_Model):
    """A source dataset: its native layout, and how many frames it gave."""

    name: str
    layout: str
    frames: int


class SplitEntry(_Model):
    """How the splits were made: a policy's name or "csv:" with the file's sha256, the seed, and validation's share of train."""

    policy: str
    seed: int
    val_fraction: float


class BasisEntry(_Model):
    """How the fixed channel bases are fitted (PHI-S, arXiv 2410.01680): stored channels, train frames, seed."""

    channels: int
    frames: int
    seed: int


class Manifest(_Model):
    """Everything that shaped a store; `software` alone is outside the signature."""

    schema_version: Literal[1] = 1
    dataset_digest: str
    datasets: tuple[DatasetEntry, ...]
    split: SplitEntry
    frame_size: int
    views: tuple[str, ...]
    scales: dict[str, int]
    teachers: tuple[TeacherEntry, ...]
    basis: BasisEntry
    spectra: Spectra
    precision: str
    samples_per_shard: int = Field(gt=0)
    arrays: dict[ArrayKey, ArraySpec]
    software: dict[str, str]

    def signature(self) -> str:
        """sha256 (hex) of the canonical JSON of everything except `software`."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json", exclude={"software"}))).hexdigest()

    def differences(self, other: Manifest) -> list[tuple[str, Any, Any]]:
        """(dotted key, stored here, wanted by `other`) where the two disagree; "absent" for a key that one side lacks."""
        mine, theirs = (dict(_leaves(m.model_dump(mode="json", exclude={"software"}))) for m in (self, other))
        keys = [*mine, *(key for key in theirs if key not in mine)]
        pairs = ((key, mine.get(key, "absent"), theirs.get(key, "absent")) for key in keys)
        return [(key, stored, wanted) for key, stored, wanted in pairs if stored != wanted]


SCHEMA_VERSION: int = Manifest.model_fields["schema_version"].default


def predicted_bytes(manifest: Manifest, n: int) -> int:
    """Upper bound on the bytes of all arrays for `n` samples, compressed arrays counted as if blosc gained nothing."""
    per_sample = sum(spec.chunks_per_sample * (spec.chunk_bytes + CHUNK_OVERHEAD) for spec in manifest.arrays.values())
    return n * per_sample


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
        return hashlib.sha256(_canonical(rows)).hexdigest()

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


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs; entries of a list of records go by their name, other lists count as values."""
    if isinstance(node, list) and node and all(isinstance(item, dict) and "name" in item for item in node):
        node = {item["name"]: item for item in node}
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, item in node.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else key)]
