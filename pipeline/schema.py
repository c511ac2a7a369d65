"""Which arrays a store holds: their names, shapes and shard size. The one place where stage one and two agree on keys."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.manifest import ArraySpec, TeacherEntry
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.spectra import spectrum_shape
from polyp_difom.pipeline.teachers.protocol import Teacher, weights_digest

if TYPE_CHECKING:
    from polyp_difom.pipeline.plan import ExtractConfig

IMAGE, MASK = "frames/image", "frames/mask"
SHARD_BYTES = 128 * 2**20
MOST_SAMPLES_PER_SHARD = 64


def teacher_group(name: str) -> str:
    """Group of a teacher: "sam:vit_b" -> "teachers/sam-vit_b" (a colon is no good in paths and URLs)."""
    return f"teachers/{name.replace(':', '-')}"


def embedding_key(teacher: str, scale: str) -> str:
    """Key of a teacher's maps at a scale, [n, v, c, h, w]."""
    return f"{teacher_group(teacher)}/{scale}/embedding"


def spectrum_key(teacher: str, scale: str) -> str:
    """Key of their half spectra, [n, v, c, h, w // 2 + 1, 2] (or the low block alone)."""
    return f"{teacher_group(teacher)}/{scale}/spectrum"


def basis_group(teacher: str) -> str:
    """Group of a teacher's channel basis."""
    return f"{teacher_group(teacher)}/basis"


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


def teacher_entry(teacher: Teacher, channels: int) -> TeacherEntry:
    """The manifest's record of a loaded teacher."""
    spec = teacher.spec
    return TeacherEntry(
        name=spec.name,
        weights_digest=weights_digest(teacher.encoder),
        input_size=spec.input_size,
        preprocessing=spec.preprocessing,
        stride=spec.stride,
        native_channels=spec.channels,
        channels=min(channels, spec.channels),
        licence=spec.licence,
        contamination=spec.contamination,
    )


def arrays(config: ExtractConfig, teachers: list[Teacher]) -> dict[str, ArraySpec]:
    """All per-sample arrays of a store."""
    s, v = config.size, config.views
    specs = {
        IMAGE: ArraySpec(shape=(3, s, s), dtype="uint8", chunk_dims=0, compressed=True),
        MASK: ArraySpec(shape=(s, s), dtype="uint8", chunk_dims=0, compressed=True),
    }
    for teacher in teachers:
        c = min(config.channels, teacher.spec.channels)
        for scale, cells in scale_cells(s, config.scales).items():
            maps, spectra = (v, c, cells, cells), (v, c, *spectrum_shape(cells, config.spectra))
            name = teacher.spec.name
            specs[embedding_key(name, scale)] = ArraySpec(shape=maps, dtype="float16", chunk_dims=1, compressed=False)
            specs[spectrum_key(name, scale)] = ArraySpec(shape=spectra, dtype="float16", chunk_dims=1, compressed=False)
    return specs


def samples_per_shard(config: ExtractConfig, teachers: list[Teacher]) -> int:
    """Samples in one unit of work: the largest array's shard stays near 128 MiB, and a kill costs at most 64 frames."""
    largest = max(math.prod(spec.shape) * 2 for spec in arrays(config, teachers).values())
    return max(1, min(MOST_SAMPLES_PER_SHARD, SHARD_BYTES // largest))
