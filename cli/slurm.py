"""`polyp-difom slurm`: writes the script of a SLURM job array."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from polyp_difom.cache.errors import UsageError
from polyp_difom.cli.console import guarded

REFUSED = {
    "extract": ("--part-id", "--num-parts", "--engine", "--help"),
    "sweep": ("--join", "--resume", "--engine", "--dry-run", "--overwrite", "--help"),
}
"""By command, options that the script gives itself, or that cannot go with an array."""

BAD_CALL: Any = typer.BadParameter.__bases__[0]
"""click's UsageError, of which recent typers carry a copy of their own."""


@guarded
def slurm(
    context: typer.Context,
    command: Annotated[
        list[str], typer.Argument(help="After --: extract or sweep, with its options.", metavar="-- COMMAND ...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Script to write.")],
    parts: Annotated[int, typer.Option(min=1, help="Tasks of the array.")] = 8,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each task.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each task.")] = 8,
    memory: Annotated[str, typer.Option(help="Of each task.")] = "32G",
    hours: Annotated[float, typer.Option(min=0.05, help="A task's time; it is queued again shortly before its end.")] = 24,
    partition: Annotated[str | None, typer.Option(help="Of the cluster.")] = None,
    venv: Annotated[Path | None, typer.Option(help="Folder of the virtual environment to activate.")] = None,
    sbatch: Annotated[list[str], typer.Option(help="Another option of sbatch, --sbatch=--account=x; repeatable.")] = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing script.")] = False,
) -> None:
    """Write a SLURM array script in which each task does its share of one `extract` or `sweep`.

    For example: polyp-difom slurm --parts 8 -o job.sh -- extract --data DATA --cache X.zarr
    """
    from polyp_difom.pipeline.engines.slurm import Job, array_script

    if not re.fullmatch(r"\d+[KMGT]?", memory):
        raise UsageError("no amount of memory that SLURM knows", where="--memory", got=memory, wanted="for instance 32G")
    for option in sbatch:
        if not re.fullmatch(r"-\S.*", option):
            raise UsageError("no option of sbatch", where="--sbatch", got=option, wanted="for instance --sbatch=--account=x")
    _check(context, command)
    if out.exists() and not overwrite:
        raise UsageError("the file exists", where=out, remedy="give another -o, or --overwrite")
    activate = f"source {shlex.quote(str(venv.absolute() / 'bin/activate'))}" if venv else None
    job = Job(parts, gpus, cpus, memory, hours, partition, activate, tuple(sbatch))
    script = array_script(job, command)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(script)
        out.chmod(0o755)
    except OSError as error:
        raise UsageError("the script cannot be written", where=out, got=error.strerror, remedy="give another -o") from error
    typer.echo(f"{out}: {parts} tasks\nnext: sbatch {shlex.quote(str(out))}")


def _check(context: typer.Context, words: list[str]) -> None:
    """Parses the command as it will be parsed in the job, without running it."""
    name, *rest = words
    if name not in REFUSED:
        raise UsageError("a job array cannot share this command", where="after --", got=name, wanted=" or ".join(REFUSED))
    for option in REFUSED[name]:
        if any(word.partition("=")[0] == option for word in rest):
            raise UsageError(
                "this option cannot go with an array, whose tasks share the work by themselves", where="after --", got=option,
                remedy=f"leave {option} out; see --parts",
            )  # fmt: skip
    if rest and not rest[0].startswith("-"):
        raise UsageError("a job array cannot share this command", where="after --", got=f"{name} {rest[0]}", wanted=name)
    commands: dict[str, Any] = getattr(context.find_root().command, "commands", {})
    try:
        with commands[name].make_context(name, list(rest)):
            pass
    except BAD_CALL as error:
        raise UsageError(
            f"`{name}` cannot be called like this", where="after --", got=error.format_message(),
            remedy=f"polyp-difom {name} --help",
        ) from error  # fmt: skip
