"""What a sweep varies: factors as typed or in YAML, and the trials that are made of them."""

from __future__ import annotations

import pytest

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.sweep.folder import SweepConfig
from polyp_difom.pipeline.sweep.space import Span, checked, combinations, from_yaml, named, networks, parse_grid


def test_words_become_factors_with_typed_values() -> None:
    found = parse_grid("student=unet:8,smp:FPN/resnet18 learning-rate=1e-3,0.01 affine=true,false seed=0..2")
    assert found == {
        "student": ("unet:8", "smp:FPN/resnet18"), "learning_rate": (0.001, 0.01), "affine": (True, False), "seed": (0, 1, 2),
    }  # fmt: skip


def test_a_range_of_fractions_is_drawn_from_in_logarithms_where_it_is_wide() -> None:
    assert parse_grid("learning_rate=1e-4..1e-2") == {"learning_rate": Span(1e-4, 1e-2, log=True)}
    assert parse_grid("distill_weight=0.5..2.0") == {"distill_weight": Span(0.5, 2.0)}


def test_a_file_says_the_same_as_the_words() -> None:
    held = {"student": ["unet:8"], "learning-rate": {"low": 1e-4, "high": 1e-2, "log": True}, "seed": "0..2", "epochs": 3}
    assert from_yaml(held) == parse_grid("student=unet:8 learning-rate=1e-4..1e-2 seed=0..2 epochs=3")


@pytest.mark.parametrize(
    "held", [{"low": "few", "high": 1}, {"low": 1}, {"low": None, "high": 1}, {"low": 0, "high": 1, "by": 2}]
)
def test_a_range_in_a_file_that_is_none_is_refused(held: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="is no range"):
        from_yaml({"learning-rate": held})


def test_what_only_looks_like_a_range_is_a_value() -> None:
    assert parse_grid("student=1.2.3..4") == {"student": ("1.2.3..4",)}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("studnt=unet", "student"), ("seed=3..1", "rise"), ("seed", "without a name or a value"), ("seed=1 seed=2", "twice"),
        ("student=unett", "unet"), ("objective=multscale", "multiscale"), ("epochs=0", "greater than 0"),
        ("epochs=few", "epochs"), ("teachers=sam", "dinov2:small"), ("seed=,", "no value"), ("cache=x", "no factor"),
        ("views=1..3", "fewer views"), ("channels=65", "fewer channels"), ("scales=s99", "s99"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_with_what_can(store: FeatureStore, grid: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(parse_grid(grid), store, "grid")


def test_a_grid_refuses_ranges_that_only_draws_can_use(store: FeatureStore) -> None:
    factors = parse_grid("learning_rate=1e-4..1e-2")
    assert checked(factors, store, "random") == factors
    with pytest.raises(UsageError, match="--sampler random"):
        checked(factors, store, "grid")
    with pytest.raises(UsageError, match="latents cannot be"):
        checked(parse_grid("latents=0.0..1.0"), store, "random")


def test_teachers_are_joined_by_a_plus_even_where_a_name_holds_one(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [
        entry.model_copy(update={"name": name})
        for name in ("sam:vit_b", "dinov2:base@9+12")
        for entry in store.manifest.teachers
    ]
    manifest = store.manifest.model_copy(update={"teachers": tuple(held)})
    other = FeatureStore(store.location, manifest, store.samples, writable=False)
    found = checked(parse_grid("teachers=dinov2:base@9+12+sam:vit_b,all"), other, "grid")
    assert found["teachers"] == ("dinov2:base@9+12+sam:vit_b", None)
    families = checked(parse_grid("teachers=sam,dinov2+sam,dinov2@9+12"), other, "grid")
    assert families["teachers"] == ("sam:vit_b", "dinov2:base@9+12+sam:vit_b", "dinov2:base@9+12")


def test_controls_that_differ_in_what_they_do_not_read_are_one_trial() -> None:
    factors = parse_grid("objective=none,multiscale teachers=a,b,a+b distill_weight=0.5,1 seed=0..1")
    found = combinations(factors, "grid", None, 0)
    assert len(found) == 2 + 12
    assert {"objective": "none", "seed": 1} in found


def test_an_objective_that_implies_latents_has_one_trial_whatever_is_asked_for() -> None:
    factors = parse_grid("student=unet:4,light objective=none,paper latents=false,true")
    found = combinations(factors, "grid", None, 0)
    assert len(found) == 4 + 2
    assert {"student": "light", "objective": "paper"} in found
    assert networks(factors) == ("unet:4", "unet:4 with latents", "light", "light with latents")
    assert networks(parse_grid("objective=paper")) == ("unet with latents",)
    trials = {tuple(settings.values()): named(0, settings, factors).network for settings in found}
    assert trials["light", "paper"] == trials["light", "none", True] == "light with latents"


def test_random_draws_are_distinct_repeatable_and_from_the_grid() -> None:
    factors = parse_grid("student=unet:4,unet:8 seed=0..9")
    found = combinations(factors, "random", 7, seed=1)
    assert found == combinations(factors, "random", 7, seed=1) != combinations(factors, "random", 7, seed=2)
    assert len({str(row) for row in found}) == 7
    assert all(row in combinations(factors, "grid", None, 0) for row in found)


def test_draws_from_a_range_stay_in_it_and_fill_both_its_ends() -> None:
    drawn = [row["learning_rate"] for row in combinations(parse_grid("learning_rate=1e-4..1e-2"), "random", 200, seed=0)]
    assert 1e-4 <= min(drawn) < 2e-4
    assert 5e-3 < max(drawn) <= 1e-2
    assert 80 < sum(rate < 1e-3 for rate in drawn) < 120


def test_names_of_trials_say_what_differs_and_fit_a_file_system() -> None:
    factors = parse_grid("student=smp:FPN/resnet18,unet objective=none seed=0..1")
    rows = combinations(factors, "grid", None, 0)
    assert [named(n, row, factors).name for n, row in enumerate(rows)] == [
        "000-smp-FPN-resnet18-s0", "001-smp-FPN-resnet18-s1", "002-unet-s0", "003-unet-s1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "random"},
        {"trials": 3},
        {"optimise": ("latency",)},
        {"optimise": ("dice", "latency")},
        {"optimise": ("dice", "dice")},
        {"jobs": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        SweepConfig(cache="x", factors={"seed": (0,)}, **changes)
