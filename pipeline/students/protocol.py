"""What a student is: frames in, logits out, and named feature maps that an objective may read on the way.

A new architecture is one new file in this folder: a function `build(variant, latents, pretrained) -> Student` under
`@STUDENTS.register("name")`. Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError, UsageError, first_line
from polyp_difom.pipeline.registry import Registry
from polyp_difom.pipeline.teachers.protocol import IMAGENET_MEAN, IMAGENET_STD


def doubled(maps: Tensor) -> Tensor:
    """Maps [b, c, h, w] -> [b, c, 2h, 2w], bilinear, in the precision they came in.

    CUDA's autocast, unlike the CPU's, gives float32 here; what they are then concatenated with would be made float32 as well.
    """
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False).to(maps.dtype)


@dataclass(frozen=True)
class Tap:
    """A feature map that an objective may read: `stride` frame pixels per cell.

    Attributes:
        role: "encoder", "bottleneck", "decoder" or "latent".
    """

    name: str
    channels: int
    stride: int
    role: str


class Student(nn.Module):
    """Base of all students. Frames come as float [b, 3, s, s] in 0..1; the normalisation is part of the network.

    Args:
        mean, std: of the normalisation, in 0..1, one a channel; ImageNet's unless the encoder's weights want others.

    Attributes:
        taps: what `features` returns beside the logits, by name.
        sides: names of side outputs for deep supervision, logits [b, 1, h, w] at any grid, which `features` returns beside the
            taps in training mode only: evaluation and export pay nothing for them.
        stride: s must be a multiple of it.
        encoder: the part that the `paper` recipe freezes in its last phase.
        pretraining: the weights that `pretrained=True` loads into the encoder, in words; None where there are none to load.
    """

    taps: tuple[Tap, ...]
    sides: tuple[str, ...] = ()
    stride: int
    encoder: nn.Module
    pretraining: str | None = None

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised inputs [b, 3, s, s] -> logits [b, 1, s, s] and every tap's map [b, c, s / stride, s / stride].

        While `self.training`, also the logits of every side output.
        """
        raise NotImplementedError

    def features(self, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Frames [b, 3, s, s] in 0..1 -> (logits [b, 1, s, s], maps of all taps, and of all sides while training)."""
        h, w = frames.shape[-2:]
        if h % self.stride or w % self.stride:
            raise UsageError(
                "the frame side does not fit the student", got=f"{h} x {w}",
                wanted=f"multiples of {self.stride}, for instance {-(-h // self.stride) * self.stride}",
            )  # fmt: skip
        return self.segment((frames - self.mean) / self.std)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, s, s] in 0..1 -> logits [b, 1, s, s]."""
        return self.features(frames)[0]


Builder = Callable[[str | None, bool, bool], Student]
STUDENTS: Registry[Builder] = Registry("student", "polyp_difom.pipeline.students")


def build_student(name: str, latents: bool = False, pretrained: bool = False, encoder_weights: str | None = None) -> Student:
    """The student called "family" or "family:variant", freshly initialised.

    Args:
        latents: with the two latents L1 and L2 of Polyp-DiFoM at the bottleneck, as taps (see latents.py).
        pretrained: with ImageNet weights in the encoder; nothing to load where `Student.pretraining` is None.
        encoder_weights: FILE#sha256=HEX whose weights the encoder gets in their place.

    Raises:
        UsageError: unknown family or variant.
        MissingDependencyError: a package or the pretrained weights are not reachable, or not this encoder's.
    """
    family, _, variant = name.partition(":")
    student = STUDENTS.get(family)(variant or None, latents, pretrained and encoder_weights is None)
    if encoder_weights is not None:
        from polyp_difom.pipeline.students.encoder_weights import load_encoder

        load_encoder(student.encoder, encoder_weights)
    return student


def unreachable(name: str, error: Exception) -> MissingDependencyError:
    """The error of pretrained weights that cannot be downloaded."""
    return MissingDependencyError(
        f"the ImageNet weights of student {name!r} are not reachable", got=first_line(error),
        remedy="give --encoder-weights FILE or --no-pretrained, or run where the model hub can be reached",
    )  # fmt: skip


def parameter_count(module: nn.Module) -> int:
    """Trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
