"""Learning curves from whatever objectives log, alone or several at once."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from polyp_difom.pipeline.report.learning import LastValues, Trace, curves_picture, last_values, learning, traced


@pytest.mark.parametrize(
    ("key", "trace"),
    [
        ("litemedsam/s16/bottleneck/cosine", Trace("litemedsam", "s16 bottleneck", "", "cosine")),
        ("cwd:sam-vit_b/s8/decoder8/low/explained", Trace("cwd:sam-vit_b", "s8 decoder8", "low", "explained")),
        ("hf-owner/name/s8/encoder8/cosine", Trace("hf-owner/name", "s8 encoder8", "", "cosine")),
        ("logit:run-a/s8/agreement", Trace("logit:run-a", "s8", "", "agreement")),
        ("sam/cosine", Trace("sam", "", "", "cosine")),
        ("segmentation", None),
        ("cwd:divergence", None),
    ],
)
def test_names_of_figures_are_taken_apart(key: str, trace: Trace | None) -> None:
    assert traced(key) == trace


def record(epoch: int, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "val_dice": 0.1 * epoch, "seconds": 1.0, "segmentation": 1 / epoch} | more


BOTH = {
    **{f"multiscale:sam/s8/encoder8/{what}": 0.25 for what in ("cosine", "explained", "target_variance")},
    **{f"multiscale:sam/s16/bottleneck/{band}/cosine": 0.5 for band in ("low", "high")},
    "cwd:sam/s8/encoder8/divergence": 3.0,
    "relational:dino/s8/encoder8/cosine": -0.125,
}  # fmt: skip


def test_every_objective_has_its_own_charts() -> None:
    captions = [panel.caption for panel in learning("run", [record(1), record(2, distillation=0.0, **BOTH)])]
    assert captions == [
        "run: validation Dice, best 0.200 in epoch 2.",
        "run: loss on train frames, by part.",
        "run: cosine, multiscale:sam.",
        "run: explained variance, multiscale:sam.",
        "run: target's variance, multiscale:sam.",
        "run: cosine, multiscale:sam, bands at s16 bottleneck.",
        "run: divergence, cwd:sam.",
        "run: cosine, relational:dino.",
    ]


def test_bands_at_several_places_are_told_apart() -> None:
    figures = {f"sam/{place}/{band}/cosine": 0.5 for place in ("s16/latent1", "s16/latent2") for band in ("low", "high")}
    bands = learning("run", [record(1, **figures)])[2]
    assert "low s16 latent1 0.500, high s16 latent1 0.500, low s16 latent2 0.500" in bands.svg


def test_figures_that_only_some_epochs_have_are_drawn_where_they_are() -> None:
    phases = [record(1), record(2, distillation=4.0), record(3)]
    loss = learning("run", phases)[1]
    assert "segmentation 0.333, distillation 4.000" in loss.svg


def test_losses_that_are_all_zero_still_have_an_axis() -> None:
    assert "segmentation 0.000" in learning("run", [{"epoch": 1, "val_dice": 0.0, "segmentation": 0.0}])[1].svg


def test_without_a_history_there_is_nothing_to_draw() -> None:
    assert learning("run", []) == []
    assert last_values([]) == []


def test_last_values_hold_what_was_logged() -> None:
    assert last_values([record(1, **BOTH)]) == [
        LastValues("multiscale:sam/s8/encoder8", 0.25, 0.25, 0.25),
        LastValues("multiscale:sam/s16/bottleneck/low", 0.5, None, None),
        LastValues("multiscale:sam/s16/bottleneck/high", 0.5, None, None),
        LastValues("relational:dino/s8/encoder8", -0.125, None, None),
    ]


def test_the_picture_stands_alone_and_its_charts_do_not_overlap() -> None:
    text = curves_picture("<run> & more", [record(1, **BOTH)])
    assert "var(" not in text
    picture = ET.fromstring(text)  # noqa: S314  (our own text)
    svg = "{http://www.w3.org/2000/svg}"
    places = [(float(part.get("x", 0)), float(part.get("y", 0))) for part in picture.findall(f"{svg}svg")]
    assert len(places) == len(set(places)) == 8
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    assert all(x + 340 <= width and y + 230 <= height for x, y in places)
    assert picture.findall(f"{svg}text")[0].text == "<run> & more"
