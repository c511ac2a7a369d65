"""Presets: every file is a recipe that `distill` takes, and says what it stands for."""

from __future__ import annotations

import pytest

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.weighted import needs_of
from polyp_difom.pipeline.preset import FOLDER, preset_names, read_preset
from polyp_difom.pipeline.recipe import DistillConfig


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_and_says_what_it_reproduces_and_avoids(name: str) -> None:
    config = DistillConfig(cache="s.zarr", **read_preset(name))
    needs_of(config.objective)
    header = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3
    assert "Avoids" in " ".join(header)


def test_the_presets_are_those_that_the_documentation_names() -> None:
    assert preset_names() == ["control", "multiscale", "notebook", "paper"]


def test_the_default_preset_is_the_defaults_and_its_control_differs_in_the_objective_alone() -> None:
    default, multiscale, control = (
        DistillConfig(cache="s", **values) for values in ({}, read_preset("multiscale"), read_preset("control"))
    )
    assert multiscale == default
    assert control == default.model_copy(update={"objective": "none"})


def test_the_published_recipe_is_as_published() -> None:
    paper = DistillConfig(cache="s", **read_preset("paper"))
    assert (paper.optimizer, paper.learning_rate, paper.batch_size, paper.epochs) == ("adam", 1e-4, 6, 75)
    notebook = DistillConfig(cache="s", **read_preset("notebook"))
    assert (paper.loss, paper.flips, paper.colour, paper.affine, paper.latents) == ("dice-bce", True, False, False, True)
    assert notebook == paper.model_copy(update={"objective": "notebook", "latents": False})


def test_an_unknown_preset_is_answered_with_close_matches() -> None:
    with pytest.raises(UsageError, match="unknown preset 'papre'") as caught:
        read_preset("papre")
    assert "did you mean paper" in str(caught.value)
