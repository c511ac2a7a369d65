"""What a sweep's processes may do: those of a machine with a GPU must be able to use it."""

from __future__ import annotations

from multiprocessing.queues import SimpleQueue

import pytest
import torch

from polyp_difom.pipeline.sweep.processes import context


def _tell(answers: SimpleQueue[bool]) -> None:
    answers.put(torch._C._cuda_isInBadFork())


@pytest.mark.skipif(not hasattr(torch._C, "_cuda_isInBadFork"), reason="this PyTorch was built without CUDA")
def test_a_process_of_the_server_may_still_use_a_gpu() -> None:
    """Once a process has asked whether there is a GPU, none that is forked from it can use one."""
    server = context(torch.device("cuda"), 1)
    answers = server.SimpleQueue()
    process = server.Process(target=_tell, args=(answers,))
    process.start()
    assert answers.get() is False
    process.join()


@pytest.mark.parametrize(("gpu", "threads", "method"), [(False, 1, "fork"), (False, 2, "forkserver"), (True, 1, "forkserver")])
def test_a_process_is_forked_only_where_it_will_not_wait_for_threads_nor_miss_a_gpu(
    gpu: bool, threads: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert context(torch.device("cpu"), threads).get_start_method() == method
