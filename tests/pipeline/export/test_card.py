"""What a model card tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from polyp_difom.pipeline.export.card import model_card
from polyp_difom.pipeline.export.describe import describe
from polyp_difom.pipeline.models.loading import load_model

FIGURES = ({"dataset": "kvasir-seg", "split": "test", "protocol": "per-image", "images": 100, "mdice": 0.8164, "miou": 0.71},)


@pytest.fixture
def card(run: Path) -> ModelCard:
    header = load_model(run, "cpu").info.header
    header["provenance"]["datasets"] = [{"name": "kv", "layout": "kvasir-seg", "frames": 900}]
    return ModelCard(model_card(describe("taught", header, 1000, "float32", False, FIGURES)))


def test_the_front_matter_holds_licence_library_and_figures(card: ModelCard) -> None:
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("other", "polyp-difom")
    assert "not-a-medical-device" in data["tags"]
    (result,) = [one for one in card.data.eval_results if one.metric_type == "dice"]
    assert (result.dataset_name, result.dataset_split, result.metric_value) == ("kvasir-seg", "test", 0.8164)
    assert "per-image" in result.metric_name


def test_the_text_names_limits_terms_teachers_and_recipe(card: ModelCard) -> None:
    text = card.text
    for words in (
        "not a medical device", "research and educational use only", "`dinov2:small` (", "polyp frames in its own training:",
        "| kvasir-seg | test | per-image | 100 | 0.816 | 0.710 |", "| student | unet:4 |", "| learning rate | 0.01 |", "from_pretrained",
    ):  # fmt: skip
        assert words in text, words


def test_a_network_that_was_never_evaluated_has_no_figures_to_show(run: Path) -> None:
    header = {**load_model(run, "cpu").info.header, "objective": "none", "teachers": [], "provenance": {}}
    card = ModelCard(model_card(describe("control", header, 1000, "float32", False, ())))
    assert card.data.eval_results is None
    assert "Not evaluated." in card.text
    assert "trained on masks alone" in card.text
    assert "Unknown." in card.text


def test_figures_without_leaked_frames_are_told_apart_and_stay_out_of_the_index(run: Path) -> None:
    figures = ({**FIGURES[0], "left_out": 0}, {**FIGURES[0], "images": 97, "mdice": 0.7, "left_out": 3})
    header = load_model(run, "cpu").info.header
    card = ModelCard(model_card(describe("taught", header, 1000, "float32", False, figures)))
    assert [one.metric_value for one in card.data.eval_results] == [0.8164, 0.71]
    assert "| kvasir-seg | test | per-image | 100 | 0.816 | 0.710 |" in card.text
    assert "| kvasir-seg, without 3 leaked frames | test | per-image | 97 | 0.700 | 0.710 |" in card.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "none", "teachers": ["dinov2:small"]}, "trained on masks alone"),
        ({"objective": "multiscale", "teachers": []}, "teachers that are not recorded"),
        ({"objective": "multiscale", "teachers": ["sam:b"]}, "taught by sam:b"),
    ],
)
def test_trained_on_masks_alone_is_said_of_no_other_objective(changes: dict, said: str, run: Path) -> None:
    header = {**load_model(run, "cpu").info.header, **changes, "provenance": {}}
    first = model_card(describe("net", header, 1000, "float32", False, ())).partition("## Intended use")[0]
    assert said in first
    assert ("masks alone" in first) == (changes["objective"] == "none")
