"""Which arrays a store holds: their names, shapes and shard size. The one place where stage one and two agree on keys."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.manifest import ArraySpec, MapEntry, TeacherEntry
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.spectra import spectrum_shape
from polyp_difom.pipeline.teachers.protocol import Teacher, TeacherSpec, weights_digest

IMAGE, MASK = "frames/image", "frames/mask"
SHARD_BYTES = 128 * 2**20
MOST_SAMPLES_PER_SHARD = 64


class Layout(Protocol):
    """What of a configuration decides over shapes: frame side, number of views, scales, stored channels, "full" or "low"."""

    @property
    def size(self) -> int: ...
    @property
    def views(self) -> int: ...
    @property
    def scales(self) -> tuple[str, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def spectra(self) -> Literal["full", "low"]: ...


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


def equivariance_group(teacher: str) -> str:
    """Group of the measured cosines of flipped maps against maps of flipped frames, one for each view."""
    return f"{teacher_group(teacher)}/equivariance"


def basis_record(basis: Basis, variances: dict[str, float]) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays, attributes) of a stored basis; `variances` are those of the stored channels at each scale."""
    arrays = {"mean": basis.mean, "rotation": basis.rotation, "explained": basis.explained}
    return arrays, {"scale": basis.scale, "mixing": basis.mixing, "variances": variances}


def basis_from(arrays: dict[str, NDArray], attrs: dict[str, Any]) -> Basis:
    """The inverse of `basis_record`."""
    return Basis(arrays["mean"], arrays["rotation"], attrs["scale"], arrays["explained"], attrs["mixing"])


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
            maps, spectra = (v, c, cells, cells), (v, c, *spectrum_shape(cells, config.spectra))
            name = spec.name
            specs[embedding_key(name, scale)] = ArraySpec(shape=maps, dtype="float16", chunk_dims=1, compressed=False)
            specs[spectrum_key(name, scale)] = ArraySpec(shape=spectra, dtype="float16", chunk_dims=1, compressed=False)
    return specs


def samples_per_shard(config: Layout, teachers: list[Teacher]) -> int:
    """Samples in one unit of work: the largest array's shard stays near 128 MiB, and a kill costs at most 64 frames."""
    largest = max(math.prod(spec.shape) * 2 for spec in arrays(config, teachers).values())
    return max(1, min(MOST_SAMPLES_PER_SHARD, SHARD_BYTES // largest))
