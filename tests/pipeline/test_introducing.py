"""What a training says of options that have nothing to act on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.introducing import introduce
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.trainer import Trainer

from ..conftest import Heard

Distilling = Callable[..., DistillConfig]


def _said(config: DistillConfig, store: FeatureStore) -> list[str]:
    heard = Heard()
    trainer = Trainer(config, store, Progress())
    trainer.progress = heard
    introduce(trainer)
    return [line for line in heard.lines if line.startswith("without effect")]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"distill_weight": 3.0}, "--distill-weight 3.0"),
        ({"drop_teachers": 0.5, "weight_schedule": "decay"}, "--weight-schedule decay, --drop-teachers 0.5"),
        ({"weight_schedule": "representation-first"}, "--weight-schedule representation-first"),
    ],
)
def test_options_of_teaching_are_without_effect_for_a_control_which_says_so(
    changes: dict[str, object], options: str, distilling: Distilling, store: FeatureStore
) -> None:
    assert _said(distilling(objective="none", **changes), store) == [
        f"without effect: {options}, as objective none reads no teacher"
    ]
    assert _said(distilling(objective="none"), store) == []


def test_a_single_teacher_is_never_left_out_which_is_said(distilling: Distilling, store: FeatureStore) -> None:
    assert _said(distilling(drop_teachers=0.5, distill_weight=3.0), store) == [
        "without effect: --drop-teachers 0.5, as a single teacher is never left out"
    ]


def test_nothing_is_said_of_options_that_act(distilling: Distilling, store: FeatureStore) -> None:
    assert _said(distilling(distill_weight=3.0, weight_schedule="decay"), store) == []
