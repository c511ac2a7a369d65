"""What shaped a store: the manifest and its signature. Shapes: v views, c channels, h w grid, s frame side."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import numpy as np
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

Spectra = Literal["full", "low", "none"]
"""What is stored beside the maps: whole half spectra, their low block alone, or nothing."""
CHUNK_OVERHEAD = 4 + 16 + 16
"""Most bytes that a chunk adds to its payload: crc32c, its index entry, and blosc's header where blosc cannot compress."""

ArrayKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Continues(_Model):
    """Of an array that goes on with another one along that one's first dimension per sample: which, and from which index on."""

    key: ArrayKey
    at: int = Field(gt=0)


class ArraySpec(_Model):
    """One array of the store, described per sample.

    Args:
        shape: of one sample, without n; (v, c, h, w) for an embedding, (3, s, s) for a frame.
        dtype: numpy name ("float16", "uint8", ...); see `fill`.
        chunk_dims: leading dimensions of `shape` that a chunk holds one index of; 1 for an embedding: (sample, view) chunks.
        compressed: blosc (zstd, bitshuffle) before the crc32c, or the crc32c alone.
        continues: for views that were added later, the array that they belong to; others are written without this field.
    """

    shape: tuple[Annotated[int, Field(gt=0)], ...]
    dtype: str
    chunk_dims: int = Field(ge=0)
    compressed: bool
    continues: Continues | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.continues is None:
            fields.pop("continues", None)
        return fields

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
    def first(self) -> int:
        """Which index of the first dimension the array begins at: 0, but for one that goes on with another."""
        return self.continues.at if self.continues else 0

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


Kind = Literal["features", "mask"]
"""What a teacher's maps are: features, or one channel that is the lesion's share of each cell, 0..1."""


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
        kind: of the maps; "features" is not written, so that stores keep the signature that they had before there were others.
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
    kind: Kind = "features"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if not self.maps:
            fields.pop("maps", None)
        if self.kind == "features":
            fields.pop("kind", None)
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


BasisKind = Literal["phi-s", "pca", "standard"]
"""Mixed principal directions (PHI-S, arXiv 2410.01680), these unmixed, or the teacher's own channels over their deviations."""


class BasisEntry(_Model):
    """How the fixed channel bases are fitted: stored channels, train frames, seed, kind (not written where it is phi-s)."""

    channels: int
    frames: int
    seed: int
    kind: BasisKind = "phi-s"

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.kind == "phi-s":
            fields.pop("kind", None)
        return fields


class Manifest(_Model):
    """Everything that shaped a store; `software` alone is outside the signature."""

    schema_version: Literal[1, 2] = 1
    """2 where views were added, which what knows 1 alone cannot read."""
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

    @model_validator(mode="after")
    def _continued_without_gaps(self) -> Manifest:
        for key in {spec.continues.key for spec in self.arrays.values() if spec.continues}:
            whole = self.arrays.get(key)
            if whole is None or whole.continues or not whole.chunk_dims:
                raise ValueError(f"{key} is no array that can be continued")
            stop = whole.shape[0]
            for name, piece in list(self.pieces(key).items())[1:]:
                alike = piece.model_copy(update={"shape": (whole.shape[0], *piece.shape[1:]), "continues": None}) == whole
                if not alike or piece.first != stop:
                    raise ValueError(f"{name} does not go on where {key} ends")
                stop += piece.shape[0]
        return self

    def pieces(self, key: str) -> dict[str, ArraySpec]:
        """An array, and in order those that continue it."""
        others = {name: spec for name, spec in self.arrays.items() if spec.continues and spec.continues.key == key}
        return {key: self.arrays[key], **dict(sorted(others.items(), key=lambda item: item[1].first))}

    def whole(self) -> dict[str, ArraySpec]:
        """The arrays as `read` gives them: each with all that continues it."""
        ends: dict[str, int] = {}
        for spec in self.arrays.values():
            if spec.continues:
                ends[spec.continues.key] = max(ends.get(spec.continues.key, 0), spec.first + spec.shape[0])
        return {
            key: spec.model_copy(update={"shape": (ends[key], *spec.shape[1:])}) if key in ends else spec
            for key, spec in self.arrays.items()
            if not spec.continues
        }

    def signature(self) -> str:
        """sha256 (hex) of the canonical JSON of everything except `software`."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude={"software"}))).hexdigest()

    def differences(self, other: Manifest) -> list[tuple[str, Any, Any]]:
        """(dotted key, stored here, wanted by `other`) where the two disagree; "absent" for a key that one side lacks."""
        mine, theirs = (dict(_leaves(m.model_dump(mode="json", exclude={"software"}))) for m in (self, other))
        keys = [*mine, *(key for key in theirs if key not in mine)]
        pairs = ((key, mine.get(key, "absent"), theirs.get(key, "absent")) for key in keys)
        return [(key, stored, wanted) for key, stored, wanted in pairs if stored != wanted]


SCHEMA_VERSION = 2
"""The newest that is read and written."""


def predicted_bytes(manifest: Manifest, n: int) -> int:
    """Upper bound on the bytes of all arrays for `n` samples, compressed arrays counted as if blosc gained nothing."""
    per_sample = sum(spec.chunks_per_sample * (spec.chunk_bytes + CHUNK_OVERHEAD) for spec in manifest.arrays.values())
    return n * per_sample


def canonical(value: object) -> bytes:
    """JSON of one spelling, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs; entries of a list of records go by their name, other lists count as values."""
    if isinstance(node, list) and node and all(isinstance(item, dict) and "name" in item for item in node):
        node = {item["name"]: item for item in node}
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, item in node.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else key)]
