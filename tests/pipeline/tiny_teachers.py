"""Every family of teachers at tiny size: the real class with random weights, saved as its users would have it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

from polyp_difom.pipeline.teachers.protocol import Teacher, load_teacher

VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.1,
}  # fmt: skip
STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Tiny:
    """A family member: what it is called, how it is made, and what it must declare."""

    teacher: str
    make: Callable[[], nn.Module]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    side: int = 64
    input_size: int | None = None
    preprocessor: dict[str, Any] | None = None

    def save(self, folder: Path) -> str:
        """Weights of the random model, as `--weights` takes them."""
        torch.manual_seed(0)
        model: Any = self.make()
        if self.teacher.startswith("timm:"):
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), folder / "model.pth")
            return str(folder / "model.pth")
        model.save_pretrained(folder)
        if self.preprocessor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(self.preprocessor))
        return str(folder)


def _swin() -> Any:
    return hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, initializer_range=0.1,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _mask2former() -> nn.Module:
    return hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(
        backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4,
    ))  # fmt: skip


def _oneformer() -> nn.Module:
    return hf.OneFormerModel(hf.OneFormerConfig(
        backbone_config=_swin(), conv_dim=32, mask_dim=24, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4, text_encoder_width=32,
        text_encoder_num_layers=1, text_encoder_vocab_size=64, text_encoder_context_length=8, task_seq_len=8,
    ))  # fmt: skip


def _clip() -> nn.Module:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "vocab_size": 50}
    vision = {**VIT, "image_size": 64, "patch_size": 16}
    return hf.CLIPModel(hf.CLIPConfig(text_config={**text, "bos_token_id": 1, "eos_token_id": 2}, vision_config=vision))


def _siglip() -> nn.Module:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "vocab_size": 50}
    vision = {**VIT, "image_size": 64, "patch_size": 16}
    return hf.SiglipModel(hf.SiglipConfig(text_config={**text, "bos_token_id": 1, "eos_token_id": 2}, vision_config=vision))


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=3)


def _dinov2(registers: int = 0) -> nn.Module:
    shape = {**VIT, "image_size": 56, "patch_size": 14}
    if registers:
        return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(num_register_tokens=registers, **shape))
    return hf.Dinov2Model(hf.Dinov2Config(**shape))


def _dinov3() -> nn.Module:
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(image_size=64, patch_size=16, num_register_tokens=4, **VIT))


PYRAMID = (4, 8, 16, 32)
FOUR = (8, 12, 16, 20)
TINY = {tiny.teacher: tiny for tiny in (
    Tiny("dinov2:small", _dinov2, (14,), (32,), 56),
    Tiny("dinov2:base-registers", lambda: _dinov2(3), (14,), (32,), 56),
    Tiny("dinov2:small@1+3", _dinov2, (14,), (32,), 56),
    Tiny("dinov2:small@1:2:3", _dinov2, (14,) * 3, (32,) * 3, 56),
    Tiny("dinov2:small@1:3", _dinov2, (14,) * 2, (32,) * 2, 56),
    Tiny("dinov3:vits16", _dinov3, (16,), (32,)),
    Tiny("dinov3:convnext-tiny", lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(image_size=64, **STAGES)), PYRAMID, FOUR),
    Tiny("mask2former:swin-tiny-ade-semantic", _mask2former, PYRAMID, (32,) * 4, input_size=64),
    Tiny("oneformer:ade20k_swin_tiny", _oneformer, PYRAMID, (24, 32, 32, 32), input_size=64),
    Tiny("clip:vit-base-patch16", _clip, (16,), (32,)),
    Tiny("siglip:base-patch16-224", _siglip, (16,), (32,)),
    Tiny("hf:vit", lambda: hf.ViTModel(hf.ViTConfig(image_size=64, patch_size=16, **VIT)), (16,), (32,), preprocessor={
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }),
    Tiny("hf:swin", lambda: hf.SwinModel(_swin()), PYRAMID, (8, 16, 32, 64), preprocessor=IMAGENET),
    Tiny("hf:resnet", lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)), PYRAMID, FOUR,
         preprocessor={**IMAGENET, "crop_size": {"height": 64, "width": 64}}),
    Tiny("hf:clip", _clip, (16,), (32,), preprocessor={"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [
        0.26862954, 0.26130258, 0.27577711,
    ]}),
    Tiny("timm:test_resnet", lambda: _timm("test_resnet"), (2, 4, 8, 16, 32), (32, 32, 48, 192, 96), input_size=64),
    Tiny("timm:test_vit", lambda: _timm("test_vit"), (16,), (64,), input_size=64),
)}  # fmt: skip
_HOME = tempfile.TemporaryDirectory(prefix="tiny-teachers-")


@cache
def saved(name: str) -> str:
    """Weights of a tiny teacher, made once."""
    return TINY[name].save(Path(_HOME.name) / name)


def load(name: str, input_size: int | None = None) -> Teacher:
    """A tiny teacher."""
    return load_teacher(name, saved(name), input_size or TINY[name].input_size)
