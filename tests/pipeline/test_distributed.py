"""Two processes share each batch: one process's weights, one voice, and an end for all when one fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.runs import RunFolder

SETTINGS = {"student": "unet:4", "epochs": 2, "batch_size": 4, "device": "cpu", "precision": "float32", "pretrained": False}
CASES = {
    "none": {"objective": "none"}, "multiscale": {"objective": "multiscale"}, "paper": {"objective": "paper", "epochs": 3},
    "light": {"objective": "multiscale", "student": "light", "epochs": 1},
    "several": {"objective": "multiscale@encoder.decoder+cwd:0.5+relational:0.5", "epochs": 1},
}  # fmt: skip
WRONG = ("own batch norms", "the same half twice", "own energy of the bands", "own gradients")
TOLERANCE = 1e-7
"""Of weights in double precision, where rounding is that small; in single precision a training amplifies it."""

DRIVER = """
import json, os, sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock
import torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline import distributed
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.trainer import Trainer

cases, out = json.loads(sys.argv[1]), Path(sys.argv[2])
half = lambda b: slice(0, b // 2)
PATCHES = {
    "own batch norms": ("trainer.synchronised", nullcontext), "the same half twice": ("distributed.own", half),
    "own energy of the bands": ("objectives.multiscale.average", lambda value: value),
    "own gradients": ("trainer.average_gradients", lambda parameters: None),
}

def stopped(config, folder):
    real = Trainer.validate
    def stop(self):
        if self.epoch == 1:
            raise InterruptedError
        return real(self)
    with mock.patch.object(Trainer, "validate", stop):
        try:
            distill(config, folder)
        except InterruptedError:
            pass

configs = {name: DistillConfig(**case) for name, case in cases.items()}
whole = configs["multiscale"]
if os.environ["RANK"] == "0":
    for name, config in configs.items():
        distill(config, out / "one" / name)
    stopped(whole, out / "two/resumed by two")
with distributed.group(os.environ):
    for name, config in configs.items():
        distill(config, out / "two" / name)
    for name, (place, patch) in PATCHES.items():
        with mock.patch("polyp_difom.pipeline." + place, patch):
            distill(whole, out / "two" / name)
    distill(whole, out / "two/resumed by two", resume=True)
    stopped(whole, out / "two/resumed by one")
    try:
        distill(whole.model_copy(update={"batch_size": 5}), out / "uneven")
    except UsageError as error:
        (out / f"uneven{distributed.rank()}").write_text(str(error))
if os.environ["RANK"] == "0":
    distill(whole, out / "two/resumed by one", resume=True)
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def pair(*commands: list[object], **changes: str) -> list[subprocess.Popen[str]]:
    """Process i runs command i as one of two; both talk over the loopback alone."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    variables |= {"OMP_NUM_THREADS": "1", **changes}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)], env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    results = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=240)
        results.append((process.returncode, stdout, stderr))
    return results


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one/NAME` by one process, `two/NAME` by two."""
    out = tmp_path_factory.mktemp("trained")
    cases = json.dumps({name: {**SETTINGS, "cache": str(store.location), **case} for name, case in CASES.items()})
    command: list[object] = ["-c", DRIVER, cases, out]
    for code, _, stderr in ended(pair(command, command)):
        assert code == 0, stderr
    return out


def distance(a: Path, b: Path, name: str = "last") -> float:
    """Largest relative distance of two students' tensors; one that is nothing but rounding, around 0, counts as equal."""
    one, two = (load_file(run / f"checkpoints/{name}.safetensors") for run in (a, b))
    assert one.keys() == two.keys()
    assert all(one[key].shape == two[key].shape for key in one)
    return max(float((one[key] - two[key]).double().norm() / one[key].double().norm().clamp_min(1e-3)) for key in one)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_student_and_log_the_figures_of_one(case: str, trained: Path) -> None:
    one, two = trained / "one" / case, trained / "two" / case
    assert distance(one, two) < TOLERANCE
    assert distance(one, two, "best") < TOLERANCE
    histories = [RunFolder(run).history() for run in (one, two)]
    for alone, together in zip(*histories, strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"seconds"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_shared_shows_in_the_weights(wrong: str, trained: Path) -> None:
    assert distance(trained / "one/multiscale", trained / "two" / wrong) > 1e5 * TOLERANCE


@pytest.mark.parametrize("how", ["resumed by two", "resumed by one"])
def test_a_run_goes_on_with_another_number_of_processes(how: str, trained: Path) -> None:
    assert distance(trained / "one/multiscale", trained / "two" / how) < TOLERANCE
    assert [record["epoch"] for record in RunFolder(trained / "two" / how).history()] == [1, 2]


def test_a_batch_that_cannot_be_shared_out_is_refused_with_one_that_can(trained: Path) -> None:
    for rank in range(2):
        assert "--batch-size 4" in (trained / f"uneven{rank}").read_text()
    assert not (trained / "uneven").exists()


@pytest.fixture
def command(store: FeatureStore, tmp_path: Path) -> Callable[..., list[object]]:
    def make(cache: object = store.location) -> list[object]:
        words = ["distill", "--cache", cache, "--student", "unet:4", "--batch-size", "4", "--device", "cpu"]
        return ["-m", "polyp_difom.cli", *words, "--epochs", "500", "-o", tmp_path / "run"]

    return make


def test_when_one_fails_all_end_at_once_with_its_message_alone(command: Callable[..., list[object]], tmp_path: Path) -> None:
    (code, stdout, stderr), (guilty, _, said) = ended(pair(command(), command(tmp_path / "nowhere.zarr")))
    assert guilty == 4
    assert "no feature store here" in said
    assert "Traceback" not in said + stderr
    assert "error" not in stderr
    assert code != 0
    assert stdout == ""


def test_ctrl_c_in_one_ends_all_with_one_message_and_the_run_can_be_resumed(
    command: Callable[..., list[object]], tmp_path: Path
) -> None:
    processes, metrics = pair(command(), command()), tmp_path / "run/metrics.jsonl"
    limit = time.monotonic() + 120
    while not metrics.exists() and all(process.poll() is None for process in processes) and time.monotonic() < limit:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    (code, stdout, stderr), (interrupted, _, said) = ended(processes)
    assert interrupted == 130
    assert "interrupted" in said
    assert "Traceback" not in said + stderr
    assert "error" not in stderr
    assert code != 0
    assert stdout == ""
    assert stderr.count("2 processes share each batch") == 1
    assert "processes share" not in said
    assert (tmp_path / "run/checkpoints/resume.safetensors").is_file()


def test_torchrun_speaks_with_one_voice(store: FeatureStore, tmp_path: Path) -> None:
    words = ["distill", "--cache", str(store.location), "--student", "unet:4", "--batch-size", "4", "--device", "cpu"]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        free_port(),
    ]
    done = subprocess.run(
        [*launcher, "-m", "polyp_difom.cli", *words, "--epochs", "1", "--json", "-o", tmp_path / "run"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
    assert done.stderr.count("epoch 1/1") == 1
    assert (tmp_path / "run/checkpoints/last.safetensors").is_file()


@pytest.mark.parametrize("variables", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_an_environment_that_is_none_of_torchruns_is_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.cache.errors import PolypDifomError
    from polyp_difom.pipeline.distributed import group

    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(PolypDifomError, match=r"numbers|cannot reach") as caught, group(variables):
        raise AssertionError
    assert "torchrun" in str(caught.value.details["next"])


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyp_difom.pipeline import distributed

    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "1"}):
        with distributed.group(environment):
            assert (distributed.world(), distributed.rank(), distributed.own(6)) == (1, 0, slice(0, 6))
            assert not torch.distributed.is_initialized()
