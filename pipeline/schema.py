"""Which arrays a store holds: their names, shapes and shard size. The one place where stage one and two agree on keys."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from polyp_difom.cache.errors import CacheError, UsageError, first_line
from polyp_difom.cache.manifest import ArraySpec, Manifest, MapEntry, Spectra, TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.spectra import spectrum_shape
from polyp_difom.pipeline.teachers.protocol import Teacher, TeacherSpec, weights_digest

IMAGE, MASK = "frames/image", "frames/mask"
SHARD_BYTES = 128 * 2**20
MOST_SAMPLES_PER_SHARD = 64
MapType = Literal["float16", "int8"]
"""What maps are stored as; spectra are float16 beside either."""


class Layout(Protocol):
    """What of a configuration decides over shapes: frame side, number of views, scales, channels, spectra, type of maps."""

    @property
    def size(self) -> int: ...
    @property
    def views(self) -> int: ...
    @property
    def scales(self) -> tuple[str, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def spectra(self) -> Spectra: ...
    @property
    def dtype(self) -> MapType: ...


STEPS = "step-"
"""Of a basis record's arrays: what a scale's int8 maps are multiplied by."""


def teacher_group(name: str) -> str:
    """Group of a teacher: "sam:vit_b" -> "teachers/sam-vit_b" (a colon is no good in paths and URLs)."""
    return f"teachers/{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}"


def embedding_key(teacher: str, scale: str) -> str:
    """Key of a teacher's maps at a scale, [n, v, c, h, w]."""
    return f"{teacher_group(teacher)}/{scale}/embedding"


def spectrum_key(teacher: str, scale: str) -> str:
    """Key of their half spectra, [n, v, c, h, w // 2 + 1, 2] (or the low block alone)."""
    return f"{teacher_group(teacher)}/{scale}/spectrum"


def basis_group(teacher: str, scale: str | None = None) -> str:
    """Group of a teacher's channel basis; where several maps are stored, each has its own, named by its finest scale."""
    return f"{teacher_group(teacher)}/basis" + (f"-{scale}" if scale else "")


def basis_of(entry: TeacherEntry, scale: str) -> str:
    """Group of the basis that a stored scale's maps are in."""
    return basis_group(entry.name, next((held.scales[0] for held in entry.maps if scale in held.scales), None))


def maps_of_scales(spec: TeacherSpec, size: int, scales: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    """Which of a teacher's maps each stored scale is made from: {number of the map: its scales, finest first}.

    The rule: a scale takes the map whose cell, in frame pixels (stride * size / input_size), is nearest to its own as a
    ratio; of two equally near the finer one. Scales that meet several maps of one stride (a ViT's depths) go through
    them in order, the coarsest scale taking the last. A map that no scale takes is not stored.
    """
    chosen: dict[int, tuple[str, ...]] = {}
    ordered = list(scale_cells(size, scales))
    cells = [stride * size / spec.input_size for stride in spec.strides]
    near = [min(range(len(cells)), key=lambda i: abs(math.log(cells[i] / scale_stride(scale)))) for scale in ordered]
    for rank, (scale, first) in enumerate(zip(ordered, near, strict=True)):
        alike = [i for i, stride in enumerate(spec.strides) if stride == spec.strides[first]]
        place = len(alike) - near.count(first) + rank - near.index(first)
        number = alike[max(0, place)]
        chosen[number] = (*chosen.get(number, ()), scale)
    return chosen


def added_key(key: str, views: tuple[str, ...]) -> str:
    """Key of the array that holds views which were added to those of another one: ".../embedding-vflip-rot180"."""
    return "-".join((key, *views))


def equivariance_group(teacher: str) -> str:
    """Group of the measured cosines of flipped maps against maps of flipped frames, one for each view; those of views that were
    added lie under its `added_key`.
    """
    return f"{teacher_group(teacher)}/equivariance"


def learned_group(teacher: str) -> str:
    """Group of the frames that a teacher learned from, where that is known."""
    return f"{teacher_group(teacher)}/learned-from"


def labelled_group(manifest: Manifest) -> str:
    """Group of the frames that networks have seen which predicted masks of the store, where that is known."""
    return f"{teacher_group(manifest.teachers[0].name)}/labellers-learned-from"


_LEARNED = TypeAdapter(list[Annotated[dict[Literal["id", "pixel_sha256", "split"], str], Field(min_length=3)]])


def learned_by(store: FeatureStore, teachers: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of `samples.csv` for the frames that these teachers learned from or were selected on, each picture once:
    learned from counts before selected on.

    Raises:
        CacheError: they are damaged.
    """
    rows = [row for teacher in teachers for row in _frames_of(store, learned_group(teacher), f"teacher {teacher!r}")]
    return _each_once(rows)


def seen_before(store: FeatureStore, teachers: tuple[str, ...]) -> list[dict[str, str]]:
    """As `learned_by`, with what the networks have seen that predicted masks of the store."""
    labelled = _frames_of(store, labelled_group(store.manifest), "the network that predicted masks")
    return _each_once([*learned_by(store, teachers), *labelled])


def _frames_of(store: FeatureStore, group: str, who: str) -> list[dict[str, str]]:
    if (record := store.read_constants(group)) is None:
        return []
    try:
        return [{str(key): value for key, value in row.items()} for row in _LEARNED.validate_python(record[1].get("frames"))]
    except ValidationError as error:
        raise CacheError(
            f"what {who} learned from is damaged", where=store.location, got=first_line(error), remedy="fetch the store again"
        ) from error


def _each_once(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return list({row["pixel_sha256"]: row for row in sorted(rows, key=lambda row: row["split"] == "train")}.values())


def basis_record(
    basis: Basis, variances: dict[str, float], errors: dict[str, float] | None = None
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays, attributes) of a stored basis.

    Args:
        variances: of the stored channels at each scale that this basis is recorded for.
        errors: where maps are int8, norm of what that changes over the norm of the maps, at each of these scales.
    """
    arrays = {"mean": basis.mean, "rotation": basis.rotation, "explained": basis.explained}
    arrays |= {f"{STEPS}{scale}": steps for scale, steps in basis.steps.items() if scale in variances}
    attrs: dict[str, Any] = {"scale": basis.scale, "mixing": basis.mixing, "variances": variances}
    return arrays, attrs | ({"int8_error": errors} if errors else {})


def basis_from(arrays: dict[str, NDArray], attrs: dict[str, Any]) -> Basis:
    """The inverse of `basis_record`."""
    steps = {name.removeprefix(STEPS): values for name, values in arrays.items() if name.startswith(STEPS)}
    return Basis(arrays["mean"], arrays["rotation"], attrs["scale"], arrays["explained"], attrs["mixing"], steps)


def stored_record(store: FeatureStore, entry: TeacherEntry, scale: str) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """What `basis_record` gave for a stored scale.

    Raises:
        CacheError: it is missing or damaged.
    """
    record = store.read_constants(basis_of(entry, scale))
    if record is None:
        raise CacheError(f"the basis of teacher {entry.name!r} is missing", where=store.location, remedy="run extract again")
    return record


def stored_basis(store: FeatureStore, entry: TeacherEntry, scales: tuple[str, ...]) -> Basis:
    """The basis of the one map that these stored scales are made from, with the steps of them all.

    Raises:
        CacheError: it is missing or damaged.
    """
    bases = [basis_from(*stored_record(store, entry, scale)) for scale in scales]
    return replace(bases[0], steps={scale: steps for basis in bases for scale, steps in basis.steps.items()})


def map_type(manifest: Manifest) -> MapType:
    """What a store holds its maps as."""
    return "int8" if any(spec.dtype == "int8" for spec in manifest.arrays.values()) else "float16"


def int8_errors(store: FeatureStore) -> dict[tuple[str, str], float]:
    """By teacher and scale, what int8 costs: the norm of the change over the norm of the maps. Nothing for float16 maps."""
    if map_type(store.manifest) == "float16":
        return {}
    grids = [(entry, scale) for entry in store.manifest.teachers for scale in store.manifest.scales]
    return {(entry.name, scale): stored_record(store, entry, scale)[1]["int8_error"][scale] for entry, scale in grids}


def steps_of(store: FeatureStore) -> dict[str, NDArray[np.float32]]:
    """By key of the store's int8 maps [..., c, h, w], what they are multiplied by to be maps again, [c, 1, 1].

    Raises:
        CacheError: a basis is missing or damaged.
    """
    if map_type(store.manifest) == "float16":
        return {}
    return {
        embedding_key(entry.name, scale): stored_basis(store, entry, (scale,)).steps[scale][:, None, None]
        for entry in store.manifest.teachers
        for scale in store.manifest.scales
    }


def scale_stride(scale: str) -> int:
    """Frame pixels per cell: "s16" -> 16."""
    if not re.fullmatch(r"s(4|8|16|32)", scale):
        raise UsageError(f"unknown scale {scale!r}", wanted="s4, s8, s16 or s32")
    return int(scale[1:])


def scale_cells(size: int, scales: tuple[str, ...]) -> dict[str, int]:
    """Cells per side of each scale, coarse last: 352 -> {"s8": 44, "s16": 22, "s32": 11}."""
    return {scale: size // scale_stride(scale) for scale in sorted(set(scales), key=scale_stride)}


def teacher_entry(teacher: Teacher, config: Layout) -> TeacherEntry:
    """The manifest's record of a loaded teacher."""
    spec = teacher.spec
    maps = tuple(
        MapEntry(
            scales=scales,
            stride=spec.strides[number],
            native_channels=spec.channels[number],
            channels=min(config.channels, spec.channels[number]),
        )
        for number, scales in maps_of_scales(spec, config.size, config.scales).items()
    )
    return TeacherEntry(
        name=spec.name,
        weights_digest=weights_digest(teacher.encoder),
        input_size=spec.input_size,
        preprocessing=spec.preprocessing,
        stride=maps[0].stride,
        native_channels=maps[0].native_channels,
        channels=maps[0].channels,
        licence=spec.licence,
        contamination=spec.contamination,
        maps=maps if len(maps) > 1 else (),
        kind=spec.kind,
    )


def arrays(config: Layout, teachers: list[Teacher]) -> dict[str, ArraySpec]:
    """All per-sample arrays of a store."""
    s, v = config.size, config.views
    specs = {
        IMAGE: ArraySpec(shape=(3, s, s), dtype="uint8", chunk_dims=0, compressed=True),
        MASK: ArraySpec(shape=(s, s), dtype="uint8", chunk_dims=0, compressed=True),
    }
    for teacher in teachers:
        spec, cells_of = teacher.spec, scale_cells(s, config.scales)
        numbers = {scale: number for number, held in maps_of_scales(spec, s, config.scales).items() for scale in held}
        for scale, cells in cells_of.items():
            c = min(config.channels, spec.channels[numbers[scale]])
            key, shape = embedding_key(spec.name, scale), (v, c, cells, cells)
            specs[key] = ArraySpec(shape=shape, dtype=config.dtype, chunk_dims=1, compressed=False)
            if config.spectra != "none":
                key, halves = spectrum_key(spec.name, scale), (v, c, *spectrum_shape(cells, config.spectra))
                specs[key] = ArraySpec(shape=halves, dtype="float16", chunk_dims=1, compressed=False)
    return specs


def samples_per_shard(config: Layout, teachers: list[Teacher]) -> int:
    """Samples in one unit of work: the largest array's shard stays near 128 MiB, and a kill costs at most 64 frames."""
    largest = max(math.prod(spec.shape) * 2 for spec in arrays(config, teachers).values())
    return max(1, min(MOST_SAMPLES_PER_SHARD, SHARD_BYTES // largest))
