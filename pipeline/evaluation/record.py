"""What an evaluation leaves on disk, for a run in the run's own folder: written here, read by tables and reports.

    evaluation/target.json                            what was scored: kind, path, name, sha256, header, parameters
    evaluation/frames.csv                             which files the scored frames were read from
    evaluation/<protocol>/<dataset>-<split>.csv       one row a frame
    evaluation/<protocol>/<dataset>-<split>.json      the set's figures
    evaluation/<protocol>/without-leaks/<dataset>-<split>.{csv,json}   frames left out, and the figures without them
    results.{csv,json,md}                             all sets, splits and protocols
    overlays/<dataset>-<split>/                       pictures

results.* are made anew from the figures below evaluation/ each time, so the two cannot disagree.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.data.pairing import Pair, printable
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.evaluation.frames import Frames
from polyp_difom.pipeline.evaluation.metrics import Summary, read_scores_csv, read_summary, write_scores_csv, write_summary
from polyp_difom.pipeline.evaluation.scoring import ImageScore
from polyp_difom.pipeline.evaluation.tables import csv_table, markdown
from polyp_difom.pipeline.evaluation.targets import Target, open_target
from polyp_difom.pipeline.files import sha256_of, write_csv, write_json, write_text
from polyp_difom.pipeline.header import checked
from polyp_difom.pipeline.json_files import read_json
from polyp_difom.pipeline.models.strangers import require_closed

LEFT_OUT = "without-leaks"
"""Folder of the figures without leaked frames, below each protocol's."""
RESULTS = ("results.csv", "results.json", "results.md")


class ScoredFrame(NamedTuple):
    """Where a frame was read from, and the digests of its two files: nothing else may be drawn on a page."""

    image: Path
    mask: Path
    image_sha256: str
    mask_sha256: str

    def is_unchanged(self) -> bool:
        """Both files are what was scored."""
        return _is(self.image, self.image_sha256) and _is(self.mask, self.mask_sha256)


class _About(BaseModel):
    """What target.json holds."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["run", "checkpoint", "onnx", "torchscript", "openvino", "hub-folder", "masks"]
    path: str
    name: str
    sha256: str | None
    header: dict[str, Any]
    parameters: int | None = Field(ge=0, lt=10**12)


class EvaluationRecord:
    """The evaluations of one target on disk.

    Attributes:
        path: the run folder, or the folder that `evaluate -o` made.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folder = path / "evaluation"

    @classmethod
    def open(cls, path: Path) -> EvaluationRecord:
        """The record in a folder.

        Raises:
            RunError: nothing was evaluated into this folder, or something in it leads out of it.
        """
        record = cls(path)
        require_closed(path)
        if not record._target_file.is_file():
            raise RunError(
                "not evaluated", where=path, wanted="a run folder, or a folder that `polyp-difom evaluate -o` made",
                remedy=f"polyp-difom evaluate {path} --data DIR",
            )  # fmt: skip
        return record

    @classmethod
    def prepare(cls, target: Target) -> tuple[EvaluationRecord, bool]:
        """The record that a target's figures go to, and whether figures of earlier weights in it must give way.

        Raises:
            RunError: the folder holds another target's figures, or what no evaluation wrote.
        """
        record = cls(target.record)
        own = target.kind == "run" and record.path == target.path
        if not record._target_file.is_file():
            if not own and record.path.exists() and (not record.path.is_dir() or any(record.path.iterdir())):
                raise RunError(
                    "will not write figures among what no evaluation wrote", where=record.path, remedy="give another -o"
                )
            return record, False
        about = record.about()
        unchanged = about["sha256"] == target.digest() and about["kind"] == target.kind
        here = _place(target.path)
        if not own and (about["kind"], about["path"]) != (target.kind, here) and not (unchanged and target.digest()):
            raise RunError(
                "the folder holds the figures of another target", where=record.path, got=f"{about['kind']} {about['path']}",
                wanted=f"{target.kind} {here}", remedy="give another -o",
            )  # fmt: skip
        return record, not unchanged

    @property
    def name(self) -> str:
        """For tables: the folder's, which is the target's own unless `evaluate -o` said otherwise."""
        return printable(self.path.absolute().name)

    @property
    def home(self) -> Path:
        """Where the target is: a run may have moved, with its record."""
        return self.path if (self.path / "config.yaml").is_file() else Path(self.about()["path"])

    @property
    def _target_file(self) -> Path:
        return self.folder / "target.json"

    def about(self) -> dict[str, Any]:
        """What was scored: kind, path, name, sha256 (None for a folder of maps), header, parameters (None if unknown).

        Raises:
            RunError: the file is damaged.
        """
        path = self._target_file
        try:
            about = _About.model_validate(read_json(path)).model_dump()
        except (OSError, ValueError) as error:
            raise RunError(
                "the record of an evaluation is damaged", where=path, got=str(error)[:300], remedy="evaluate again"
            ) from error
        if about["header"]:
            checked(about["header"], path)
        return about

    def target(self, device: str = "auto") -> Target:
        """What was scored, opened again.

        Raises:
            RunError: it is gone.
        """
        return open_target(self.home, out=self.path, device=device)

    def scores(self, protocol: str) -> dict[str, list[ImageScore]]:
        """Rows by "<data set> (<split>)".

        Raises:
            RunError: nothing was scored under this protocol. DataError: a damaged table.
        """
        found = {label: read_scores_csv(path) for label, path in self.files(protocol, "csv")}
        if not found:
            raise RunError(
                f"{self.name} was not evaluated under protocol {protocol!r}", where=self.path,
                remedy=f"polyp-difom evaluate {self.home} --data DIR --protocol {protocol}",
            )  # fmt: skip
        return found

    def summaries(self, protocol: str) -> dict[str, Summary]:
        """Figures by "<data set> (<split>)"; {} where nothing was scored under this protocol."""
        found = {label: read_summary(path) for label, path in self.files(protocol, "json")}
        if strange := [label for label, summary in found.items() if summary.protocol != protocol]:
            raise RunError(
                "the figures are not of their folder's protocol", where=self.folder / protocol, got=strange[0], wanted=protocol,
                remedy="evaluate again",
            )  # fmt: skip
        return found

    def without_leaks(self, protocol: str) -> dict[str, Summary]:
        """Likewise the figures without leaked frames, of those sets where leaks were looked for and found."""
        return {label: read_summary(path) for label, path in self.files(f"{protocol}/{LEFT_OUT}", "json")}

    def frames(self) -> dict[str, ScoredFrame]:
        """Files of every scored frame by its id."""
        path = self.folder / "frames.csv"
        if not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            try:
                return {
                    row["id"]: ScoredFrame(
                        Path(row["image"]), Path(row["mask"]), row.get("image_sha256") or "", row.get("mask_sha256") or ""
                    )
                    for row in csv.DictReader(file)
                }
            except (KeyError, TypeError, ValueError, csv.Error) as error:
                raise RunError("the list of scored frames is damaged", where=path, remedy="evaluate again") from error

    def forget(self) -> None:
        """Remove all figures and pictures: they are of weights that are no more."""
        shutil.rmtree(self.folder)
        shutil.rmtree(self.path / "overlays", ignore_errors=True)
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def describe(self, target: Target, pairs: Sequence[Pair], frames: Frames) -> None:
        """Write what was scored, and on which files."""
        about = {
            "kind": target.kind, "path": _place(target.path), "name": target.name, "sha256": target.digest(),
            "header": target.header, "parameters": target.info.parameters if target.info else None,
        }  # fmt: skip
        known = self.frames() | {
            pair.id: ScoredFrame(pair.image.absolute(), pair.mask.absolute(), *frames.digests(pair)) for pair in pairs
        }
        rows = [{"id": name, **frame._asdict()} for name, frame in known.items()]
        write_csv(self.folder / "frames.csv", ("id", *ScoredFrame._fields), rows)
        write_json(self._target_file, about)

    def write_set(self, split: str, summary: Summary, rows: Sequence[ImageScore]) -> None:
        """Write one set's figures and rows; all earlier ones of the same set, split and protocol give way."""
        folder, stem = self.folder / summary.protocol, f"{summary.dataset}-{split}"
        for old in ("csv", "json"):
            (folder / LEFT_OUT / f"{stem}.{old}").unlink(missing_ok=True)
        write_scores_csv(folder / f"{stem}.csv", rows)
        write_summary(folder / f"{stem}.json", summary)

    def write_without_leaks(self, split: str, summary: Summary, leaks: Sequence[Any]) -> None:
        """Write one set's figures without its leaked frames, and which those are (dataclasses)."""
        folder, stem = self.folder / summary.protocol / LEFT_OUT, f"{summary.dataset}-{split}"
        rows = [asdict(leak) for leak in leaks]
        write_csv(folder / f"{stem}.csv", list(rows[0]), rows)
        write_summary(folder / f"{stem}.json", summary)

    def write_results(self) -> None:
        """Make results.csv, results.json and results.md from all figures in the record."""
        figures = list(self._all())
        write_csv(self.path / "results.csv", *csv_table(figures))
        held = [{"split": split, "left_out": left_out, **asdict(summary)} for split, left_out, summary in figures]
        write_json(self.path / "results.json", {"target": self.about(), "results": held})
        write_text(self.path / "results.md", markdown(self.about(), figures))

    def _all(self) -> Iterator[tuple[str, int, Summary]]:
        """(split, frames left out as leaked, figures) of everything scored."""
        for protocol in sorted(folder.name for folder in self.folder.iterdir() if folder.is_dir()):
            less = self.without_leaks(protocol)
            for label, summary in self.summaries(protocol).items():
                split = label.rpartition("(")[2].removesuffix(")")
                yield split, 0, summary
                if label in less:
                    yield split, summary.images - less[label].images, less[label]

    def files(self, folder: str, suffix: str) -> Iterator[tuple[str, Path]]:
        """("<data set> (<split>)", file) of all files with a suffix in one folder below `evaluation`."""
        for path in sorted((self.folder / folder).glob(f"*.{suffix}")):
            dataset, _, split = path.stem.rpartition("-")
            yield f"{dataset} ({split})", path


def _place(path: Path) -> str:
    """Where a target can be found again from any folder; a name on the hub stays what it is."""
    return str(path) if str(path).startswith("hf:") else str(path.absolute())


def rows_of_other(
    against: Path, protocol: str, split: str, datasets: Sequence[str], sources: Sequence[Source]
) -> dict[str, list[ImageScore]]:
    """Rows of the record at `against` by data set, for a comparison.

    Raises:
        RunError: it was not scored on all of `datasets` under this protocol; names the command that does it.
    """
    data = " ".join(f"--data {source.layout}={source.root}" if source.layout else f"--data {source.root}" for source in sources)
    options = f"{data} --split {split} --protocol {protocol}"
    try:
        record = EvaluationRecord.open(against)
    except RunError as error:
        what, remedy = "nothing to compare with: the other was not scored", f"polyp-difom evaluate {against} {options}"
        raise RunError(what, where=against, got=error.what, remedy=remedy) from error
    rows = {label: read_scores_csv(path) for label, path in record.files(protocol, "csv")}
    if missing := [f"{name} ({split})" for name in datasets if f"{name} ({split})" not in rows]:
        out = "" if record.home == record.path else f" -o {against}"
        raise RunError(
            f"nothing to compare with: the other was not scored on {missing[0]} under protocol {protocol!r}", where=against,
            got=", ".join(rows) or "no data set under this protocol",
            remedy=f"polyp-difom evaluate {record.home} {options}{out}",
        )  # fmt: skip
    return {name: rows[f"{name} ({split})"] for name in datasets}


def _is(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and sha256_of(path) == digest
    except (OSError, ValueError):
        return False
