"""What a teacher is: squared frames in, dense maps out, and a statement of where they come from.

A new family is one new file in this folder: a function `load(request) -> Teacher` under `@TEACHERS.register("family")`.
Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePath

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.manifest import Kind
from polyp_difom.pipeline.registry import Registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "lite": ((127 / 255,) * 3, (128 / 255,) * 3),
    "unit": ((0.0,) * 3, (1.0,) * 3),
}
"""Preprocessings that subtract a mean and divide by a deviation; "minmax" brings each frame to 0..1 instead."""


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's passport; the store keeps it and reports repeat it.

    Attributes:
        name: "family" or "family:variant".
        input_size: side in pixels that frames are resized to.
        preprocessing: a name of `MEAN_STD`, or "minmax" (each frame to 0..1).
        strides: input pixels per cell of each map, finest first.
        channels: of each map.
        licence: of the weights.
        contamination: whether its training data may contain polyp sets.
        kind: of its maps; a "mask" is one map of one channel, the probability of a lesion.
    """

    name: str
    input_size: int
    preprocessing: str
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    licence: str
    contamination: str
    kind: Kind = "features"


class Teacher(nn.Module):
    """A frozen encoder behind the frame contract: it sees the whole squared frame, resized, never cropped or padded.

    Attributes:
        frames: where that is known, `id`, `pixel_sha256` and `split` of every frame that it learned from or was selected on.
        frame_size: side of the squared frames that it was trained on and that a store must have; None: any.
        exact: it runs in float32 whatever the autocast around it says, since bfloat16 moves its maps by more than 2.5 %.
    """

    frames: Sequence[Mapping[str, str]] = ()
    frame_size: int | None = None
    exact = False

    def __init__(self, spec: TeacherSpec, encoder: nn.Module):
        super().__init__()
        self.spec = spec
        self.encoder = encoder.eval().requires_grad_(False)

    @cached_property
    def seen(self) -> dict[str, str]:
        """Split of each of `frames` by its pixel digest."""
        return {row["pixel_sha256"]: row["split"] for row in self.frames}

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Normalised inputs [b, 3, input_size, input_size] -> maps [b, c, h, w]; families with another call override."""
        return (self.encoder(inputs),)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames float [b, 3, s, s] in 0..1 -> maps [b, c, h, w], finest first, as the passport declares them."""
        side = self.spec.input_size
        inputs = frames
        if frames.shape[-1] != side:
            inputs = F.interpolate(frames, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(frames.device.type, enabled=False) if self.exact else nullcontext():
            return self.embed(normalise(inputs, self.spec.preprocessing))


def normalise(frames: Tensor, preprocessing: str) -> Tensor:
    """Frames [b, 3, s, s] in 0..1 under a named preprocessing."""
    if preprocessing == "minmax":
        low, high = frames.amin((1, 2, 3), keepdim=True), frames.amax((1, 2, 3), keepdim=True)
        return (frames - low) / (high - low).clamp_min(1e-8)
    mean, std = _mean_std(preprocessing, frames.device)
    return (frames - mean) / std


@cache  # copied once: a GPU would be waited for each time
@torch.inference_mode(False)
def _mean_std(preprocessing: str, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in MEAN_STD[preprocessing])
    return mean, std


def preprocessing_name(mean: Sequence[float], std: Sequence[float], where: str) -> str:
    """The name in `MEAN_STD` of these three means and deviations (within 0.001).

    Raises:
        UsageError: they are none of the known ones.
    """
    for name, known in MEAN_STD.items():
        if len(mean) == len(std) == 3 and torch.allclose(torch.tensor([mean, std]), torch.tensor(known), rtol=0, atol=1e-3):
            return name
    raise UsageError(
        "unknown normalisation of a teacher's input", where=where, got=f"mean {list(mean)}, std {list(std)}",
        wanted="; ".join(f"{name}: {values}" for name, values in MEAN_STD.items()),
    )  # fmt: skip


def weights_digest(module: nn.Module) -> str:
    """sha256 hex over names, shapes, dtypes and bytes of all weights and buffers: of what runs, not of a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


OWN_WEIGHTS = "unknown: weights given by the user"
"""What can be said of the training data behind weights that are not the family's published ones."""


@dataclass(frozen=True)
class Request:
    """What a family's loader is asked for.

    Attributes:
        name: full name, as messages and the passport give it.
        variant: what follows the colon.
        weights: path, URL with digest, hub id or folder; None takes the family's published weights.
        input_size: side in pixels that the user wants; None takes the published one.
        say: tells the user what is about to be downloaded, and how large it is.
        frame_size: side of the frames that it is loaded for, where that is known.
    """

    name: str
    variant: str | None
    weights: str | None
    input_size: int | None
    say: Callable[[str], None]
    frame_size: int | None = None

    def fixed_side(self, side: int) -> int:
        """The input side of a teacher that knows no other; UsageError where another is wanted."""
        if self.input_size not in (None, side):
            raise UsageError(
                f"teacher {self.name!r} takes one input size only", where="--input-size", got=self.input_size, wanted=side,
                remedy="leave --input-size out",
            )  # fmt: skip
        return side

    def side(self, published: int, multiple: int) -> int:
        """The wanted input side, else the published one cut to a whole number of cells.

        Raises:
            UsageError: the wanted side is no multiple of `multiple` pixels.
        """
        if self.input_size is None:
            return published - published % multiple
        if self.input_size <= 0 or self.input_size % multiple:
            nearest = max(1, round(self.input_size / multiple)) * multiple
            raise UsageError(
                f"the input size of teacher {self.name!r} must be a multiple of {multiple}",
                where="--input-size", got=self.input_size, remedy=f"give --input-size {self.name}={nearest}",
            )  # fmt: skip
        return self.input_size

    def pyramid_side(self, published: int, multiple: int) -> int:
        """`side` of a convolutional pyramid, whose maps fit any: never below the frames' own, so that its strides are those of
        the scales and its deepest map serves the coarsest one.
        """
        frame_size = self.frame_size or 0
        return self.side(max(published, frame_size + -frame_size % multiple), multiple)

    def refuse_variant(self) -> None:
        """UsageError where a family without variants is given one."""
        if self.variant:
            family = _parts(self.name)[0]
            raise UsageError(f"{family} has no variant {self.variant!r}", remedy=f"give --teachers {family}")


Loader = Callable[[Request], Teacher]
TEACHERS: Registry[Loader] = Registry("teacher", "polyp_difom.pipeline.teachers")
DEFAULTS: dict[str, str] = {}
"""Variant that a bare family name stands for; families with variants add theirs."""
SEVERAL: set[str] = set()
"""Families whose variant may be several folders, joined by "+"."""


def full_name(name: str) -> str:
    """The one name of a teacher: "sam" -> "sam:vit_b", "sam@mask" -> "sam:vit_b@mask", "medsam@mask" as it is; a folder or hub
    id counts by its last part: "hf:a/b" -> "hf:b", "run:a/b+a/c@mask" -> "run:b+c@mask".

    Raises:
        UsageError: unknown family.
    """
    family, variant = _parts(name)
    TEACHERS.get(family)
    if not variant or variant.startswith("@"):
        return (f"{family}:{DEFAULTS[family]}" if family in DEFAULTS else family) + variant
    parts = variant.split("+") if family in SEVERAL else [variant]
    return f"{family}:{'+'.join(PurePath(part).name for part in parts)}"


def _parts(name: str) -> tuple[str, str]:
    """Family and variant, the variant with the output that may be asked for: "sam:vit_b@mask", "medsam@mask"."""
    family, _, variant = name.partition(":")
    if not variant:
        family, at, output = family.partition("@")
        variant = at + output
    return family, variant


def implied_weights(name: str) -> str | None:
    """The folder or hub id that a name spells out: "hf:a/b" -> "a/b"; None where it has none."""
    variant = name.partition(":")[2]
    return variant.partition("@")[0] if "/" in variant else None


def load_teacher(
    name: str,
    weights: str | None = None,
    input_size: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    frame_size: int | None = None,
) -> Teacher:
    """The teacher called "family" or "family:variant", on the CPU, in eval mode; see `Request`.

    Raises:
        UsageError: unknown family or variant, or an input size that it cannot take.
        MissingDependencyError: package or weights not reachable.
    """
    named = full_name(name)
    family, variant = _parts(named)
    return TEACHERS.get(family)(Request(named, variant or None, weights or implied_weights(name), input_size, say, frame_size))
