"""The settings of a training: each does what it says, and none makes a resumed run end at other weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import trainer as training
from polyp_difom.pipeline.averaging import AveragedStudent
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import Feed
from polyp_difom.pipeline.introducing import introduce
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import read_checkpoint, write_checkpoint
from polyp_difom.pipeline.schedule import RATES
from polyp_difom.pipeline.students.protocol import build_student
from polyp_difom.pipeline.trainer import Trainer

Distilling = Callable[..., DistillConfig]
TWO = ("dinov2:small", "dinov2:base")


class Told(Progress):
    """Remembers what was said; Ctrl-C after so many steps, or where a line begins so."""

    def __init__(self, step: int | None = None, line: str | None = None):
        self.lines: list[str] = []
        self.step, self.line = step, line

    def say(self, text: str) -> None:
        self.lines.append(text)
        if self.line and text.startswith(self.line):
            raise KeyboardInterrupt

    def task(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        done = Counter[str]()

        def advance(n: int) -> None:
            done[label] += n
            if self.step is not None and done["distilling"] >= self.step:
                raise KeyboardInterrupt

        return nullcontext(advance)


@pytest.fixture(scope="module")
def pair(
    frames: Path, extracting: Callable[..., ExtractConfig], tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    """A store of two teachers."""
    weights = dict.fromkeys(TWO, str(tiny_teacher))
    return extract(extracting(frames, tmp_path_factory.mktemp("pair") / "s.zarr", teachers=TWO, weights=weights, limit=14))


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students drop a third of their logits while they train."""

    def build(*args: object) -> torch.nn.Module:
        student = build_student(*args)
        whole = student.segment

        def segment(inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits, taps = whole(inputs)
            return F.dropout(logits, 0.3, student.training), taps

        student.segment = segment
        return student

    monkeypatch.setattr(training, "build_student", build)
    monkeypatch.setattr(training, "AveragedStudent", lambda student, decay: Plain(student, decay))


class Plain(AveragedStudent):
    """An average that is built afresh: a patched method does not copy."""

    def __init__(self, student: torch.nn.Module, decay: float):
        self.student, self.decay = build_student("unet:4"), decay
        self.student.load_state_dict(student.state_dict())


@pytest.mark.usefixtures("forgetful")
def test_every_setting_at_once_and_stopped_anywhere_a_resumed_run_ends_at_the_same_weights(
    pair: FeatureStore, distilling: Distilling, tmp_path: Path
) -> None:
    config = distilling(
        cache=str(pair.location), objective="multiscale+shuffled:0.5", weight_schedule="decay", drop_teachers=0.5, ema=0.9,
        patience=2, schedule="cosine", optimizer="adam", weight_decay=1e-4, clip=0.5, colour=False, epochs=4,
    )  # fmt: skip
    whole = distill(config, tmp_path / "whole")
    for number, stop in enumerate(({"step": 2}, {"step": 5}, {"line": "epoch 2/"}, {"line": "stopped early"})):
        run = tmp_path / str(number)
        try:
            distill(config, run, Told(**stop))
        except KeyboardInterrupt:
            torch.manual_seed(999)
            distill(config, run, resume=True)
        for name in ("best", "last"):
            path = f"checkpoints/{name}.safetensors"
            assert (run / path).read_bytes() == (whole.path / path).read_bytes(), (stop, name)


def test_averaged_weights_and_statistics_follow_the_trained_ones_and_are_what_is_saved(
    distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    trainer = Trainer(distilling(objective="none", ema=0.5), store, Progress())
    name, buffer = "weight", "running_mean"
    state = trainer.student.state_dict()
    weight = next(key for key in state if key.endswith(name))
    moving = next(key for key in state if key.endswith(buffer))
    wanted = {key: state[key].clone() for key in (weight, moving)}
    for step, batch in zip(range(3), trainer.batches(0), strict=False):
        trainer.step(batch, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for key in wanted:
            wanted[key] = decay * wanted[key] + (1 - decay) * trainer.student.state_dict()[key]
    kept = trainer.kept.state_dict()
    for key, value in wanted.items():
        torch.testing.assert_close(kept[key], value)
        assert not torch.equal(kept[key], state[key])
    counter = next(key for key in kept if key.endswith("num_batches_tracked"))
    assert int(kept[counter]) == 3
    run = distill(distilling(objective="none", ema=0.5, epochs=1), tmp_path / "averaged")
    plain = distill(distilling(objective="none", epochs=1), tmp_path / "plain")
    averaged, last = load_file(run.last), load_file(plain.last)
    assert averaged.keys() == last.keys()
    assert not torch.equal(averaged[weight], last[weight])


def test_a_decay_that_a_training_is_too_short_for_is_warned_of_with_one_that_fits(
    distilling: Distilling, store: FeatureStore
) -> None:
    def said(ema: float) -> str:
        told = Told()
        introduce(Trainer(distilling(objective="none", ema=ema), store, told))  # 3 epochs of 5 steps
        return "\n".join(line for line in told.lines if "--ema" in line)

    assert "--ema 0.99 averages over about 100 steps, and this training has 15" in said(0.99)
    assert "its decay grows to 0.625 only; --ema 0.62 or less" in said(0.99)
    assert said(0.62) == said(0) == ""


def test_patience_ends_a_training_that_gets_no_better_and_the_best_stays(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: 0.3, 1: 0.5, 2: 0.4, 3: 0.5, 4: 0.9}
    monkeypatch.setattr(Trainer, "validate", lambda self: found[self.epoch])
    told = Told()
    run = distill(distilling(objective="none", epochs=5, patience=2), tmp_path / "run", told)
    assert [record["val_dice"] for record in run.history()] == [0.3, 0.5, 0.4, 0.5]
    assert any("stopped early" in line for line in told.lines)
    assert run.last.is_file()
    assert not run.resume_state.exists()


def test_patience_does_not_run_while_the_teachers_alone_are_learned_from(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4]  # two of eight epochs without segmentation
    monkeypatch.setattr(Trainer, "validate", lambda self: found[self.epoch])
    run = distill(distilling(weight_schedule="representation-first", epochs=8, patience=2), tmp_path / "run")
    assert len(run.history()) == 6


def test_rates_start_and_end_where_they_should() -> None:
    assert [RATES[name](0.0) for name in ("one-cycle", "cosine", "constant")] == pytest.approx([0.04, 1, 1])
    assert [RATES[name](1.0) for name in ("one-cycle", "cosine", "constant")] == pytest.approx([0, 0, 1])
    assert RATES["cosine"](0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change", [{"optimizer": "adam"}, {"schedule": "constant"}, {"clip": 1e-3}, {"colour": False}, {"flips": False}]
)
def test_each_setting_of_the_recipe_reaches_the_weights(
    change: dict[str, object], distilling: Distilling, store: FeatureStore
) -> None:
    ends = []
    for changes in ({}, change):
        trainer = Trainer(distilling(objective="none", **changes), store, Progress())
        for step, batch in zip(range(2), trainer.batches(0), strict=False):
            trainer.step(batch, step)
        ends.append(torch.cat([value.flatten().float() for value in trainer.student.state_dict().values()]))
    assert not torch.equal(*ends)


def test_figures_of_a_teacher_that_sits_steps_out_are_means_over_its_own_steps(
    pair: FeatureStore, distilling: Distilling, tmp_path: Path
) -> None:
    config = distilling(cache=str(pair.location), epochs=2, affine=False, views=1, batch_size=2)
    always, sometimes = (
        distill(config.model_copy(update={"drop_teachers": share}), tmp_path / str(share)).history() for share in (0.0, 0.6)
    )
    for one, two in zip(always, sometimes, strict=True):
        for teacher in ("dinov2-small", "dinov2-base"):
            name = f"{teacher}/s8/encoder8/target_variance"
            assert two[name] == pytest.approx(one[name], rel=0.5)


def test_an_objective_with_phases_of_its_own_drops_no_teacher(distilling: Distilling, store: FeatureStore) -> None:
    with pytest.raises(UsageError, match="all its teachers"):
        Trainer(distilling(objective="paper", drop_teachers=0.5), store, Progress())


def test_a_batch_in_pieces_has_the_gradients_of_the_whole(distilling: Distilling, store: FeatureStore) -> None:
    trainer = Trainer(distilling(objective="none", batch_size=5), store, Progress())
    trainer.student.eval()  # batch norms would see the pieces apart
    batch = next(iter(trainer.batches(0)))
    found = []
    for trainer.pieces in (1, 2, 5):
        losses = trainer._gradients(batch, 0.5)
        found.append((losses.total, [p.grad.clone() for p in trainer.student.parameters() if p.grad is not None]))
    for total, gradients in found[1:]:
        torch.testing.assert_close(total, found[0][0], rtol=1e-3, atol=1e-4)
        for one, two in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, two, rtol=2e-2, atol=2e-3)


def _fits(monkeypatch: pytest.MonkeyPatch, frames: int) -> list[int]:
    """Memory that holds a step of so many frames; returns the sizes that were tried."""
    whole, tried = Trainer._losses, list[int]()

    def losses(self: Trainer, batch, progress: float):
        tried.append(len(batch.frames))
        if len(batch.frames) > frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, batch, progress)

    monkeypatch.setattr(Trainer, "_losses", losses)
    return tried


def test_out_of_memory_the_batch_is_halved_until_it_fits_and_the_training_goes_on(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, told, validated, plain = _fits(monkeypatch, 1), Told(), list[int](), Feed.plain
    monkeypatch.setattr(Feed, "plain", lambda self, size: validated.append(size) or plain(self, size))
    run = distill(distilling(epochs=1), tmp_path / "run", told)
    assert run.last.is_file()
    assert tried == [4, 2] + [1] * 20
    assert validated == [1]
    assert [line.split(" frames")[0] for line in told.lines if line.startswith("out of memory")] == [
        "out of memory: from here on 2", "out of memory: from here on 1"
    ]  # fmt: skip
    assert "batch norms" in "".join(told.lines)


def test_out_of_memory_with_one_frame_is_an_error(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fits(monkeypatch, 0)
    with pytest.raises(RunError, match="out of memory"):
        distill(distilling(epochs=1), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/resume.safetensors").is_file()


def test_few_frames_and_empty_masks_are_told_at_the_start(distilling: Distilling, store: FeatureStore) -> None:
    told = Told()
    trainer = Trainer(distilling(batch_size=100), store, told)
    introduce(trainer)
    assert any("each step takes all 20" in line for line in told.lines)
    assert not any("warning" in line for line in told.lines)
    assert [len(batch.frames) for batch in trainer.batches(0)] == [20]
    for feed in (trainer.train, trainer.val):
        feed.masks = torch.zeros_like(feed.masks)
    introduce(trainer)
    assert [line for line in told.lines if line.startswith(f"warning: all 20 train masks of {store.location} are empty")]
    assert [line for line in told.lines if line.startswith("warning: all 2 val masks")]


def test_a_state_of_another_student_is_refused_by_name(
    distilling: Distilling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(distilling(), tmp_path / "run", Told(line="epoch 1/"))
    monkeypatch.setattr(training, "build_student", lambda *args: build_student("unet:5"))
    with pytest.raises(RunError, match="another student"):
        distill(distilling(), tmp_path / "run", resume=True)


def test_an_objective_has_one_spelling_and_a_name_stands_once() -> None:
    config = DistillConfig(cache="s", objective=" multiscale + cwd:0.5 ", teachers=("a", "b", "a"))
    assert (config.objective, config.teachers) == ("multiscale+cwd:0.5", ("a", "b"))


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip", "distill_weight"])
def test_a_number_of_the_recipe_is_finite(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        DistillConfig(cache="s", **{name: float("inf")})


@pytest.mark.parametrize("lacking", ["pieces", "config"])
def test_a_state_of_an_older_version_is_refused_by_name(lacking: str, distilling: Distilling, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(distilling(), tmp_path / "run", Told(line="epoch 2/"))
    path = tmp_path / "run/checkpoints/resume.safetensors"
    tensors, header = read_checkpoint(path)
    del header[lacking]
    write_checkpoint(path, tensors, header)
    with pytest.raises(RunError, match="older version") as caught:
        distill(distilling(), tmp_path / "run", resume=True)
    assert lacking in str(caught.value.details["got"])
