"""Which evaluations in a record are complete, and of what, so that the same is not scored twice.

    evaluation/done.json    by "<protocol>/<data set> (<split>)": weights, frames, settings, frames of the training among them

An entry goes before a set's figures are touched and comes back when all is written: a kill in between leaves none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.files import write_json
from polyp_difom.pipeline.json_files import read_json

_FILE = "done.json"


class Done(BaseModel):
    """One complete evaluation on one data set.

    Attributes:
        weights: digest of what was scored; None for a folder of maps.
        frames: digest of the frames' ids and files.
        seen: how many of the frames the target was trained or selected on, by split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights: str | None
    frames: str
    settings: dict[str, Any]
    seen: dict[str, NonNegativeInt]


_ENTRIES = TypeAdapter(dict[str, Done])


@dataclass(frozen=True)
class Job:
    """All that decides what an evaluation writes.

    Attributes:
        frames: digest of the frames, by data set.
        settings: measures, overlays and the like; JSON values.
    """

    protocol: str
    split: str
    weights: str | None
    frames: Mapping[str, str]
    settings: Mapping[str, Any]

    def complete(self, folder: Path) -> list[Done] | None:
        """What was done before, by data set, where a record's `evaluation` folder holds all of this job; else None.

        Raises:
            RunError: see `read_done`.
        """
        held, found = read_done(folder), []
        for name, digest in self.frames.items():
            entry = held.get(self._key(name))
            same = entry and (entry.weights, entry.frames, entry.settings) == (self.weights, digest, self.settings)
            files = [folder / self.protocol / f"{name}-{self.split}.{suffix}" for suffix in ("csv", "json")]
            if not same or not all(file.is_file() for file in files):
                return None
            found.append(held[self._key(name)])
        return found

    def begin(self, folder: Path) -> None:
        """Its sets' figures are about to change."""
        held, mine = read_done(folder), {self._key(name) for name in self.frames}
        if mine & held.keys():
            _write(folder, {key: entry for key, entry in held.items() if key not in mine})

    def finish(self, folder: Path, seen: Mapping[str, Mapping[str, int]]) -> None:
        """All is written; `seen` by data set."""
        mine = {}
        for name, digest in self.frames.items():
            entry = Done(weights=self.weights, frames=digest, settings=dict(self.settings), seen=dict(seen.get(name, {})))
            mine[self._key(name)] = entry
        _write(folder, read_done(folder) | mine)

    def _key(self, dataset: str) -> str:
        return f"{self.protocol}/{dataset} ({self.split})"


def read_done(folder: Path) -> dict[str, Done]:
    """Complete evaluations in a record's `evaluation` folder, by "<protocol>/<data set> (<split>)".

    Raises:
        RunError: the list is damaged.
    """
    path = folder / _FILE
    try:
        return _ENTRIES.validate_python(read_json(path)) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(
            "the list of complete evaluations is damaged", where=path, got=first_line(error),
            remedy="delete this file: what it lists is scored again",
        ) from error  # fmt: skip


def _write(folder: Path, entries: Mapping[str, Done]) -> None:
    write_json(folder / _FILE, {key: entry.model_dump() for key, entry in entries.items()})
