"""torch.compile in a training: kept where it pays and computes the same, else the run is what it is without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import compiling
from polyp_difom.pipeline.compiling import Compiling
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.sweep.space import FACTORS
from polyp_difom.pipeline.trainer import Trainer

from ..conftest import Heard

Distilling = Callable[..., DistillConfig]
EAGER_MS, FAST_MS = 100.0, 60.0


class Clock:
    """Stands still but for forward passes: so many seconds each, and more for the first one that is compiled."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Compiler:
    """In place of torch.compile: what it returns takes another time, and counts its calls."""

    def __init__(
        self, clock: Clock, *, first: float = 0.1, ms: float = FAST_MS, change: Callable[[Tensor], Tensor] = lambda x: x
    ):
        self.clock, self.first, self.ms, self.change = clock, first, ms, change
        self.calls: list[bool] = []

    def __call__(self, features: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fast(frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            student = features.__self__  # type: ignore[attr-defined]
            self.clock.now += self.first if not self.calls else self.ms / 1e3
            self.calls.append(student.training)
            logits, taps = type(student).features(student, frames)
            return self.change(logits), taps

        return fast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of training steps, with three timed ones each way; an eager one takes a tenth of a second."""
    clock = Clock()
    real = Compiling.step

    def step(self: Compiling, descend: Callable[[], Any], left: int) -> Any:
        def timed() -> Any:
            clock.now += EAGER_MS / 1e3 if self.features == self.student.features else 0
            return descend()

        return real(self, timed, left)

    monkeypatch.setattr(compiling, "time", clock)
    monkeypatch.setattr(compiling, "WARM", 1)
    monkeypatch.setattr(compiling, "TIMED", 3)
    monkeypatch.setattr(Compiling, "step", step)
    return clock


def weights(run: RunFolder) -> dict[str, Tensor]:
    return load_file(run.last)


def same(one: RunFolder, other: RunFolder) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def verdict(heard: Heard) -> str:
    (line,) = (line for line in heard.lines if "torch.compile" in line)
    return line


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_pays_is_kept_for_the_training_steps_alone(
    ema: float, distilling: Distilling, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler, heard = Compiler(clock), Heard()
    monkeypatch.setattr(torch, "compile", compiler)
    run = distill(distilling(compile=True, ema=ema), tmp_path / "run", heard)  # 3 epochs of 5 steps
    assert verdict(heard) == (
        "torch.compile is kept: forward and backward take 60.0 ms, eagerly 100.0, which saves 0.3 s over the 8 steps that are "
        "left; compiling took 0.1 s; the logits move by 0e+00"
    )
    assert verdict(heard) in (run.path / "train.log").read_text()
    assert compiler.calls == [True] * (1 + 3 + 8)  # rehearsed, timed, left; validation never
    plain = distill(distilling(ema=ema), tmp_path / "plain")
    assert same(run, plain)
    for path in (run.last, run.best):
        assert not [name for name in load_file(path) if "_orig_mod" in name]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"ms": 130.0}, "is dropped: forward and backward take 130.0 ms, eagerly 100.0, which saves 0.0 s"),
        ({"first": 9.0}, "is dropped: forward and backward take 60.0 ms, eagerly 100.0, which saves 0.3 s over the 8 steps"),
        ({"change": lambda logits: 1.01 * logits}, "is not used: it moves the logits by 1.00% of their norm"),
        ({"change": lambda logits: logits * torch.nan}, "is not used: it moves the logits by nan% of their norm"),
    ],
    ids=["slower", "too late", "wrong", "not finite"],
)
def test_what_does_not_pay_or_computes_something_else_is_left_and_changes_nothing(
    fault: dict[str, Any], says: str, distilling: Distilling, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler, heard = Compiler(clock, **fault), Heard()
    monkeypatch.setattr(torch, "compile", compiler)
    run = distill(distilling(compile=True), tmp_path / "run", heard)
    assert says in verdict(heard)
    assert len(compiler.calls) <= 4
    assert same(run, distill(distilling(), tmp_path / "plain"))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise RuntimeError("no compiler for the way back\nand more")


def _raises(logits: Tensor) -> Tensor:
    raise RuntimeError("no compiler here\nand more")


@pytest.mark.parametrize(
    ("broken", "says"),
    [(_raises, "no compiler here"), (_Backward.apply, "no compiler for the way back")],
    ids=["there", "back"],
)
def test_a_compiler_that_fails_is_named_and_changes_nothing(
    broken: Callable[[Tensor], Tensor], says: str, distilling: Distilling, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    heard = Heard()
    monkeypatch.setattr(torch, "compile", Compiler(clock, change=broken))
    run = distill(distilling(compile=True), tmp_path / "run", heard)
    assert verdict(heard) == f"torch.compile is not used: {says}"
    assert same(run, distill(distilling(), tmp_path / "plain"))


def test_memory_that_only_the_rehearsal_lacks_leaves_the_batch_whole(
    distilling: Distilling, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def needs_much(logits: Tensor) -> Tensor:
        if len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    heard = Heard()
    monkeypatch.setattr(torch, "compile", Compiler(clock, change=needs_much))
    run = distill(distilling(compile=True), tmp_path / "run", heard)
    assert not [line for line in heard.lines if "from here on" in line]
    assert verdict(heard) == "torch.compile is not used: out of memory"
    assert same(run, distill(distilling(), tmp_path / "plain"))


def test_too_few_steps_are_not_measured(distilling: Distilling, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard = Heard()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    distill(distilling(compile=True, epochs=1), tmp_path / "run", heard)
    assert verdict(heard) == "torch.compile is not tried: 5 steps are left, and measuring takes 23"


def test_a_run_goes_on_with_or_without_and_measures_anew(
    distilling: Distilling, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(Heard):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("epoch 1/"):
                raise KeyboardInterrupt

    compiler, heard = Compiler(clock), Heard()
    monkeypatch.setattr(torch, "compile", compiler)
    for name in ("on", "off"):
        with pytest.raises(KeyboardInterrupt):
            distill(distilling(compile=True), tmp_path / name, Killed())
    assert RunFolder(tmp_path / "on").config()["compile"] is True
    compiler.calls.clear()
    on = distill(distilling(compile=True), tmp_path / "on", heard, resume=True)
    assert "is kept" in verdict(heard)
    assert "over the 3 steps that are left" in verdict(heard)
    compiler.calls.clear()
    off = distill(distilling(), tmp_path / "off", resume=True)
    assert compiler.calls == []
    assert same(on, off)


def test_it_belongs_to_the_machine_not_to_a_sweep() -> None:
    assert "compile" not in FACTORS


def test_several_processes_train_without(distilling: Distilling, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "world", lambda: 2)
    Trainer(distilling(), store, Progress())
    with pytest.raises(UsageError, match="several processes") as caught:
        Trainer(distilling(compile=True), store, Progress())
    assert "--no-compile" in str(caught.value)


def test_dropout_draws_the_same_whether_compared_or_not() -> None:
    student = torch.nn.Module()
    student.norm = torch.nn.BatchNorm2d(3)
    held = Compiling.__new__(Compiling)
    held.student, held.device = student, torch.device("cpu")  # type: ignore[assignment]
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    with held._undone():
        torch.rand(5)
        student.norm(torch.rand(2, 3, 4, 4))
    assert torch.equal(torch.rand(3), wanted)
    assert student.norm.num_batches_tracked == 0
    assert torch.equal(student.norm.running_mean, torch.zeros(3))
