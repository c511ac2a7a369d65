"""From a run to a checked file: build, compare with torch, and only then keep."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.export.describe import describe, figures_of
from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.export.frames import choose_frames
from polyp_difom.pipeline.export.parity import Parity, compare, require
from polyp_difom.pipeline.files import alone_in, contents, write_bytes
from polyp_difom.pipeline.models.exported import Precision
from polyp_difom.pipeline.models.hub import FILES
from polyp_difom.pipeline.models.loading import kind_of, load_model
from polyp_difom.pipeline.models.network import NetworkModel
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import RunFolder

TRAINED = ("run", "checkpoint", "hub-folder")


@dataclass(frozen=True)
class Exported:
    """One export that was kept.

    Attributes:
        path: file (or folder) to give to `evaluate`, `predict` and other software.
        files: all that was written.
        remarks: what its user must know.
    """

    path: Path
    format: str
    precision: Precision
    files: list[Path]
    parity: Parity
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "path": str(self.path), "format": self.format, "precision": self.precision,
            "files": {str(path): path.stat().st_size for path in self.files},
            "parity": self.parity.as_json(), "remarks": list(self.remarks),
        }  # fmt: skip


def export(
    path: Path,
    to: str,
    *,
    out: Path | None = None,
    precision: Precision = "float32",
    embed_preprocessing: bool = False,
    sources: tuple[Source, ...] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a trained network as another kind of file, compared with torch before it is kept.

    Args:
        path: a run folder, a checkpoint or a hub folder.
        to: a name of `FORMATS`.
        out: file (a folder for hub-folder); default `exports/<run>[-<precision>][-embedded]<suffix>`.
        sources: data whose validation frames are compared on, and whose train frames set the scales of int8.

    Raises:
        UsageError: a format, precision or path that does not go together. RunError: the file differs from the network, exists
        already, or cannot be written. MissingDependencyError: the format's package is not installed.
    """
    progress = progress or Progress()
    kind = FORMATS.get(to)
    kind.check(to, precision, embed_preprocessing)
    if kind_of(path) not in TRAINED:
        raise UsageError("not a trained network, but an export", where=path, wanted=", ".join(TRAINED),
                         remedy=f"polyp-difom export RUN --to {to}, with the run that it was made of")  # fmt: skip
    original = load_model(path, "cpu")
    assert isinstance(original, NetworkModel)  # noqa: S101
    header = original.info.header
    name = original.info.name
    target = _target(out, kind, to, f"{name}{_variant(to, precision, embed_preprocessing)}", overwrite)
    frames = choose_frames(sources, header, _learned(path, header), precision, embed_preprocessing)
    progress.say(f"comparing on {frames.words}")
    calibration = frames.calibration if precision == "int8" else []
    built = kind(Job(original.student, header["frame_size"], precision, embed_preprocessing, calibration))
    about = describe(
        name, header, original.info.parameters or 0, precision, embed_preprocessing, figures_of(path, header), original.student
    )
    with tempfile.TemporaryDirectory() as folder:
        trial, kept = (Path(folder) / stage / target.name for stage in ("trial", "kept"))
        for place in (trial, kept):
            place.parent.mkdir()
        built.write(trial, about)
        parity = compare(
            original, load_model(trial, "cpu", trust=True), frames, precision, progress, embedded=embed_preprocessing
        )
        require(parity, target, precision)
        written = built.write(kept, about.model_copy(update={"parity": parity.as_json()}))
        with alone_in(target.parent, target.name):
            _target(target, kind, to, name, overwrite)  # another export may have been faster
            files = _keep(written, kept, target)
    return Exported(target, to, precision, files, parity, built.remarks)


def _variant(to: str, precision: str, embedded: bool) -> str:
    parts = (
        "tensorrt" if to == "tensorrt-ready" else "",
        "" if precision == "float32" else precision,
        "embedded" if embedded else "",
    )
    return "".join(f"-{part}" for part in parts if part)


def _target(out: Path | None, kind: type[Format], to: str, name: str, overwrite: bool) -> Path:
    """Where the export goes.

    Raises:
        UsageError: a file name of another format. RunError: something is there.
    """
    target = out or Path("exports") / f"{name}{kind.suffix}"
    if target.suffix != kind.suffix and kind.suffix:
        raise UsageError(f"{to} is a {kind.suffix} file", where="--out", got=target,
                         remedy=f"give --out {target.with_suffix(kind.suffix)}")  # fmt: skip
    companions = [target.with_suffix(suffix) for suffix in kind.companions]
    taken = [path for path in (target, *companions) if path.exists()]
    if not taken or (overwrite and all(path.is_dir() == (kind.suffix == "") for path in taken)):
        if target.is_dir() and not contents(target) <= set(FILES):
            raise RunError("will not overwrite what no export wrote", where=target, remedy="give another -o")
        return target
    raise RunError(
        "something is there already", where=taken[0],
        remedy="give another -o" if overwrite else "give another -o, or --overwrite to replace it",
    )  # fmt: skip


def _learned(path: Path, header: Mapping[str, Any]) -> set[str]:
    """Data sets that the network learned from, as far as is known."""
    if (path / "samples.csv").is_file():
        return RunFolder(path).datasets()
    return {entry["name"] for entry in header.get("provenance", {}).get("datasets", [])}


def _keep(written: list[Path], scratch: Path, target: Path) -> list[Path]:
    """Move the files from the scratch folder; of several the last is missing as long as they do not fit together."""
    places = [target.parent / path.relative_to(scratch.parent) for path in written]
    try:
        if len(places) > 1:
            places[-1].unlink(missing_ok=True)
        if target.is_dir():
            for stray in target.glob(".*.partial"):
                stray.unlink()
        for path, place in zip(written, places, strict=True):
            write_bytes(place, path.read_bytes())
    except OSError as error:
        raise RunError("cannot write", where=target, got=error.strerror, remedy="give another -o") from error
    return places
