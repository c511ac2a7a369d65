"""Run folders: made once, never overwritten, resumable; checkpoints are safetensors with a readable header.

runs/<name>/{config.yaml, env.json, samples.csv, metrics.jsonl, train.log, plots/, checkpoints/{best,last}.safetensors}
"""

from __future__ import annotations

import csv
import json
import os
import platform
import struct
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.cache.samples import SampleTable
from polyp_difom.pipeline.files import append_text, contents, empty, write_bytes, write_csv, write_json, write_text
from polyp_difom.pipeline.json_files import parsed, read_text
from polyp_difom.pipeline.yaml_files import read_mapping

CONTENTS = frozenset(
    [
        "config.yaml",
        "env.json",
        "samples.csv",
        "metrics.jsonl",
        "train.log",
        "checkpoints",
        "results.csv",
        "results.json",
        "results.md",
        "evaluation",
        "overlays",
        "plots",
        "tensorboard",
        "agreement.json",
        "report.html",
        "bench.json",
        "pilots",
    ]
)
"""What a run folder may hold; `--overwrite` deletes nothing else."""
RESUME_STATE = "resume.safetensors"
PILOTS = "pilots"
"""Folder in a run's, of the trainings that chose its objective."""
LARGEST_FIGURE = 1e15
"""Of any epoch: larger ones are no loss, and no chart holds them."""


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.last = self.checkpoints / "last.safetensors"
        self.resume_state = self.checkpoints / RESUME_STATE
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "plots" / "curves.svg"
        self.events = path / "tensorboard"
        self.agreement = path / "agreement.json"

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False, beside: str = "") -> RunFolder:
        """A new run folder, empty but for `beside`.

        Raises:
            RunError: it exists and holds something, and `overwrite` was not asked for; or it cannot be made.
        """
        run = cls(path)
        try:
            if run.refuse_to_lose(overwrite, beside):
                run.resume_state.unlink(missing_ok=True)  # first: nothing half deleted is gone on with
                empty(path, but=beside)
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError("the run folder cannot be made", where=path, got=error.strerror, remedy="give another -o") from error
        return run

    def refuse_to_lose(self, overwrite: bool, beside: str = "") -> bool:
        """Whether something but `beside` is there to be replaced, after a check that it may be.

        Raises:
            RunError: the folder holds something, and `overwrite` was not asked for or it is no run.
        """
        if not self.path.exists() or (self.path.is_dir() and not contents(self.path) - {beside}):
            return False
        if not overwrite:
            raise RunError(
                "the run folder exists already", where=self.path,
                remedy="give another -o, or --resume to go on, or --overwrite to start afresh",
            )  # fmt: skip
        held = contents(self.path) if self.path.is_dir() else {self.path.name}
        if strangers := sorted(held - CONTENTS):
            raise RunError(
                "will not overwrite what no run wrote", where=self.path, got=strangers[0],
                wanted=f"nothing but {', '.join(sorted(CONTENTS))}", remedy="give another -o",
            )  # fmt: skip
        return True

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run with a checkpoint to evaluate.

        Raises:
            RunError: no run there, or nothing trained yet.
        """
        run = cls(path)
        if not (path / "config.yaml").is_file():
            raise RunError("no run here", where=path, wanted="a folder that `polyp-difom distill -o` made")
        if not run.best.is_file():
            raise run._without_best()
        return run

    def _without_best(self) -> RunError:
        """The error that says what there is in its place."""
        if self.last.is_file():
            what, remedy = "the run's best checkpoint is missing", f"polyp-difom evaluate {self.last} --data DIR"
        elif self.resume_state.is_file():
            what, remedy = "the run has no checkpoint yet", f"polyp-difom distill --resume -o {self.path}"
        else:
            lower = "with a smaller --learning-rate if it has diverged"
            what = "the run ended before its first epoch was done, and has no checkpoint"
            remedy = f"polyp-difom distill --config {self.path / 'config.yaml'} -o {self.path} --overwrite, {lower}"
        return RunError(what, where=self.best, got=self._last_said(), remedy=remedy)

    def _last_said(self) -> str | None:
        """The last line of the log, None without one."""
        try:
            return next(reversed((self.path / "train.log").read_text(errors="replace").splitlines()), None)
        except OSError:
            return None

    def describe(self, config: Mapping[str, Any], samples: SampleTable, learned: Iterable[Mapping[str, str]] = ()) -> None:
        """Write the resolved configuration, the environment and the frames that the run learns from.

        Args:
            learned: rows of frames that its teachers learned from: kept of frames that are not the run's own, and of those
                that it is only selected on.
        """
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        write_json(self.path / "env.json", environment())
        rows = list(zip(samples.ids, samples.pixel_sha256, samples.split, strict=True))
        columns = ("id", "pixel_sha256", "split")
        own = dict(zip(samples.pixel_sha256, samples.split, strict=True))
        others = [
            tuple(row[column] for column in columns) for row in learned
            if own.get(row["pixel_sha256"], "") not in ("train", row["split"])
        ]  # fmt: skip
        write_csv(self.path / "samples.csv", columns, (dict(zip(columns, row, strict=True)) for row in [*rows, *others]))

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        path = self.path / "config.yaml"
        try:
            return read_mapping(path)
        except (OSError, ValueError) as error:
            raise RunError("the run's configuration cannot be read", where=path, got=first_line(error)) from error

    def seen(self) -> dict[str, str]:
        """Pixel digest of every frame that the run learned from or was selected on, with its split."""
        return {row["pixel_sha256"]: row["split"] for row in self.samples()}

    def datasets(self) -> set[str]:
        """Data sets that the run learned from."""
        return {row["id"].partition("/")[0] for row in self.samples()}

    def samples(self) -> list[dict[str, str]]:
        """Rows of samples.csv: id, pixel_sha256 and split of every frame that the run, or a teacher of it, learned from."""
        path = self.path / "samples.csv"
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise RunError("the run's list of frames cannot be read", where=path, got=first_line(error)) from error
        if lacking := {"id", "pixel_sha256", "split"} - set(rows[0] if rows else ()):
            raise RunError(
                "the run's list of frames is damaged, or of an older version", where=path, got=f"no column {min(lacking)}",
                remedy="train again; or move this file away, and no frame counts as seen",
            )  # fmt: skip
        return rows

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's figures to metrics.jsonl."""
        append_text(self.metrics, json.dumps(record, allow_nan=False) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All epochs' figures: finite numbers, among them `epoch`, which rises, `val_dice` and `seconds`.

        Raises:
            RunError: they are damaged.
        """
        try:
            lines = read_text(self.metrics).splitlines(keepends=True) if self.metrics.exists() else []
            rows = [parsed(line) for line in lines if line.endswith("\n")]  # a killed run may leave half a last line
        except (OSError, ValueError) as error:
            raise RunError("the run's figures are damaged", where=self.metrics, got=first_line(error)) from error
        for number, row in enumerate(rows):
            if not _is_epoch(row) or (number and row["epoch"] <= rows[number - 1]["epoch"]):
                raise RunError(
                    "the run's figures are damaged", where=f"{self.metrics}, line {number + 1}", got=str(row)[:160],
                    wanted="numbers, one object an epoch, with epoch, val_dice and seconds",
                )  # fmt: skip
        return rows

    def truncate_history(self, epochs: int) -> None:
        """Forget figures of epochs that a resumed run will do again."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        write_text(self.metrics, "".join(lines[:epochs]))


def _is_epoch(row: object) -> bool:
    """Whether a value can be an epoch's figures, none of them beyond what is drawn."""
    return (
        isinstance(row, dict)
        and {"epoch", "val_dice", "seconds"} <= row.keys()
        and isinstance(row["epoch"], int)
        and all(type(value) in (int, float) and abs(value) < LARGEST_FIGURE for value in row.values())
    )


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    packages = ("polyp-difom", "torch", "zarr", "numpy", "safetensors")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "git": _git_state(),
        "packages": {name: version(name) for name in packages},
    }


def _git_state() -> str | None:
    """Commit of this package's own source tree, "-dirty" where files differ from it; None where it is no git checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        asked = ["git", *words]
        return subprocess.run(  # noqa: S603  (constant words, and the git of the user's own PATH)
            asked, cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Tensors and a JSON header in one safetensors file, written atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(ready, metadata={"polyp_difom": json.dumps(header)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a checkpoint.

    Raises:
        RunError: no such file, or not one of ours.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        return load_file(path), json.loads(metadata["polyp_difom"])
    except FileNotFoundError as error:
        raise RunError("no such checkpoint", where=path) from error
    except Exception as error:
        raise RunError("not a polyp-difom checkpoint, or a damaged one", where=path, got=str(error)[:160]) from error
