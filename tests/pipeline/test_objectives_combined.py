"""Combinations: weights, a choice of taps, controls, schedules, and names that go into folders and grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.objectives.cwd import ChannelWise
from polyp_difom.pipeline.objectives.multiscale import MultiScale
from polyp_difom.pipeline.objectives.protocol import Needs, Objective, Targets, TargetSpec
from polyp_difom.pipeline.objectives.weighted import build_objective, is_shuffled, needs_of, parse
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.students.protocol import Student, build_student
from polyp_difom.pipeline.sweep.space import named, parse_grid
from polyp_difom.pipeline.trainer import Trainer

SPECS = {
    ("t", "s8"): TargetSpec(4, 8, 8, 1.0),
    ("t", "s16"): TargetSpec(4, 4, 16, 1.0),
    ("t@mask", "s8"): TargetSpec(1, 8, 8, 1.0, "mask"),
}
COMBINED = "multiscale@encoder.decoder+cwd:0.5+relational:0.25"


@pytest.fixture(scope="module")
def student() -> Student:
    return build_student("unet:4").eval()


def settings(store: FeatureStore, objective: str, **changes: object) -> DistillConfig:
    fixed = {"student": "unet:4", "epochs": 2, "batch_size": 4, "device": "cpu", "precision": "float32"}
    return DistillConfig.model_validate({"cache": str(store.location), "objective": objective, **fixed, **changes})


def built(text: str, student: Student, weight: float = 1.0) -> Objective:
    torch.manual_seed(0)
    return build_objective(text, student.taps, SPECS, weight)


# Grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("multiscale", {"multiscale": 1.0}),
        ("multiscale+cwd:0.5", {"multiscale": 1.0, "cwd": 0.5}),
        ("multiscale@decoder:2 + cwd@encoder", {"multiscale@decoder": 2.0, "cwd@encoder": 1.0}),
        ("cwd@decoder.encoder", {"cwd@encoder.decoder": 1.0}),
        ("shuffled:0+cwd", {"shuffled": 0.0, "cwd": 1.0}),
    ],
)
def test_a_combination_is_read_into_weights(text: str, expected: dict[str, float]) -> None:
    assert parse(text) == expected
    assert parse("+".join(f"{name}:{weight}" for name, weight in expected.items())) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multiscale:", "no number"),
        ("multiscale:-1", "no number"),
        ("multiscale:nan", "no number"),
        ("multiscale+", "unknown objective"),
        ("cwd+cwd:2", "there twice"),
        ("cwd@encoder.decoder+cwd@decoder.encoder", "there twice"),
        ("none+cwd", "cannot be combined"),
        ("cwd+paper", "cannot be combined"),
        ("notebook+cwd", "cannot be combined"),
        ("multiscale@", "unknown role"),
        ("multiscale@deocder", "unknown role of taps 'deocder'"),
        ("logit@decoder", "no choice of taps"),
        ("none@decoder", "no choice of taps"),
        ("none:0.5", "no distance to weigh"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_needs_are_those_of_all_members_also_of_weight_0() -> None:
    assert needs_of("multiscale@decoder+cwd:0.5") == Needs(maps=True)
    assert needs_of("shuffled+cwd:0.5") == needs_of("shuffled:0+cwd") == Needs(maps=True, shuffled=True)


def test_combinations_are_values_of_a_grid_and_names_of_folders() -> None:
    factors = parse_grid(f"objective=none,{COMBINED},shuffled:0+cwd seed=0..1")
    assert factors["objective"] == ("none", COMBINED, "shuffled:0+cwd")
    name = named(3, {"objective": COMBINED, "seed": 1}, factors).name
    assert not set(name) & set(':/\\@ *?"<>|')


@pytest.mark.parametrize(
    ("control", "taught", "is_one"),
    [
        ("shuffled", "multiscale", True),
        ("shuffled:0+cwd", "cwd", True),
        ("cwd:0.5+shuffled@decoder:2", "multiscale@decoder:2+cwd:0.5", True),
        ("shuffled:0+multiscale", "multiscale", True),
        ("shuffled", "cwd", False),
        ("shuffled+cwd:0.5", "multiscale+cwd", False),
        ("multiscale", "multiscale", False),
        ("shuffled", "shuffled", False),
        ("shuffled:0", "none", False),
    ],
)
def test_a_control_is_its_objective_with_the_wrong_frames(control: str, taught: str, is_one: bool) -> None:
    assert is_shuffled(control, taught) is is_one


# Choice of taps


@pytest.mark.parametrize(
    ("text", "taps"),
    [
        ("multiscale", ["bottleneck", "decoder8", "encoder8"]),
        ("multiscale@decoder", ["decoder8"]),
        ("cwd@encoder.decoder", ["decoder8", "encoder8"]),
        ("relational@bottleneck", ["bottleneck"]),
    ],
)
def test_only_taps_of_the_chosen_roles_are_taught(text: str, taps: list[str], student: Student) -> None:
    objective = built(text, student)
    _, parts = objective.distance(*student.features(torch.rand(2, 3, 64, 64)), random_targets())
    assert sorted({name.split("/")[2] for name in parts}) == taps
    assert {scale for _, scale in objective.keys} == {"s16" if tap == "bottleneck" else "s8" for tap in taps}


def test_a_role_that_no_map_of_the_store_fits_is_refused(student: Student) -> None:
    with pytest.raises(UsageError, match="stride"):
        build_objective("multiscale@decoder", student.taps, {("t", "s16"): TargetSpec(4, 4, 16, 1.0)})
    with pytest.raises(UsageError, match="no tap of this role"):
        build_objective("cwd@decoder", student.taps[:2], SPECS)


# Weights


def random_targets() -> Targets:
    torch.manual_seed(1)
    return Targets({key: torch.rand(2, spec.channels, spec.cells, spec.cells) for key, spec in SPECS.items()})


def test_the_distance_is_the_weighted_sum_of_the_members(student: Student) -> None:
    outputs, targets = student.features(torch.rand(2, 3, 64, 64)), random_targets()
    objective = built("multiscale@decoder+cwd:0.5+logit:2", student, weight=0.3)
    alone = {name: built(name, student) for name in ("multiscale@decoder", "cwd", "logit")}
    for (_, mine), other in zip(objective.members.values(), alone.values(), strict=True):
        other.load_state_dict(mine.state_dict())
    each = {name: other.distance(*outputs, targets)[0] for name, other in alone.items()}
    losses = objective(torch.ones(()), *outputs, targets, 0.0)
    expected = each["multiscale@decoder"] + 0.5 * each["cwd"] + 2 * each["logit"]
    torch.testing.assert_close(losses.total, 1 + 0.3 * expected)
    assert "multiscale@decoder:t/s8/decoder8/cosine" in losses.parts
    assert "cwd:t/s16/bottleneck/cosine" in losses.parts


@pytest.mark.parametrize(("text", "kind"), [("cwd:0.5", ChannelWise), ("shuffled:0+cwd:0.5", ChannelWise)])
def test_a_single_member_keeps_its_weight_and_its_plain_figures(text: str, kind: type[Objective], student: Student) -> None:
    objective = built(text, student, weight=0.3)
    assert isinstance(objective, kind)
    assert objective.shares(0.5) == (1.0, 0.15)


# Controls


def test_the_control_differs_from_what_it_controls_in_the_targets_alone(make_store: Callable[..., FeatureStore]) -> None:
    store = make_store()
    for control, taught in (("shuffled:0+cwd", "cwd"), ("shuffled+cwd:0.5", "multiscale+cwd:0.5")):
        wrong, right = (Trainer(settings(store, name), store, Progress()) for name in (control, taught))
        for a, b in ((wrong.student, right.student), (wrong.objective, right.objective)):
            assert list(a.state_dict()) == list(b.state_dict())
            assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        one, two = (next(t.train.epoch(0, 4, 0, t.affine)) for t in (wrong, right))
        assert torch.equal(one.frames, two.frames)
        assert one.targets.maps.keys() == two.targets.maps.keys()
        assert not any(torch.equal(one.targets.maps[key], two.targets.maps[key]) for key in one.targets.maps)


def test_a_member_of_weight_0_costs_no_computation_and_loads_no_map(
    make_store: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MultiScale, "__init__", None)
    store = make_store()
    distill(settings(store, "shuffled:0+cwd", epochs=1), tmp_path / "run")
    nothing = Trainer(settings(store, "shuffled:0"), store, Progress())
    assert not nothing.train.maps
    assert not list(nothing.objective.parameters())


# A whole run


def test_a_combination_trains_and_resumes_to_the_same_weights(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    config = settings(make_store(), COMBINED)
    whole = distill(config, tmp_path / "whole")

    def stop(epoch: int, dice: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        distill(config, tmp_path / "stopped", watch=stop)
    resumed = distill(config, tmp_path / "stopped", resume=True)
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    figures = whole.history()[-1]
    for name in ("multiscale@encoder.decoder:toy-a/s8/decoder8", "cwd:toy-a/s16/bottleneck", "relational:toy-a/s16/bottleneck"):
        assert {f"{name}/{what}" for what in ("cosine", "explained", "target_variance")} <= figures.keys()
    assert "multiscale@encoder.decoder:toy-a/s16/bottleneck/cosine" not in figures


@pytest.mark.parametrize(("text", "weight"), [("multiscale", 0.0), ("multiscale:0", 1.0)])
def test_teachers_that_weigh_nothing_cannot_come_first(text: str, weight: float, student: Student) -> None:
    with pytest.raises(UsageError, match="nothing would be learned"):
        build_objective(text, student.taps, SPECS, weight, "representation-first")
    build_objective(text, student.taps, SPECS, weight, "decay")


@pytest.mark.parametrize("text", ["auto+cwd", "auto"])
def test_auto_is_no_part_of_a_combination_or_a_sweep(text: str) -> None:
    with pytest.raises(UsageError, match="auto chooses"):
        parse(text)
