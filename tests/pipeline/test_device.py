"""Choice of device and precision, with reasons."""

from __future__ import annotations

import pytest
import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.device import autocast, out_of_memory, pick_device, pick_precision, training_autocast

CPU = torch.device("cpu")


def test_auto_takes_cuda_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == CPU


def test_a_named_device_is_taken_as_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["toaster", "cuda:x", "cuda:-1", "meta", "mps", ""])
def test_a_device_that_is_none_is_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        pick_device(name)
    assert "cuda:N" in str(caught.value.details["wanted"])


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError, match="no device") as caught:
        pick_device(name)
    assert caught.value.details["got"] == f"{count} CUDA devices"


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_the_cpu_gets_bfloat16_only_where_it_multiplies_it(
    capabilities: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    chosen, reason = pick_precision(CPU)
    assert chosen == precision
    assert "CPU" in reason


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_gets_bfloat16_only_natively(native: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert pick_precision(torch.device("cuda"))[0] == precision


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for_is_kept(wanted: str) -> None:
    assert pick_precision(CPU, wanted) == (wanted, "as asked")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        pick_precision(CPU, "fp8")


def test_autocast_touches_nothing_in_float32() -> None:
    layer, inputs = torch.nn.Linear(3, 3), torch.rand(2, 3)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert layer(inputs).dtype == dtype


@pytest.mark.parametrize(
    ("kernel", "groups", "exact"), [(5, 8, True), (7, 8, True), (3, 8, False), (5, 1, False), (1, 8, False)]
)
def test_wide_depthwise_convolutions_train_in_float32_on_the_cpu(kernel: int, groups: int, exact: bool) -> None:
    torch.manual_seed(0)
    layer, inputs = torch.nn.Conv2d(8, 8, kernel, groups=groups, bias=False), torch.rand(2, 8, 12, 12)
    wanted = layer(inputs)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), layer.weight)
    with training_autocast(CPU, "bfloat16"):
        maps = layer(inputs)
    (slope,) = torch.autograd.grad(maps.sum(), layer.weight)
    assert maps.dtype == torch.bfloat16
    assert torch.equal(maps, wanted.bfloat16()) == torch.equal(slope, wanted_slope) == exact


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_autocast_leaves_other_layers_alone(precision: str) -> None:
    layer, inputs = torch.nn.Conv2d(4, 4, 3), torch.rand(2, 4, 9, 9)
    with autocast(CPU, precision):
        wanted = layer(inputs)
    with training_autocast(CPU, precision):
        assert torch.equal(layer(inputs), wanted)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_known_whichever_library_reports_it(error: RuntimeError, expected: bool) -> None:
    assert out_of_memory(error) is expected
