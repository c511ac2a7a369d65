"""The SLURM array script: run by plain bash it makes one store's bytes, and it goes back to the queue when told to."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from polyp_difom.pipeline.engines.slurm import Job, array_script

JOB = Job(parts=2, gpus=1, cpus=4, memory="32G", hours=1.5, partition="gpu", activate="true", extra=("--account=x",))


def on_path(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which `name` runs this line of bash."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_script_asks_for_what_the_job_says_and_quotes_its_arguments(tmp_path: Path) -> None:
    text = array_script(JOB, ["extract", "--data", "my frames", "--cache", "$X.zarr"])
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--array=0-1", "--gpus-per-task=1", "--cpus-per-task=4", "--mem=32G", "--time=01:30:00"} <= set(asked)
    assert {"--partition=gpu", "--account=x", "--requeue"} <= set(asked)
    script = tmp_path / "job.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    environment = on_path(tmp_path / "bin", "polyp-difom", 'printf "%s\\n" "$@"') | {"SLURM_ARRAY_TASK_ID": "1"}
    said = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "extract", "--data", "my frames", "--cache", "$X.zarr", "--part-id", "1", "--num-parts", "2",
    ]  # fmt: skip


def test_tasks_of_a_sweep_join_it_and_need_no_gpu() -> None:
    text = array_script(Job(8, 0, 2, "8G", 24), ["sweep", "--cache", "x.zarr", "-o", "sweeps/x"])
    assert "\npolyp-difom sweep --cache x.zarr -o sweeps/x --join &\n" in text
    assert "gpus" not in text


def test_the_exit_code_of_the_command_is_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(array_script(JOB, ["extract"]))
    environment = on_path(tmp_path / "bin", "polyp-difom", "exit 4") | {"SLURM_ARRAY_TASK_ID": "0"}
    assert subprocess.run(["bash", tmp_path / "job.sh"], env=environment, check=False).returncode == 4


def test_before_its_time_is_up_a_task_stops_its_work_and_goes_back_to_the_queue(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(array_script(JOB, ["extract"]))
    on_path(tmp_path / "bin", "polyp-difom", "echo works; exec sleep 60")
    environment = on_path(tmp_path / "bin", "scontrol", 'echo "$@"')
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    task = subprocess.Popen(["bash", tmp_path / "job.sh"], env=environment, stdout=subprocess.PIPE, text=True)
    assert task.stdout is not None
    assert task.stdout.readline() == "works\n"
    task.send_signal(signal.SIGUSR1)
    assert task.stdout.read() == "requeue 7_1\n"  # ends when the work, which has this pipe too, is gone
    assert task.wait(timeout=60) == 0
