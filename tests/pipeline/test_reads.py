"""A store that has been extended goes on serving what was begun before; one that has changed does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import auto
from polyp_difom.pipeline.auto import Candidate
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.agreement import agree
from polyp_difom.pipeline.evaluation.evaluate import evaluate
from polyp_difom.pipeline.export.frames import choose_frames
from polyp_difom.pipeline.extend import ExtendConfig, extend
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.reads import FRAMES, conflicting, parts, parts_named, parts_read
from polyp_difom.pipeline.report.comparison import compare
from polyp_difom.pipeline.report.sweep_page import write_sweep_report
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint, write_checkpoint
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.results import rows
from polyp_difom.pipeline.sweep.run import resolved
from polyp_difom.pipeline.sweep.space import parse_grid
from polyp_difom.pipeline.sweep.worker import work

OLD, NEW = "dinov2:small", "dinov2:base"
Distilling = Callable[..., DistillConfig]
Stores = tuple[Path, Path]


@pytest.fixture(scope="module")
def stores(
    frames: Path, extracting: Callable[..., ExtractConfig], tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stores:
    """A store with one teacher at two scales, and a copy that was given another teacher, with more channels, and two scales."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("stores")
    before, after, weights = folder / "before.zarr", folder / "after.zarr", {OLD: str(tiny_teacher), NEW: str(folder / "new")}
    torch.manual_seed(3)
    shape = Dinov2Config(hidden_size=36, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14)
    Dinov2Model(shape).save_pretrained(weights[NEW])
    extract(extracting(frames, before, scales=("s8", "s16"), channels=64))
    shutil.copytree(before, after)
    for added in ({"teachers": (NEW,)}, {"scales": ("s4", "s32")}):
        extend(ExtendConfig(cache=str(after), device="cpu", weights=weights, **added))
    return before, after


@pytest.fixture
def place(stores: Stores, tmp_path: Path) -> Path:
    """A writable copy of the store as it was before."""
    return Path(shutil.copytree(stores[0], tmp_path / "s.zarr"))


@pytest.fixture
def extending(stores: Stores, place: Path) -> Callable[[], None]:
    """Extends the copy."""
    return lambda: shutil.copytree(stores[1], place, dirs_exist_ok=True) and None


class Stopping(Progress):
    """Ctrl-C after the first epoch, or when a task begins."""

    def __init__(self, at: str = "epoch 1/"):
        self.at = at

    def say(self, text: str) -> None:
        if text.startswith(self.at):
            raise KeyboardInterrupt

    def task(self, label: str, total: int) -> Any:
        if label == self.at:
            raise KeyboardInterrupt
        return super().task(label, total)


def stop(config: DistillConfig, out: Path, at: str = "epoch 1/") -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(config, out, Stopping(at))


def made_older(run: Path) -> None:
    """As a run that was stopped looks where it kept the store's signature alone."""
    path, state = run / "config.yaml", run / "checkpoints/resume.safetensors"
    path.write_text(yaml.safe_dump({name: v for name, v in yaml.safe_load(path.read_text()).items() if name != "reads"}))
    tensors, header = read_checkpoint(state)
    del header["config"]["reads"]
    write_checkpoint(state, tensors, header)


def test_an_extension_keeps_every_part_and_changes_the_signature(stores: Stores) -> None:
    before, after = (FeatureStore.open(path).manifest for path in stores)
    assert list(parts(before)) == [FRAMES, f"{OLD}/s8", f"{OLD}/s16"]
    assert parts(before).items() < parts(after).items()
    assert before.signature() != after.signature()
    assert parts_named(parts(before)) == {"teachers": (OLD,), "scales": ("s8", "s16")}
    assert parts_read(after, [], ["s8"]) == {FRAMES: parts(before)[FRAMES]}


def teacher(**changes: object) -> Callable[[Manifest], dict[str, object]]:
    return lambda held: {"teachers": (held.teachers[0].model_copy(update=changes),)}


@pytest.mark.parametrize(
    ("change", "frames_too"),
    [
        (teacher(weights_digest="another"), False), (teacher(input_size=112), False), (teacher(kind="mask"), False),
        (teacher(channels=8), False), (lambda held: {"basis": held.basis.model_copy(update={"seed": 1})}, False),
        (lambda held: {"precision": "bfloat16"}, False), (lambda held: {"spectra": "low"}, False),
        (lambda held: {"split": held.split.model_copy(update={"seed": 1})}, True),
        (lambda held: {"dataset_digest": "another"}, True), (lambda held: {"frame_size": 96}, True),
        (lambda held: {"views": held.views[::-1]}, True),
    ],
)  # fmt: skip
def test_whatever_is_read_is_in_a_digest(change: Callable[[Manifest], dict], frames_too: bool, store: FeatureStore) -> None:
    manifest = store.manifest
    known, other = parts(manifest), parts(manifest.model_copy(update=change(manifest)))
    differing = {name for name in known if known[name] != other[name]}
    assert differing == {name for name in known if frames_too or name != FRAMES}


def test_another_array_changes_its_own_part_alone(store: FeatureStore) -> None:
    arrays, key = store.manifest.arrays, "teachers/dinov2-small/s16/embedding"
    changed = {**arrays, key: arrays[key].model_copy(update={"dtype": "int8"})}
    known, other = parts(store.manifest), parts(store.manifest.model_copy(update={"arrays": changed}))
    assert [name for name in known if known[name] != other[name]] == [f"{OLD}/s16"]


@pytest.mark.parametrize(("objective", "typed"), [("none", True), ("none", False), ("multiscale", False)])
def test_a_stopped_run_goes_on_over_the_extended_store_and_ends_at_the_same_bytes(
    objective: str, typed: bool, place: Path, extending: Callable[[], None], distilling: Distilling, tmp_path: Path
) -> None:
    config = distilling(cache=str(place), objective=objective, epochs=2)
    whole = distill(config, tmp_path / "whole")
    stop(config, tmp_path / "run")
    extending()
    if typed:
        done = CliRunner().invoke(app, ["distill", "--resume", "-o", str(tmp_path / "run")])
        assert done.exit_code == 0, done.stderr
    else:
        distill(config, tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").last.read_bytes() == whole.last.read_bytes()
    wanted = [FRAMES] if objective == "none" else [FRAMES, f"{OLD}/s8", f"{OLD}/s16"]
    assert list(whole.config()["reads"]) == wanted


def test_a_stopped_run_does_not_go_on_where_what_it_reads_has_changed(
    place: Path, distilling: Distilling, extracting: Callable[..., ExtractConfig], frames: Path, tmp_path: Path
) -> None:
    stop(distilling(cache=str(place)), tmp_path / "taught")
    stop(distilling(cache=str(place), objective="none"), tmp_path / "control")
    shutil.rmtree(place)
    extract(extracting(frames, place, scales=("s8", "s16"), channels=64, spectra="none"))
    done = CliRunner().invoke(app, ["distill", "--resume", "-o", str(tmp_path / "taught")])
    assert done.exit_code == 4
    assert f"{OLD}/s8" in done.stderr
    assert CliRunner().invoke(app, ["distill", "--resume", "-o", str(tmp_path / "control")]).exit_code == 0


def test_a_run_that_kept_the_signature_alone_goes_on_over_its_store_as_it_was_and_no_other(
    place: Path, extending: Callable[[], None], distilling: Distilling, tmp_path: Path
) -> None:
    config = distilling(cache=str(place), epochs=2)
    whole = distill(config, tmp_path / "whole")
    for name in ("run", "late"):
        stop(config, tmp_path / name)
        made_older(tmp_path / name)
    distill(config, tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").last.read_bytes() == whole.last.read_bytes()
    extending()
    with pytest.raises(CacheError, match="not the store"):
        distill(DistillConfig(**RunFolder(tmp_path / "late").config()), tmp_path / "late", resume=True)


@pytest.mark.parametrize("older", [False, True])
def test_pilots_go_on_with_the_teachers_that_there_were(
    older: bool, place: Path, extending: Callable[[], None], distilling: Distilling, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda config, store: [Candidate("multiscale", "multiscale", 1.0)])
    monkeypatch.setattr(auto, "LEAST_FRAMES", 1)  # the store has two validation frames
    config, file = distilling(cache=str(place), objective="auto", epochs=1), tmp_path / "run/pilots/config.yaml"
    whole = distill(config, tmp_path / "whole")
    stop(config, tmp_path / "run", "pilot multiscale")
    if older:
        held = {**yaml.safe_load(file.read_text()), "teachers": None, "scales": None}
        file.write_text(yaml.safe_dump({name: value for name, value in held.items() if name != "reads"}))
    else:
        extending()
    done = CliRunner().invoke(app, ["distill", "--resume", "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert RunFolder(tmp_path / "run").last.read_bytes() == whole.last.read_bytes()


def beginning(place: Path, path: Path, grid: str = "objective=none,multiscale seed=0..1") -> SweepFolder:
    """A sweep that has begun, none of its trials yet."""
    factors = parse_grid("student=unet:4 batch_size=4 epochs=2 precision=float32 " + grid)
    folder = SweepFolder(path)
    folder.create(
        resolved(SweepConfig(cache=str(place), factors=factors, device="cpu", jobs=1, threads=1), FeatureStore.open(str(place)))
    )
    return folder


def going_on(folder: SweepFolder) -> SweepFolder:
    """Trains, as `sweep --resume` does, what is left."""
    config = folder.config()
    work(folder, folder.agreed(resolved(config, FeatureStore.open(config.cache))))
    return folder


def last_checkpoints(folder: SweepFolder) -> dict[str, bytes]:
    return {path.parts[-3]: path.read_bytes() for path in folder.path.glob("runs/*/checkpoints/last.safetensors")}


def test_a_stopped_sweep_trains_all_trials_with_the_teachers_that_there_were(
    place: Path, extending: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its third trial, the first taught one; the fourth has not begun."""
    whole, folder = (beginning(place, tmp_path / name) for name in ("whole", "stopped"))
    going_on(whole)
    log, calls = RunFolder.log, [0]

    def stopping(self: RunFolder, record: dict) -> None:
        log(self, record)
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", stopping)
        with pytest.raises(KeyboardInterrupt):
            going_on(folder)
    assert [row.state for row in rows(folder)] == ["finished", "finished", "interrupted", "waiting"]
    extending()
    assert [row.state for row in rows(going_on(folder))] == ["finished"] * 4
    assert last_checkpoints(folder) == last_checkpoints(whole)
    assert parts_named(yaml.safe_load((folder.path / "sweep.yaml").read_text())["reads"])["teachers"] == (OLD,)
    page = write_sweep_report(folder).read_text()
    assert "another store" not in page
    assert OLD in page
    assert NEW not in page


def test_a_sweep_that_kept_the_signature_alone_goes_on_over_its_store_as_it_was_and_no_other(
    place: Path, extending: Callable[[], None], tmp_path: Path
) -> None:
    folder, file = beginning(place, tmp_path / "sweep", "seed=0"), tmp_path / "sweep/sweep.yaml"
    file.write_text(yaml.safe_dump({name: v for name, v in yaml.safe_load(file.read_text()).items() if name != "reads"}))
    assert [row.state for row in rows(going_on(folder))] == ["finished"]
    assert OLD in write_sweep_report(folder).read_text()
    extending()
    with pytest.raises(CacheError, match="not the store"):
        going_on(folder)
    assert "another store lies there now" in write_sweep_report(folder).read_text()


def test_a_control_that_was_trained_after_the_extension_is_the_control_of_a_run_before_it(
    place: Path, extending: Callable[[], None], distilling: Distilling, frames: Path, tmp_path: Path
) -> None:
    config, paths = distilling(cache=str(place), epochs=1), [tmp_path / name for name in ("taught", "again", "control")]
    for path, objective in zip(paths, ("multiscale", "multiscale", "none"), strict=True):
        distill(config.model_copy(update={"objective": objective, "seed": int(path.name == "again")}), path)
        evaluate(path, (Source(frames),), overlays=0, device="cpu")
        if path.name == "again":
            extending()
    taught, again, control = compare(paths)
    assert taught.control == control.name
    assert taught.recipe == again.recipe
    about = paths[2] / "evaluation/target.json"
    said = json.loads(about.read_text())
    del said["header"]["reads"]  # of an older version: its signature, that of the extended store, is all that it says
    about.write_text(json.dumps(said))
    assert compare(paths)[0].control is None
    said["header"]["signature"] = read_checkpoint(paths[0] / "checkpoints/best.safetensors")[1]["signature"]
    about.write_text(json.dumps(said))
    assert compare(paths)[0].control == control.name


def test_runs_conflict_where_they_read_different_things_under_one_name() -> None:
    control, taught = {"signature": "x", "reads": {"frames": "1"}}, {"signature": "y", "reads": {"frames": "1", "a/s8": "2"}}
    assert not conflicting(control, taught)
    assert conflicting(taught, {"reads": {"frames": "1", "a/s8": "3", "b/s8": "4"}}) == ["a/s8"]
    assert conflicting({"reads": {"frames": "2"}}, taught) == ["frames"]
    assert conflicting({"signature": "x"}, taught) == ["signature"]
    assert not conflicting({"signature": "y"}, taught)


def test_agreement_and_calibration_frames_are_had_from_the_extended_store(
    place: Path, extending: Callable[[], None], distilling: Distilling, tmp_path: Path
) -> None:
    run = distill(distilling(cache=str(place), epochs=1), tmp_path / "run")
    header = read_checkpoint(run.best)[1]
    extending()
    assert {row.teacher for row in agree(run.path, device="cpu").rows} == {OLD, NEW}
    assert len(choose_frames((), header, {"synthetic"}, "int8", stretch=False).calibration) == 20
