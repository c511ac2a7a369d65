"""Trained students as teachers: their maps, their probability, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from polyp_difom.cache.errors import CacheError, DataError, PolypDifomError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import target_specs
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.recompute import recompute
from polyp_difom.pipeline.repair import repair
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint
from polyp_difom.pipeline.showing import show
from polyp_difom.pipeline.teachers.protocol import full_name, implied_weights, load_teacher, weights_digest

from ..conftest import Heard

Extracting = Callable[..., ExtractConfig]
Distilling = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def second(distilling: Distilling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another student, of one epoch; never write to it."""
    return distill(distilling(epochs=1, seed=1, objective="none"), tmp_path_factory.mktemp("runs") / "second").path


@pytest.fixture
def teaching(finished_run: Path, extracting: Extracting, frames: Path) -> Callable[..., ExtractConfig]:
    """Configurations that ask `finished_run` for its mask."""

    def make(cache: Path, **changes: object) -> ExtractConfig:
        return extracting(frames, cache, **{"teachers": (f"run:{finished_run}@mask",), "weights": {}, **changes})

    return make


@pytest.fixture
def masks(teaching: Callable[..., ExtractConfig], tmp_path: Path) -> FeatureStore:
    return extract(teaching(tmp_path / "masks.zarr"))


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


# What it gives


def test_a_student_counts_what_its_teacher_learned_from_as_seen(
    finished_run: Path, copied: Path, teaching: Callable[..., ExtractConfig], distilling: Distilling, tmp_path: Path
) -> None:
    with (copied / "samples.csv").open("a") as file:
        file.write("elsewhere/1,0123abcd,train\n")
    store = extract(teaching(tmp_path / "masks.zarr", teachers=(f"run:{copied}@mask",)))
    taught = distill(distilling(cache=str(store.location), epochs=1, objective="logit"), tmp_path / "taught")
    control = distill(distilling(cache=str(store.location), epochs=1, objective="none"), tmp_path / "control")
    assert taught.seen()["0123abcd"] == "train"
    assert "elsewhere" in taught.datasets()
    assert "0123abcd" not in control.seen()


class Learned:
    """A store that knows nothing but what its teachers learned from."""

    location = "s.zarr"

    def __init__(self, **frames: object):
        self.held = {schema.learned_group(name): ({}, {"frames": rows}) for name, rows in frames.items()}

    def read_constants(self, group: str) -> object:
        return self.held.get(group)


def row(digest: str, split: str) -> dict[str, str]:
    return {"id": "a", "pixel_sha256": digest, "split": split}


def test_of_several_teachers_learned_from_counts_before_selected_on() -> None:
    store: Any = Learned(a=[row("1", "train"), row("2", "val")], b=[row("1", "test"), row("2", "train"), row("3", "val")])
    found = schema.learned_by(store, ("a", "b", "c"))
    assert {each["pixel_sha256"]: each["split"] for each in found} == {"1": "train", "2": "train", "3": "val"}


@pytest.mark.parametrize("rows", [None, "abc", [1], [{"id": "a"}], [{**row("1", "val"), "more": "x"}], [row(1, "val")]])  # type: ignore[arg-type]
def test_a_damaged_list_of_what_a_teacher_learned_from_is_refused(rows: object) -> None:
    store: Any = Learned(a=rows)
    with pytest.raises(CacheError, match="what teacher 'a' learned from is damaged"):
        schema.learned_by(store, ("a",))


def test_a_folder_with_an_at_in_its_name_is_told_how_to_be_named(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "unet@decoder")
    with pytest.raises(UsageError, match="unknown output") as caught:
        load_teacher(f"run:{folder}@mask")
    assert "--weights run:NAME=FOLDER" in str(caught.value)
    assert load_teacher("run:mine@mask", str(folder)).spec.kind == "mask"


@pytest.mark.parametrize(
    ("typed", "name", "weights"),
    [
        ("run:runs/large", "run:large", "runs/large"),
        ("run:./large/", "run:large", "./large/"),
        ("run:runs/a@mask", "run:a@mask", "runs/a"),
        ("run:runs/a+other/b@mask", "run:a+b@mask", "runs/a+other/b"),
        ("run:sweeps/s/runs/003-t-sam+dino@mask", "run:003-t-sam+dino@mask", "sweeps/s/runs/003-t-sam+dino"),
        ("run:a+b@mask", "run:a+b@mask", None),
        ("hf:some+where/model", "hf:model", "some+where/model"),
    ],
)
def test_runs_count_by_the_last_part_of_their_folders(typed: str, name: str, weights: str | None) -> None:
    assert (full_name(typed), full_name(name), implied_weights(typed)) == (name, name, weights)


def test_maps_are_the_student_s_own_finest_first(finished_run: Path) -> None:
    teacher = load_teacher(f"run:{finished_run}")
    student = load_model(finished_run, "cpu").student  # type: ignore[attr-defined]
    frames = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = student.features(frames)[1]
    for got, name in zip(teacher(frames), ("encoder8", "decoder8", "bottleneck"), strict=True):
        torch.testing.assert_close(got, maps[name])
    spec = teacher.spec
    assert (spec.name, spec.input_size, spec.strides, spec.channels) == ("run:finished", 64, (8, 8, 16), (32, 32, 64))
    assert spec.kind == "features"
    assert spec.contamination.startswith("trained on: synthetic (20 train and 2 val frames); taught by dinov2:small (")
    assert "synthetic: its terms are for you to check; teacher dinov2:small: Apache-2.0" in spec.licence


def test_a_mask_is_the_mean_probability_that_evaluation_would_see(finished_run: Path, second: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    alone, other = (load_model(path, "cpu").logits(frames).sigmoid() for path in (finished_run, second))
    inputs = torch.from_numpy(frames).float() / 255
    ensemble = load_teacher(f"run:{finished_run}+{second}@mask")
    with torch.autocast("cpu", torch.bfloat16):
        (single,) = load_teacher(f"run:{finished_run}@mask")(inputs)
        (mean,) = ensemble(inputs)
    torch.testing.assert_close(single, alone)
    torch.testing.assert_close(mean, (alone + other) / 2)
    spec = ensemble.spec
    assert (spec.name, spec.kind, spec.strides, spec.channels) == ("run:finished+second@mask", "mask", (1,), (1,))


def test_a_run_s_maps_are_float32s_whatever_the_precision(finished_run: Path) -> None:
    teacher, inputs = load_teacher(f"run:{finished_run}"), torch.rand(1, 3, 64, 64)
    exact = teacher(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = teacher(inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, exact, strict=True))


def test_a_plus_in_a_folder_s_name_is_no_ensemble(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "000-sam+dino")
    teacher = load_teacher(f"run:{folder}@mask")
    assert weights_digest(teacher.encoder) == weights_digest(load_teacher(f"run:{finished_run}@mask").encoder)


# In a store


def test_a_stored_mask_is_each_cell_s_mean_probability(masks: FeatureStore, finished_run: Path) -> None:
    (entry,) = masks.manifest.teachers
    assert (entry.kind, entry.channels, entry.maps) == ("mask", 1, ())
    frames = masks.read(schema.IMAGE)
    model = load_model(finished_run, "cpu")
    for view, flipped in enumerate((frames, frames[..., ::-1].copy())):
        probability = model.logits(flipped).sigmoid()
        for scale, cells in masks.manifest.scales.items():
            stored = torch.from_numpy(masks.read(schema.embedding_key(entry.name, scale))[:, view])
            torch.testing.assert_close(stored.float(), area_resample(probability, cells), atol=6e-4, rtol=0)
    specs = target_specs(masks, (entry.name,))
    maps = masks.read(schema.embedding_key(entry.name, "s8"))[[split == "train" for split in masks.samples.split], 0]
    assert specs[entry.name, "s8"].kind == "mask"
    assert specs[entry.name, "s8"].std == pytest.approx(maps.astype(float).std(), rel=0.01)
    told = CliRunner().invoke(app, ["cache", "info", str(masks.location)])
    assert "1 (mask)" in told.output
    assert masks.read_constants(schema.equivariance_group(entry.name)) is not None


def test_int8_masks_are_off_by_half_a_step_at_most(
    teaching: Callable[..., ExtractConfig], masks: FeatureStore, tmp_path: Path
) -> None:
    small = extract(teaching(tmp_path / "small.zarr", dtype="int8"))
    key = schema.embedding_key("run:finished@mask", "s8")
    assert small.read(key).dtype == np.int8
    moved = np.abs(small.read(key) * schema.steps_of(small)[key] - masks.read(key).astype(np.float32))
    assert 0 < moved.max() <= 0.5 / 127 + 6e-4


def test_a_store_without_masks_says_nothing_of_kinds(store: FeatureStore) -> None:
    assert "kind" not in store.manifest.model_dump(mode="json")["teachers"][0]


def test_masks_are_added_recomputed_and_mended(
    store: FeatureStore, finished_run: Path, masks: FeatureStore, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(str(store.location), tmp_path / "both.zarr"))
    name, given = "run:finished@mask", {"run:finished@mask": str(finished_run)}
    extended = extend(ExtendConfig(cache=str(place), teachers=(f"run:{finished_run}@mask",), device="cpu"))
    key = schema.embedding_key(name, "s8")
    np.testing.assert_array_equal(extended.read(key), masks.read(key))
    rows = recompute(masks, 3, weights=given, device="cpu")
    assert {row.exact for row in rows} == {1.0}
    (place / extended.sharded(key).file(0)).unlink()
    mended = repair(str(place), FeatureStore.open(place).verify(), weights=given, device="cpu").mended
    assert [item.key for item in mended] == [key]
    np.testing.assert_array_equal(FeatureStore.open(place).read(key), masks.read(key))


def test_masks_are_shown_in_grey_between_0_and_1(masks: FeatureStore) -> None:
    sheet = np.asarray(show(masks, [masks.samples.ids[0]]))
    panels = sheet[:, 2 * (masks.manifest.frame_size + 6) :]
    assert (panels == panels[..., :1]).all()
    plain = masks.read(schema.embedding_key("run:finished@mask", "s32"), np.array([[0, 0]]))[0, 0]
    assert round(255 * float(plain[0, 0])) in panels


# What is refused


def test_other_weights_are_another_teacher(copied: Path, teaching: Callable[..., ExtractConfig], tmp_path: Path) -> None:
    make = lambda: teaching(tmp_path / "s.zarr", teachers=(f"run:{copied}@mask",))  # noqa: E731
    made = extract(make())
    tensors, header = read_checkpoint(copied / "checkpoints/best.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + 1
    write_checkpoint(copied / "checkpoints/best.safetensors", tensors, header)
    with pytest.raises(CacheError, match="weights_digest"):
        extract(make())
    with pytest.raises(CacheError, match="not the one that made the store"):
        recompute(made, 1, weights={"run:copied@mask": str(copied)}, device="cpu")


def test_a_run_that_learned_from_test_frames_may_not_teach(teaching: Callable[..., ExtractConfig], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows a test frame"):
        extract(teaching(tmp_path / "s.zarr", seed=5))
    assert not (tmp_path / "s.zarr").exists()


def test_a_run_that_learned_from_validation_frames_is_named(
    teaching: Callable[..., ExtractConfig], store: FeatureStore, frames: Path, tmp_path: Path
) -> None:
    stems = {name.partition("/")[2]: split for name, split in zip(store.samples.ids, store.samples.split, strict=True)}
    learned = [stem for stem, split in stems.items() if split == "train"][:3]
    everything = [path.stem for path in sorted((frames / "images").iterdir())]
    rows = [f"{stem},{'val' if stem in learned else stems.get(stem, 'test')}" for stem in everything]
    (tmp_path / "split.csv").write_text("\n".join(["stem,split", *rows]))
    heard = Heard()
    extract(teaching(tmp_path / "s.zarr", split_by=str(tmp_path / "split.csv")), heard)
    assert "learned from 3 of the 5 validation frames" in "".join(text for text in heard.lines if "warning" in text)


def _of_other_weights(run: Path) -> None:
    tensors, header = read_checkpoint(run / "checkpoints/best.safetensors")
    write_checkpoint(run / "checkpoints/best.safetensors", tensors, {**header, "student": "unet:8"})


def _damaged(run: Path) -> None:
    best = run / "checkpoints/best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no run here"),
        (lambda run: shutil.rmtree(run), "no run here"),
        (lambda run: (run / "checkpoints/best.safetensors").unlink(), "best checkpoint is missing"),
        (lambda run: (run / "checkpoints/resume.safetensors").touch(), "not finished"),
        (lambda run: (run / "samples.csv").unlink(), "list of frames cannot be read"),
        (_damaged, "damaged"),
        (_of_other_weights, "not those of the student"),
    ],
    ids=["no config", "no folder", "no checkpoint", "unfinished", "no list of frames", "damaged", "another size"],
)
def test_what_is_no_finished_run_is_refused(copied: Path, harm: Callable[[Path], object], said: str) -> None:
    harm(copied)
    with pytest.raises(RunError, match=said):
        load_teacher(f"run:{copied}@mask")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run", "needs the folder"),
        ("run:finished", "needs the folder"),
        ("run:{0}@logits", "unknown output"),
        ("run:{0}+{1}", "no mean"),
        ("run:{0}+{0}@mask", "named twice"),
    ],
)
def test_a_name_that_cannot_be_a_teacher_is_refused(name: str, said: str, finished_run: Path, second: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_teacher(name.format(finished_run, second))


def test_frames_of_another_size_are_refused(
    teaching: Callable[..., ExtractConfig], finished_run: Path, copied: Path, tmp_path: Path
) -> None:
    tensors, header = read_checkpoint(copied / "checkpoints/best.safetensors")
    write_checkpoint(copied / "checkpoints/best.safetensors", tensors, {**header, "frame_size": 96})
    other: list[Callable[[], object]] = [
        lambda: extract(teaching(tmp_path / "s.zarr", size=96)),
        lambda: extract(teaching(tmp_path / "s.zarr", teachers=(f"run:{copied}",))),
        lambda: load_teacher(f"run:{finished_run}@mask", input_size=96),
        lambda: load_teacher(f"run:{finished_run}+{copied}@mask"),
    ]
    for attempt in other:
        with pytest.raises(PolypDifomError, match="size") as caught:
            attempt()
        assert "64" in str(caught.value)
        assert "96" in str(caught.value)
