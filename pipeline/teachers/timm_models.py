"""Any backbone of timm (Apache-2.0) that gives dense features: `timm:<model>`, stage maps or a ViT's patch tokens."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import OWN_WEIGHTS, TEACHERS, Request, Teacher, TeacherSpec, preprocessing_name
from polyp_difom.pipeline.teachers.weights import fetch, load_into, load_state


class TimmTeacher(Teacher):
    """The maps of every stage; of a plain ViT the last block's patch tokens under the final norm."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> maps [b, c, s / stride, s / stride]."""
        plain = len(self.spec.strides) == 1
        return tuple(self.encoder.forward_intermediates(  # type: ignore[operator]
            inputs, indices=1 if plain else None, norm=plain, output_fmt="NCHW", intermediates_only=True,
        ))  # fmt: skip


@TEACHERS.register("timm")
def load_timm(request: Request) -> Teacher:
    """`timm:resnet50.a1_in1k`, `timm:vit_small_patch14_dinov2` and so on; `weights` may be a timm checkpoint."""
    if request.variant is None:
        raise UsageError("timm needs a model", got=request.name, wanted="timm:MODEL",
                         remedy="give a name of timm's, for instance --teachers timm:resnet50.a1_in1k")  # fmt: skip
    encoder = _build(request, request.variant)
    facts = encoder.pretrained_cfg
    data = OWN_WEIGHTS if request.weights else f"timm's {facts.get('tag') or 'default'} weights, see their card"
    return teacher_of(request, encoder, preprocessing_name(facts["mean"], facts["std"], request.name), data)


def teacher_of(request: Request, encoder: Any, preprocessing: str, data: str) -> TimmTeacher:
    """A timm model as a teacher, at the wanted input side.

    Raises:
        UsageError: a model that gives no dense maps, or does not take another input side.
    """
    if not hasattr(encoder, "forward_intermediates"):
        raise UsageError("no dense map can be had from this model", where=request.name, remedy="choose another timm model")
    facts = encoder.pretrained_cfg
    info: list[dict[str, Any]] = list(getattr(encoder.feature_info, "info", encoder.feature_info))
    if len({stage["reduction"] for stage in info}) == 1:
        info = info[-1:]
    strides, channels = (tuple(int(stage[key]) for stage in info) for key in ("reduction", "num_chs"))
    native = int(facts["input_size"][-1])
    pyramid = len(strides) > 1 and not facts.get("fixed_input_size")
    side = (request.pyramid_side if pyramid else request.side)(native, strides[-1])
    if side != native and facts.get("fixed_input_size"):
        if not hasattr(encoder, "set_input_size"):
            request.fixed_side(native)
        encoder.set_input_size(img_size=side)
    licence = facts.get("license") or "as its model card states"
    return TimmTeacher(TeacherSpec(request.name, side, preprocessing, strides, channels, licence, data), encoder)


def _build(request: Request, model: str) -> Any:
    """The model without its classifier, with the user's checkpoint or the hub's weights."""
    import timm

    try:
        facts = timm.get_pretrained_cfg(model)
    except RuntimeError:  # an unknown tag
        facts = None
    if not timm.is_model(model) or facts is None:
        close = difflib.get_close_matches(model, timm.list_models(pretrained="." in model), n=3)
        raise UsageError(
            f"unknown timm model {model!r}", got=request.name, wanted="a name of timm.list_models(pretrained=True)",
            remedy=f"did you mean {' or '.join(close)}?" if close else None,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm maps old names to new ones aloud
        return _own(request, model, request.weights) if request.weights else _published(request, model, facts)


def _own(request: Request, model: str, weights: str) -> Any:
    import timm

    encoder: Any = timm.create_model(model, num_classes=0)
    path = fetch(weights, teacher=request.name, say=request.say)
    heads = encoder.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    state = {key: value for key, value in load_state(path, teacher=request.name).items() if not key.startswith(prefixes)}
    load_into(encoder, state, path, teacher=request.name)
    return encoder


def _published(request: Request, model: str, facts: Any) -> Any:
    import timm

    source = facts.hf_hub_id or facts.url
    if not source:
        raise MissingDependencyError(f"timm has no weights for {model!r}", remedy=f"give --weights {request.name}=PATH")
    if facts.hf_hub_id:
        hub.announce(request, source, facts.license or "as its model card states")
    try:
        return timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's, the network's or timm's own
        raise hub.unreachable(request, source, error) from error
