"""A sweep on disk: what was asked for, one record a trial, one ordinary run folder a trial, and the table of results.

sweeps/<name>/{sweep.yaml, students.json, trials/<number>.json, runs/<trial>/, study.journal, results.csv, report.html}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polyp_difom.cache.claims import living_owner
from polyp_difom.cache.errors import RunError, UsageError, first_line
from polyp_difom.cache.lock import exclusive_lock
from polyp_difom.cache.staging import staged
from polyp_difom.pipeline.files import contents, empty, write_text
from polyp_difom.pipeline.json_files import read_json
from polyp_difom.pipeline.models.strangers import require_closed
from polyp_difom.pipeline.reads import SIGNATURE, Reads, require_kept
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.sweep.facts import read_facts
from polyp_difom.pipeline.sweep.space import NAME_LENGTH, Factors, Span, Trial, Values, combinations, from_yaml, named, possible
from polyp_difom.pipeline.yaml_files import read_mapping

State = Literal["waiting", "running", "interrupted", "finished", "pruned", "failed"]
ENDED = ("finished", "pruned", "failed")
_YAML = "sweep.yaml"


class SweepConfig(BaseModel):
    """Everything that a sweep can be told; the resolved values lie in its folder as sweep.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    cache: str
    factors: dict[str, Values]
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int | None = Field(None, gt=0, le=10_000)
    optimise: tuple[Literal["dice", "latency"], ...] = ("dice",)
    prune: bool = True
    sampler_seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    jobs: int | None = Field(None, gt=0, le=256)
    """Trials side by side; None to measure what is fastest."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of each trial; None for an equal share of the cores."""
    stage_dir: str | None = None
    """Folder on each machine for its own copy of the store, see `polyp_difom.cache.staging`."""
    signature: str | None = None
    reads: Reads | None = None
    """What the store held when the sweep began, see `polyp_difom.pipeline.reads`: what it gains later is not read."""

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"how many trials? The sampler {self.sampler} needs --trials")
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError("a grid has as many trials as combinations; --trials is for random and tpe")
        if self.sampler != "tpe" and self.optimise != ("dice",):
            raise ValueError("several goals are for --sampler tpe; the report of any sweep shows Dice against latency")
        if self.optimise[:1] != ("dice",) or len(set(self.optimise)) != len(self.optimise):
            raise ValueError("optimise is dice, or dice,latency")
        return self

    def here(self, say: Callable[[str], None] = lambda line: None) -> SweepConfig:
        """These settings with this machine's own copy of the store, where there is to be one.

        Raises:
            CacheError: see `staged`.
        """
        if self.stage_dir is None:
            return self
        return self.model_copy(update={"cache": str(staged(self.cache, Path(self.stage_dir), say))})

    def planned(self) -> list[Trial]:
        """All trials of a grid or of random draws; none for tpe, which decides one after another."""
        if self.sampler == "tpe":
            return []
        rows = combinations(self.factors, self.sampler, self.trials, self.sampler_seed)
        return [named(number, settings, self.factors) for number, settings in enumerate(rows)]


class Record(BaseModel):
    """What is known of one trial beside its run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0, lt=10**9)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$", max_length=NAME_LENGTH)
    settings: dict[str, Any]
    state: State
    starts: tuple[int, ...] = ()
    """Epochs that were done at each start: a trial whose process dies again and again at the same one is given up."""
    seconds: float = Field(default=0.0, ge=0, lt=1e12)
    """Of this trial's last start to its end, with all that belongs to it."""
    error: str | None = None
    same_as: int | None = None
    """Number of the finished trial of the same settings, whose figures stand for this one's."""
    host: str = ""

    @property
    def trial(self) -> Trial:
        """The trial itself."""
        return Trial(self.number, dict(self.settings), self.name)


class SweepFolder:
    """One sweep on disk; any number of processes may work in it."""

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.csv"
        self.journal = path / "study.journal"
        self.students = path / "students.json"

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """An existing sweep.

        Raises:
            RunError: there is none, or something in it leads out of it.
        """
        require_closed(path)
        if not (path / _YAML).is_file():
            raise RunError("no sweep here", where=path, wanted="a folder that `polyp-difom sweep -o` made")
        return cls(path)

    @property
    def exists(self) -> bool:
        """A sweep was begun here."""
        return (self.path / _YAML).is_file()

    def refuse_to_lose(self, overwrite: bool) -> None:
        """Whether a sweep may be begun here; nothing is deleted yet.

        Raises:
            RunError: the folder holds something, and `overwrite` was not asked for or it is no sweep.
        """
        held = {self.path.name} if self.path.is_file() else contents(self.path) - {".claims"} if self.path.exists() else set()
        if not held - ({self.students.name} if not self.exists else set()):  # a kill came before there was a sweep
            return
        if not overwrite:
            raise RunError(
                "the sweep's folder exists already", where=self.path,
                remedy="give another -o, or --resume to go on, --join to help, or --overwrite to start afresh",
            )  # fmt: skip
        if not self.exists:
            raise RunError("will not overwrite what no sweep wrote", where=self.path, remedy="give another -o")

    def make(self) -> None:
        """RunError where there is no such folder and none can be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                "the sweep's folder cannot be made", where=self.path, got=error.strerror, remedy="give another -o"
            ) from error

    def clear(self, overwrite: bool) -> None:
        """Empties the folder that a sweep is to be begun in.

        Raises:
            RunError: as `refuse_to_lose`. CacheError: a sweep runs there.
        """
        with exclusive_lock(self.path / ".lock"):
            self.refuse_to_lose(overwrite)
            empty(self.path, last=_YAML)

    def create(self, config: SweepConfig) -> None:
        """Writes what was asked for: with that the sweep exists."""
        write_text(self.path / _YAML, _dumped(config))

    def config(self) -> SweepConfig:
        """What was asked for, as resolved when the sweep began.

        Raises:
            RunError: it is damaged.
        """
        try:
            held = read_mapping(self.path / _YAML)
            config = SweepConfig(**{**held, "factors": from_yaml(held["factors"])})
            for name, values in config.factors.items():
                for value in (values.low, values.high) if isinstance(values, Span) else values:
                    possible({name: value})
            return config
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError("the sweep's settings cannot be read", where=self.path / _YAML, got=first_line(error)) from error

    def agreed(self, config: SweepConfig) -> SweepConfig:
        """The settings of one who resumes or joins: the machine's are his own, all else is as the sweep was begun.

        Raises:
            CacheError: the store is not the one that it was begun over. UsageError: another setting differs.
        """
        begun = self.config()
        require_kept(
            "not the store that the sweep was begun over", config.cache, dict(begun),
            {name: [digest] for name, digest in {**(config.reads or {}), SIGNATURE: config.signature}.items()},
            "give that store, or begin a sweep over this one with another -o",
        )  # fmt: skip
        if config.threads is None:
            config = config.model_copy(update={"threads": begun.threads})
        for name in ("cache", "factors", "sampler", "trials", "optimise", "prune", "sampler_seed", "threads"):
            before, now = getattr(begun, name), getattr(config, name)
            if before != now:
                raise UsageError(
                    "the sweep was begun with other settings", where=self.path, got=f"{name} = {now} now",
                    wanted=f"{name} = {before}", remedy=f"polyp-difom sweep --resume -o {self.path}",
                )  # fmt: skip

        names = ("factors", "signature", "reads")  # factors in their order there, which numbers the trials
        return config.model_copy(update={name: getattr(begun, name) for name in names})

    def revive(self, *, failed: bool) -> None:
        """Stopped trials have as many lives as at first, since whoever stopped the sweep may have ended them.

        Args:
            failed: those that failed go on too, from their last epoch.

        Raises:
            UsageError: failed ones of a guided sweep, whose study has taken note of them.
        """
        states = ("interrupted", "failed") if failed else ("interrupted",)
        dead = [record for record in self.records() if record.state in states]
        if any(record.state == "failed" for record in dead) and self.config().sampler == "tpe":
            raise UsageError("a guided sweep's failures stand", where="--retry-failed", wanted="a grid or random draws")
        for record in dead:
            self.write(record.model_copy(update={"state": "running", "starts": (), "error": None}))

    def run(self, trial: Trial) -> RunFolder:
        """The trial's run folder, there or not."""
        return RunFolder(self.path / "runs" / trial.name)

    def write(self, record: Record) -> None:
        """Keeps a trial's record."""
        write_text(self.path / "trials" / f"{record.number}.json", record.model_dump_json(indent=1))

    def record(self, number: int) -> Record | None:
        """The record of a trial, None before it first starts; a trial whose process is gone counts as interrupted.

        Raises:
            RunError: it is damaged.
        """
        path = self.path / "trials" / f"{number}.json"
        try:
            record = Record.model_validate(read_json(path))
            possible(record.settings)
            if record.number != number:
                raise ValueError(f"it is of trial {record.number}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                "a trial's record is damaged", where=path, got=first_line(error),
                remedy="delete this file; with --resume the trial goes on from its run folder",
            ) from error  # fmt: skip
        if record.state == "running" and living_owner(self.path, number) is None:
            return record.model_copy(update={"state": "interrupted"})
        return record

    def records(self) -> list[Record]:
        """Every record, by number."""
        numbers = sorted(int(path.stem) for path in (self.path / "trials").glob("*.json") if path.stem.isdecimal())
        return [record for number in numbers if (record := self.record(number))]

    def all_records(self) -> list[Record]:
        """Every record, and a waiting one for each planned trial that has not begun."""
        held = {record.number: record for record in self.records()}
        waiting = (Record(number=t.number, name=t.name, settings=t.settings, state="waiting") for t in self.config().planned())
        return sorted({**{record.number: record for record in waiting}, **held}.values(), key=lambda record: record.number)

    def facts(self) -> dict[str, dict[str, Any]]:
        """See `read_facts`."""
        return read_facts(self.students)


def _dumped(config: SweepConfig) -> str:
    def plain(values: Values) -> Any:
        return vars(values).copy() if isinstance(values, Span) else list(values)

    held = config.model_dump(mode="json", exclude={"factors"})
    factors: Factors = config.factors
    return yaml.safe_dump({**held, "factors": {name: plain(v) for name, v in factors.items()}}, sort_keys=False)
