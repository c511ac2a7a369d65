"""A teacher one at a time, batched and compiled; what compiling costs is faked. Its figures must fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from typer.testing import CliRunner

from polyp_difom.cache.errors import UsageError
from polyp_difom.cli.main import app
from polyp_difom.pipeline.bench import teacher as bench
from polyp_difom.pipeline.bench.teacher import TeacherBench, bench_teacher
from polyp_difom.pipeline.teachers.attention import FusedAttention, fuse_attention
from polyp_difom.pipeline.teachers.compiling import PAYS_FROM, choose, compile_where_it_pays, compiled
from polyp_difom.pipeline.teachers.protocol import Teacher, TeacherSpec

NAME = "dinov2:small"
Benching = Callable[..., TeacherBench]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(bench, "REPEATS", 2)


@pytest.fixture
def benching(tiny_teacher: Path) -> Benching:
    """A measurement of the tiny teacher without an extraction, unless told otherwise."""
    values = {"weights": str(tiny_teacher), "batch": 2, "frames": 0, "size": 64, "device": "cpu", "precision": "float32"}
    return lambda **changes: bench_teacher(NAME, **{**values, **changes})


def sam_encoder(cells: int = 4) -> ImageEncoderViT:
    return ImageEncoderViT(
        depth=2, embed_dim=32, img_size=16 * cells, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_heads=2,
        patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=(1,), window_size=2, out_chans=16,
    )  # fmt: skip


def sam_teacher() -> Teacher:
    encoder = sam_encoder()
    fuse_attention(encoder)
    return Teacher(TeacherSpec("sam:vit_b", 64, "imagenet", (16,), (16,), "Apache-2.0", ""), encoder)


def test_figures_fit_together(benching: Benching) -> None:
    found = benching()
    assert [(way.name, way.batch) for way in found.ways] == [("one at a time", 1), ("batched", 2)]
    assert found.ways[0].speedup == pytest.approx(1)
    for way in found.ways:
        assert way.gflops == pytest.approx(way.fps * found.gflop)
        assert way.share_of_peak == pytest.approx(way.gflops / found.peaks["float32"])
    assert found.extraction is None


def test_flops_are_those_of_the_matrix_products(benching: Benching) -> None:
    tokens, c, blocks = 17, 32, 2  # 4 x 4 patches of 14 pixels, and a class token; the feed-forward part is 2 c wide
    block = tokens * c * (4 * c + 2 * 2 * c) + 2 * tokens * tokens * c
    patches = 16 * 3 * 14 * 14 * c
    assert benching().gflop * 1e9 == 2 * (blocks * block + patches)


def test_a_faster_kernel_counts_the_models_own_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = sam_teacher()
    plain, frames = bench._plain(teacher), torch.rand(1, 3, 64, 64)
    own, attention = (runs.encoder.get_submodule("blocks.1.attn") for runs in (plain, teacher))
    assert (type(own), type(attention)) == (Attention, FusedAttention)
    torch.testing.assert_close(plain(frames), teacher(frames), rtol=1e-5, atol=1e-5)
    needed = bench.count_flops(plain, 64)
    monkeypatch.setattr(attention, "way", lambda device: "fold")
    assert needed < bench.count_flops(teacher, 64)


def test_an_extraction_is_split_into_decode_teacher_and_write(benching: Benching) -> None:
    done = benching(frames=12).extraction
    assert done is not None
    assert 0 < done.frames <= 12
    assert sum(done.shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in done.shares.values())
    assert done.decode_seconds + done.teacher_seconds < done.seconds


def test_sam_is_timed_with_random_weights(benching: Benching, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(nn.Module):
        def __init__(self, checkpoint: str | None = None):
            super().__init__()
            self.image_encoder = sam_encoder()

    monkeypatch.setitem(sam_model_registry, "vit_b", Whole)
    found = bench_teacher("sam", random=True, batch=2, frames=0, size=64, device="cpu", precision="bfloat16")
    assert found.random
    assert list(found.peaks) == ["float32", "bfloat16"]
    assert [way.precision for way in found.ways] == ["float32", "bfloat16"]


def test_a_teacher_that_runs_in_float32_always_is_labelled_so(benching: Benching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "exact", True)
    found = benching(precision="bfloat16")
    assert [way.precision for way in found.ways] == ["float32", "float32"]
    assert list(found.peaks) == ["float32"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"random": True}, "given or random"), ({"frames": 3}, "too few frames")],
)
def test_what_cannot_be_measured_is_refused(benching: Benching, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benching(**changes)


def test_a_teacher_whose_shape_is_unknown_has_no_random_weights() -> None:
    with pytest.raises(UsageError, match="no random weights") as caught:
        bench_teacher("clip", random=True)
    assert "sam:vit_b" in str(caught.value)


def test_the_command_prints_one_object(tiny_teacher: Path) -> None:
    words = [
        "bench",
        "teacher",
        NAME,
        "--weights",
        str(tiny_teacher),
        "--batch",
        "2",
        "--frames",
        "12",
        "--size",
        "64",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["teacher"] == NAME
    assert set(record["extraction"]["shares"]) == {"decode", "teacher", "write"}
    table = CliRunner().invoke(app, [*words, "-q", "--precision", "float32"])
    assert "one at a time" in table.stdout
    assert table.stderr == ""


# Compiling


def fake_compile(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch.compile that runs eagerly and notes the batch sizes that it was given."""
    sizes: list[int] = []

    def compile_(call: Callable[[Tensor], Any], **_: Any) -> Callable[[Tensor], Any]:
        def run(inputs: Tensor) -> Any:
            sizes.append(len(inputs))
            return call(inputs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return sizes


def test_only_full_batches_run_compiled_and_the_state_dict_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = fake_compile(monkeypatch)
    teacher = sam_teacher()
    names, frames = list(teacher.state_dict()), torch.rand(3, 3, 64, 64)
    expected = teacher(frames)
    fast = compiled(teacher, 3)
    torch.testing.assert_close(fast(frames), expected)
    fast(frames[:2])
    assert sizes == [3]
    assert list(fast.state_dict()) == names


def test_compiling_is_chosen_for_many_images_of_a_measured_family_on_a_gpu_alone() -> None:
    teacher, gpu = sam_teacher(), torch.device("cuda")
    assert teacher.spec.name.startswith("sam:")
    assert choose(teacher, gpu, PAYS_FROM)[0]
    assert not choose(teacher, gpu, PAYS_FROM - 1)[0]
    assert not choose(teacher, torch.device("cpu"), 10**7)[0]
    teacher.spec = replace(teacher.spec, name="dinov2:base")
    assert not choose(teacher, gpu, 10**7)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [(0.0, None), (0.001, None), (0.1, "moves the maps by 10.0%"), (None, "no compiler")],
)
def test_a_compiled_teacher_that_fails_or_moves_its_maps_goes_on_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, change: float | None, said: str | None
) -> None:
    calls = list[int]()

    def compile_(call: Callable[[Tensor], Any], **_: Any) -> Callable[[Tensor], Any]:
        def run(inputs: Tensor) -> Any:
            calls.append(len(inputs))
            if change is None:
                raise RuntimeError("no compiler\nlong story")
            return tuple(maps * (1 + change) for maps in call(inputs))

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr("polyp_difom.pipeline.teachers.compiling.choose", lambda *_: (True, "as asked"))
    teacher, frames, told = sam_teacher(), torch.rand(3, 3, 64, 64), list[str]()
    expected = teacher(frames)
    compile_where_it_pays([teacher], torch.device("cuda"), 10, 3, told.append)
    teacher(frames[:2])
    assert calls == []
    torch.testing.assert_close(teacher(frames), expected)
    teacher(frames)
    assert calls == ([3] if said else [3, 3])
    assert told[0].endswith("runs under torch.compile: as asked")
    assert len(told) == 1 + bool(said)
    assert said is None or said in told[1]


def test_memory_that_runs_out_while_compiling_leaves_the_batch_whole_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(inputs: Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda call, **_: full)
    monkeypatch.setattr("polyp_difom.pipeline.teachers.compiling.choose", lambda *_: (True, ""))
    teacher, frames, told = sam_teacher(), torch.rand(3, 3, 64, 64), list[str]()
    expected = teacher(frames)
    compile_where_it_pays([teacher], torch.device("cuda"), 10, 3, told.append)
    for _ in range(2):
        torch.testing.assert_close(teacher(frames), expected)
    assert [line.partition(" goes on ")[2] for line in told[1:]] == ["without torch.compile: out of memory"]
