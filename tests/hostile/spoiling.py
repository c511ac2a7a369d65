"""Changes that make a whole folder a hostile one."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]


def writing(pattern: str, raw: bytes) -> Change:
    """Puts bytes into every file that fits."""

    def change(folder: Path) -> None:
        for path in list(folder.glob(pattern)) or [folder / pattern]:
            path.write_bytes(raw)

    return change


def edited(pattern: str, values: dict[str, Any]) -> Change:
    """Changes entries of JSON objects."""

    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cells(pattern: str, values: dict[str, str]) -> Change:
    """Changes cells in the first row of tables."""

    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            rows[0] |= values
            path.write_text(row(list(rows[0])) + "".join(row(list(one.values())) for one in rows), encoding="utf-8", newline="")

    return change


def renamed(folder: str, stem: str) -> Change:
    """Calls the files of a folder otherwise."""
    return lambda run: [path.rename(path.with_name(stem + path.suffix)) for path in list((run / folder).iterdir())]


def linked(name: str, target: str) -> Change:
    """Puts a link in the place of a file or folder."""

    def change(folder: Path) -> None:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.symlink_to(target)

    return change


def forgotten(file: str, raw: bytes) -> Change:
    """Other bytes in a file, and no evaluation, which was of the ones before."""

    def change(run: Path) -> None:
        (run / file).write_bytes(raw)
        shutil.rmtree(run / "evaluation")

    return change


def elsewhere(place: str, **changes: object) -> Change:
    """The folder of an evaluation alone, which says where the network is."""

    def change(run: Path) -> None:
        for path in list(run.iterdir()):
            if path.name != "evaluation":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        edited("evaluation/target.json", {"path": place, **changes})(run)

    return change


def row(values: list[Any]) -> str:
    """A line of a table."""
    held = io.StringIO()
    csv.writer(held).writerow(values)
    return held.getvalue()
