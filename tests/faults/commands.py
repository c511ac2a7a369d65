"""The commands that faults are tried on: how they are typed, what they make, what of it must be the same however it came about."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import runs
from polyp_difom.pipeline.runs import read_checkpoint

VARYING = {"seconds", "latency_ms"}
Files = dict[str, bytes]


@dataclass(frozen=True)
class Command:
    """One command and what it makes in a folder.

    Args:
        words: of its command line, given the folder.
        again: what a user adds who types it a second time, the first guess.
        varies: patterns of files that no two runs share, or that hold only times.
        kept: what is finished and must not be computed again, by name, given the folder after a kill.
        begin: puts there what the command works on, before it is typed first.
    """

    name: str
    words: Callable[[Path], list[str]]
    again: tuple[str, ...]
    varies: str
    kept: Callable[[Path], dict[str, Any]] = field(default=lambda folder: {})
    begin: Callable[[Path], object] = field(default=lambda folder: None)


def commands(folder: Path) -> list[Command]:
    """All of them, on the frames, weights, store and run below a folder."""
    store, run, plain = folder / "base/store.zarr", folder / "base/run", ["--device", "cpu", "-q"]
    small = ["--precision", "float32", *plain]
    student = ["--student", "unet:4", "--batch-size", "8", "--epochs", "2", "--cache", str(store)]
    return [
        Command("extract", lambda out: [
            "extract", "-d", f"{folder}/frames", "--teachers", "dinov2:small", "--weights", f"dinov2:small={folder}/weights",
            "--size", "64", "--views", "1", "--channels", "8", "--scales", "s16", "--cache", f"{out}/store.zarr", *small,
        ], (), r"ledger/values/c/", _done_shards),
        Command("extend", lambda out: [
            "cache", "extend", f"{out}/store.zarr", "--teachers", "dinov2:base", "--weights", f"dinov2:base={folder}/weights",
            "--device", "cpu", "-q",
        ], (), r"ledger/values/c/", _done_shards, lambda out: shutil.copytree(store, out / "store.zarr")),
        Command("distill", lambda out: ["distill", *student, "-o", f"{out}/run", *small],
                ("--resume",), r"env\.json$", _epochs),
        Command("sweep", lambda out: [
            "sweep", "--cache", str(store), "--jobs", "1", "--threads", "1", "-o", f"{out}/sweep", *plain, "--grid",
            "student=unet:4 batch_size=8 epochs=1 precision=float32 objective=none,multiscale seed=0..0",
        ], ("--resume",), r"env\.json$|students\.json$|trials/", _trials),
        Command("export", lambda out: ["export", str(run), "--to", "torchscript", "-o", f"{out}/net.torchscript", "-q"], (), r"^$"),
        Command("hub folder", lambda out: ["export", str(run), "--to", "hub-folder", "-o", f"{out}/hub", "-q"], (), r"^$"),
        Command("predict", lambda out: [
            "predict", str(run), f"{folder}/pictures/images", "-o", f"{out}/out", "--save", "mask,overlay,coco", *plain,
        ], (), r"^$"),
    ]  # fmt: skip


def snapshot(place: Path, command: Command) -> Files:
    """All that a command made, without what varies; files that vary are there by name."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not name.startswith("tmp/") and path.name not in (".lock", "train.log"):
            found[name] = b"" if re.search(command.varies, name) else _plain(path)
    return found


def _plain(path: Path) -> bytes:
    """Content without the columns that hold times."""
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return repr([{key: value for key, value in row.items() if key not in VARYING} for row in rows]).encode()
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return repr([{key: value for key, value in line.items() if key not in VARYING} for line in lines]).encode()
    if path.suffix == ".torchscript":  # a ZIP file with a random number, and source lines of whoever called
        with zipfile.ZipFile(path) as held:
            return repr(
                [(n, held.read(n)) for n in held.namelist() if not n.endswith((".debug_pkl", "serialization_id"))]
            ).encode()
    return path.read_bytes()


def compare(found: Files, sound: Files) -> list[str]:
    """Files that differ, lack or are too many."""
    return sorted(name for name in found.keys() | sound.keys() if found.get(name) != sound.get(name))


def torn_files(place: Path, command: Command, sound: Files) -> list[str]:
    """Files under their final names that are not whole, before anything is put right."""
    torn = []
    for path in place.rglob("checkpoints/[!.]*.safetensors"):
        try:
            read_checkpoint(path)
        except Exception as error:
            torn.append(f"{path.name}: {error}")
    final = re.compile(r"config\.yaml$|samples\.csv$|last\.safetensors$|net\.torchscript$|hub/|\.png$|\.jpg$")
    here = snapshot(place, command)
    torn += [name for name, raw in here.items() if final.search(name) and "/." not in name and raw != sound.get(name)]
    if (store := place / "store.zarr").exists():
        torn += [f"{damage.key} {damage.shard}: {damage.reason}" for damage in FeatureStore.open(store).verify()]
    return torn


def _done_shards(place: Path) -> dict[str, Any]:
    """Inode and time of every file of a shard that is marked done."""
    if not (path := place / "store.zarr").exists():
        return {}
    store = FeatureStore.open(path)
    files = [store.sharded(key).file(n) for key in store.manifest.arrays for n in np.flatnonzero(store.done()).tolist()]
    return {file: (path / file).stat().st_mtime_ns for file in files}


def _epochs(place: Path) -> dict[str, Any]:
    """Seconds of every epoch that a resumed run need not train again."""
    run = runs.RunFolder(place / "run")
    epochs = read_checkpoint(run.resume_state)[1]["epoch"] if run.resume_state.exists() else None
    return {f"epoch {number}": record["seconds"] for number, record in enumerate(run.history()[:epochs])}


def _trials(place: Path) -> dict[str, Any]:
    """Time of every finished student."""
    finished: Iterable[Path] = place.glob("sweep/runs/*/checkpoints/last.safetensors")
    return {str(path): path.stat().st_mtime_ns for path in finished if not path.with_name("resume.safetensors").exists()}
