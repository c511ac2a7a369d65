"""A SLURM job array as one bash script that its user can read, change and submit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

GRACE_SECONDS = 120
"""Before a task's time is up, at which it goes back to the queue."""
SHARE = {
    "extract": ("--part-id", '"$SLURM_ARRAY_TASK_ID"', "--num-parts"),
    "sweep": ("--join",),
}
"""By command, what makes each task of an array do its share; the number of parts follows a last `--num-parts`."""


@dataclass(frozen=True)
class Job:
    """What the cluster is asked for, for each task of the array.

    Attributes:
        parts: tasks, each doing its share.
        memory: in SLURM's notation, "32G".
        hours: at most.
        activate: lines of shell that make `polyp-difom` callable.
        extra: further options of sbatch, one each: "--account=x".
    """

    parts: int
    gpus: int
    cpus: int
    memory: str
    hours: float
    partition: str | None = None
    activate: str | None = None
    extra: tuple[str, ...] = ()

    def directives(self, name: str) -> list[str]:
        """Options of sbatch for a job of this name."""
        minutes = max(1, round(self.hours * 60))
        options = [
            f"--job-name=polyp-difom-{name}", f"--array=0-{self.parts - 1}", "--ntasks=1",
            *([f"--gpus-per-task={self.gpus}"] if self.gpus else []), f"--cpus-per-task={self.cpus}", f"--mem={self.memory}",
            f"--time={minutes // 60:02}:{minutes % 60:02}:00", *([f"--partition={self.partition}"] if self.partition else []),
            "--output=%x-%A_%a.out", "--requeue", f"--signal=B:USR1@{GRACE_SECONDS}", *self.extra,
        ]  # fmt: skip
        return [f"#SBATCH {option}" for option in options]


def array_script(job: Job, command: Sequence[str]) -> str:
    """The script.

    Args:
        command: a command of `SHARE` and its arguments, without those that make the share.
    """
    name = command[0]
    words = ["polyp-difom", *(shlex.quote(word) for word in command), *SHARE[name]]
    if SHARE[name][-1] == "--num-parts":
        words.append(str(job.parts))
    lines = [
        "#!/bin/bash",
        f"# {job.parts} tasks that share one `polyp-difom {name}`. Paths are relative to the folder that sbatch is called in,",
        "# which all nodes must reach. Submitted again, it goes on with what is missing.",
        *job.directives(name),
        "",
        "set -euo pipefail",
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        *([job.activate] if job.activate else []),
        "",
        f"# {GRACE_SECONDS} s before its time is up, a task stops and goes back to the queue; what it has finished is kept.",
        "again() {",
        '    kill "${!:-}" || true',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "    exit 0",
        "}",
        "trap again USR1",
        "",
        f"{' '.join(words)} &",
        'wait "$!"',
    ]
    return "\n".join(lines) + "\n"
