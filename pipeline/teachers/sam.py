"""SAM (arXiv 2304.02643) from the segment-anything package, and MedSAM (arXiv 2304.12306) in the same shape.

`@mask` asks for the mask of the whole frame instead of the embedding.
Shapes: b batch, s input side, h w grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers.attention import fuse_attention
from polyp_difom.pipeline.teachers.protocol import DEFAULTS, OWN_WEIGHTS, TEACHERS, Request, Teacher, TeacherSpec
from polyp_difom.pipeline.teachers.weights import fetch, load_into, load_state

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_HOST = "https://dl.fbaipublicfiles.com/segment_anything"
PUBLISHED = {
    "vit_b": f"{_HOST}/sam_vit_b_01ec64.pth#sha256=ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "vit_l": f"{_HOST}/sam_vit_l_0b3195.pth#sha256=3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "vit_h": f"{_HOST}/sam_vit_h_4b8939.pth#sha256=a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
DEFAULTS["sam"] = "vit_b"
SAM_DATA = "SA-1B, natural images: polyp sets not expected"
MEDSAM_DATA = "medical sets that include endoscopy: polyp frames likely, test figures may be flattered"


class MaskTeacher(Teacher):
    """SAM without a prompt: the mean probability of the three masks that its decoder gives for an ambiguous one.

    Their mean, not the one of highest predicted IoU: that one is another for a frame and its mirror image (in 5 of 24 polyp
    frames, with LiteMedSAM's decoder), and follows the lesion no better.
    """

    encoder: Sam
    boxed = False
    """Whether the prompt is a box around the whole frame."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Normalised inputs [b, 3, s, s] -> one map [b, 1, s / 4, s / 4]."""
        side = inputs.shape[-1]
        box = inputs.new_tensor([[0, 0, side, side]], dtype=torch.float32) if self.boxed else None
        sparse, dense = self.encoder.prompt_encoder(points=None, boxes=box, masks=None)
        places = self.encoder.prompt_encoder.get_dense_pe()

        def logits(embedding: Tensor) -> Tensor:
            return self.encoder.mask_decoder(
                image_embeddings=embedding[None], image_pe=places, sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense, multimask_output=True,
            )[0]  # fmt: skip

        three = torch.vmap(logits)(self.encoder.image_encoder(inputs))[:, 0]  # the decoder itself takes one frame at a time
        return (three.float().sigmoid().mean(1, keepdim=True),)


class BoxMaskTeacher(MaskTeacher):
    """MedSAM, which has learned from boxes alone, prompted with a box around the whole frame.

    On 32 frames of Kvasir-SEG the mean mask of LiteMedSAM's decoder reaches an area under the ROC curve of .87 and a Dice of
    .36 with this box, of .73 and .00 without.
    """

    boxed = True


@TEACHERS.register("sam")
def load_sam(request: Request) -> Teacher:
    """`sam:vit_b|vit_l|vit_h`: neck embedding, 256 channels at 1024 / 16 = 64 cells; `sam:vit_b@mask`: soft mask, 256 cells.
    A MedSAM checkpoint loads too, under SAM's preprocessing; `medsam` gives it its own.
    """
    size, at, output = (request.variant or "").partition("@")
    if size not in PUBLISHED or (at and output != "mask"):
        wanted = f"one of: {', '.join(f'sam:{v}' for v in PUBLISHED)}, each also with @mask"
        raise UsageError(f"unknown SAM {request.variant!r}", wanted=wanted)
    data = OWN_WEIGHTS if request.weights else SAM_DATA
    return _load(request, size, request.weights or PUBLISHED[size], "imagenet", data, MaskTeacher if at else None)


@TEACHERS.register("medsam")
def load_medsam(request: Request) -> Teacher:
    """`medsam`: MedSAM's ViT-B with its own preprocessing (each frame scaled to 0..1); its checkpoint must be given.
    `medsam@mask`: soft mask, 256 cells.
    """
    is_mask = request.variant == "@mask"
    if not is_mask:
        request.refuse_variant()
    if request.weights is None:
        raise MissingDependencyError(
            "MedSAM's weights have no published URL with a digest",
            remedy=f"give --weights {request.name}=PATH (medsam_vit_b.pth)",
        )
    return _load(request, "vit_b", request.weights, "minmax", MEDSAM_DATA, BoxMaskTeacher if is_mask else None)


def _load(
    request: Request, size: str, weights: str, preprocessing: str, contamination: str, of_mask: type[MaskTeacher] | None
) -> Teacher:
    """The embedding's teacher, or the mask's of that kind."""
    name = request.name
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise MissingDependencyError(
            f"teacher {name!r} needs the segment-anything package", got=error, remedy="pip install segment-anything"
        ) from error
    path = fetch(weights, teacher=name, licence="Apache-2.0", say=request.say)
    state = load_state(path, teacher=name)
    sam = sam_model_registry[size]()
    encoder, prefix = sam.image_encoder, "" if of_mask else "image_encoder."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    load_into(sam if of_mask else encoder, own, path, teacher=name)
    fuse_attention(encoder)
    side, stride = request.fixed_side(encoder.img_size), encoder.patch_embed.proj.stride[0]
    if of_mask:
        spec = TeacherSpec(name, side, preprocessing, (stride // 4,), (1,), "Apache-2.0", contamination, kind="mask")
        return of_mask(spec, sam)
    channels = (encoder.neck[-1].weight.numel(),)
    return Teacher(TeacherSpec(name, side, preprocessing, (stride,), channels, "Apache-2.0", contamination), encoder)
