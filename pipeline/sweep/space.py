"""What a sweep varies: factors with their values, and the trials that a grid or random draws make of them."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from polyp_difom.cache.errors import UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.feed import choose_teachers
from polyp_difom.pipeline.objectives.weighted import needs_of, parse
from polyp_difom.pipeline.reads import Reads, parts_named
from polyp_difom.pipeline.students.encoder_weights import pinned
from polyp_difom.pipeline.students.protocol import STUDENTS
from polyp_difom.pipeline.subset import choose_subset

_FIXED = ("cache", "signature", "reads", "device", "threads", "compile", "auto")
FACTORS = tuple(name for name in DistillConfig.model_fields if name not in _FIXED)
"""What may be varied: the settings of `distill` that do not belong to the machine or the store."""
LISTS = ("teachers", "scales")
"""Factors whose values are several names, joined by a plus."""
UNREAD = ("teachers", "scales", "channels", "distill_weight", "weight_schedule", "drop_teachers")
"""What an objective without teachers does not read."""
GIVEN = "--grid, or `factors` in the file"
"""Where factors stand."""
MOST_TRIALS = 10_000
NAME_LENGTH = 60
"""Of a trial."""
_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Span:
    """A range of numbers to draw from; evenly in their logarithms where `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UsageError("a range must rise, and be above zero where it is logarithmic", got=f"{self.low}..{self.high}")

    def draw(self, chance: random.Random) -> float:
        """One number."""
        if self.log:
            return math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return chance.uniform(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (" (log)" if self.log else "")


Values = tuple[Any, ...] | Span
Factors = Mapping[str, Values]


@dataclass(frozen=True)
class Trial:
    """One student to train.

    Attributes:
        number: in the order of the sweep.
        settings: value of every factor, by its name; those that its objective does not read are left out.
        name: of its run folder, from the number and the values that differ between trials.
    """

    number: int
    settings: dict[str, Any]
    name: str

    @property
    def student(self) -> str:
        """By name; the default of `distill` where it is no factor."""
        return self.settings.get("student", DistillConfig.model_fields["student"].default)

    @property
    def network(self) -> str:
        """See `DistillConfig.network`."""
        return self.config("").network

    def config(self, cache: str, reads: Reads | None = None, **machine: Any) -> DistillConfig:
        """What `distill` is told; `machine` are device, threads and signature.

        Args:
            reads: what the store held when the sweep began: all teachers and scales, where the trial names none.
        """
        values: dict[str, Any] = dict(self.settings)
        values |= {name: tuple(values[name].split("+")) for name in LISTS if values.get(name)}
        values |= {name: held for name, held in parts_named(reads or {}).items() if held and values.get(name) is None}
        return DistillConfig(cache=cache, reads=reads, **values, **machine)


def parse_grid(text: str) -> dict[str, Values]:
    """Factors from words such as "student=unet,light learning-rate=1e-4..1e-2 seed=0..2".

    A range between whole numbers stands for all of them, any other for a `Span` (logarithmic from a factor of ten on).

    Raises:
        UsageError: a word without a name or a value, or a factor named twice.
    """
    factors: dict[str, Values] = {}
    for word in text.split():
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not (name and equals and values):
            raise UsageError("a factor without a name or a value", where="--grid", got=word, wanted="name=value,value,...")
        if name in factors:
            raise UsageError(f"factor {name!r} is named twice", where="--grid", got=word, remedy="name it once")
        factors[name] = _parse_values(values)
    return factors


def _parse_values(text: str) -> Values:
    if span := re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", text):
        low, high = (_scalar(part) for part in span.groups())
        if isinstance(low, int) and isinstance(high, int):
            if not low <= high < low + MOST_TRIALS:
                raise UsageError("a range must rise", where="--grid", got=text, remedy="give the smaller number first")
            return tuple(range(low, high + 1))
        return Span(float(low), float(high), log=0 < 10 * float(low) <= float(high))
    return tuple(_scalar(part) for part in text.split(",") if part)


def _scalar(text: str) -> Any:
    try:
        return float(text) if "e" in text and re.fullmatch(_NUMBER, text) else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def from_yaml(held: object, file: Path | None = None) -> dict[str, Values]:
    """Factors from what a YAML file holds: lists, single values, or {low, high, log} for a range.

    Args:
        file: where it was read, for messages.

    Raises:
        UsageError: something else.
    """
    if not isinstance(held, dict) or not held:
        raise UsageError("`factors` is no mapping", where=file, got=held, wanted="lines of `factor: [value, value]`")
    factors: dict[str, Values] = {}
    for name, value in held.items():
        key = str(name).replace("-", "_")
        if isinstance(value, dict):
            try:
                factors[key] = Span(**{"log": False, **value, "low": float(value["low"]), "high": float(value["high"])})
            except (KeyError, TypeError, ValueError) as error:
                wanted = "{low: 1.0e-4, high: 1.0e-2, log: true}"
                raise UsageError(f"factor {key!r} is no range", where=file, got=value, wanted=wanted) from error
        elif isinstance(value, str) and ".." in value:
            factors[key] = _parse_values(value)
        else:
            factors[key] = tuple(value) if isinstance(value, list | tuple) else (value,)
    return factors


def checked(factors: Factors, store: FeatureStore, sampler: str) -> dict[str, Values]:
    """The same factors, once each value is known to be possible; teachers under their full names.

    Raises:
        UsageError: an unknown factor (with close matches), no value, or one that `distill` would refuse.
        MissingDependencyError: a file of encoder weights that is not there, or not as it was.
    """
    found: dict[str, Values] = {}
    for name, values in factors.items():
        if name not in FACTORS:
            close = get_close_matches(name, FACTORS, n=3)
            raise UsageError(
                f"there is no factor {name!r}", where=GIVEN, wanted=f"some of: {', '.join(FACTORS)}",
                remedy=f"did you mean {' or '.join(close)}?" if close else None,
            )  # fmt: skip
        if isinstance(values, Span):
            if sampler == "grid":
                raise UsageError(
                    f"a grid needs listed values of {name!r}", where=GIVEN, got=values, wanted=f"{name}=value,value",
                    remedy="list values, or give --sampler random or --sampler tpe",
                )  # fmt: skip
            _check_values(name, (values.low, values.draw(random.Random(0)), values.high), store)  # noqa: S311
            found[name] = values
            continue
        kept = tuple(_full_names(value, store) if name == "teachers" else value for value in values)
        if name == "encoder_weights":
            kept = tuple(pinned(str(value)) if value else None for value in kept)
        if not kept:
            raise UsageError(f"factor {name!r} has no value", where=GIVEN, wanted=f"{name}=value,...")
        _check_values(name, kept, store)
        found[name] = tuple(dict.fromkeys(kept))
    return found


def _full_names(value: object, store: FeatureStore) -> str | None:
    """ "sam+dinov2:base@9+12" with each teacher as the store names it; a plus inside a name is found by trying."""
    if value in (None, "all"):
        return None
    parts, names = str(value).split("+"), list[str]()
    while parts:
        for end in range(len(parts), 0, -1):
            try:
                names += choose_teachers(store, ("+".join(parts[:end]),))
            except UsageError:
                if end == 1:
                    raise
            else:
                del parts[:end]
                break
    return "+".join(dict.fromkeys(names))


def _check_values(name: str, values: Iterable[Any], store: FeatureStore) -> None:
    lookup: Callable[[str], object] | None = {
        "student": lambda value: STUDENTS.get(value.partition(":")[0]), "objective": parse,
    }.get(name)  # fmt: skip
    held = choose_teachers(store, None)
    for value in values:
        try:
            config = Trial(0, {name: value}, "").config(str(store.location))
        except (ValidationError, AttributeError) as error:
            reason = error.errors()[0]["msg"].lower() if isinstance(error, ValidationError) else str(error)
            raise UsageError(f"{name} cannot be {value!r}: {reason}", where=GIVEN) from error
        if lookup:
            lookup(getattr(config, name))
        choose_subset(store, held, config.scales, config.channels, config.views)


def possible(settings: Mapping[str, Any]) -> None:
    """ValueError where `distill` would refuse these settings, or they are no names and numbers."""
    for name, value in settings.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{name} cannot be {value!r:.80}")
    Trial(0, dict(settings), "").config("")


def combinations(factors: Factors, sampler: str, count: int | None, seed: int) -> list[dict[str, Any]]:
    """Settings of all trials: every combination of a grid in the order of its factors, or `count` random ones.

    What an objective does not read is left out, and combinations that are the same then are kept once.

    Raises:
        UsageError: more trials than anybody wants.
    """
    lists = {name: values for name, values in factors.items() if not isinstance(values, Span)}
    size = math.prod(len(values) for values in lists.values())
    chance = random.Random(seed)  # noqa: S311
    if len(lists) == len(factors):
        if size > MOST_TRIALS:
            raise UsageError("there are too many combinations", got=f"{size:,}", wanted=f"at most {MOST_TRIALS:,}",
                             remedy="leave values out, or give a range instead of a list")  # fmt: skip
        rows = unique(dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values()))
        return rows if sampler == "grid" else chance.sample(rows, min(count or 0, len(rows)))
    return [as_read({name: v.draw(chance) if isinstance(v, Span) else chance.choice(v) for name, v in factors.items()})
            for _ in range(count or 0)]  # fmt: skip


def unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings without what their objective does not read, each once."""
    return list({tuple(kept.items()): kept for kept in map(as_read, rows)}.values())


def as_read(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what the objective does not read, and without a choice of latents where it implies them."""
    needs = needs_of(settings.get("objective", DistillConfig.model_fields["objective"].default))
    left_out = (*(() if needs.maps or needs.spectra else UNREAD), *(("latents",) if needs.latents else ()))
    return {name: value for name, value in settings.items() if name not in left_out}


def networks(factors: Factors) -> tuple[str, ...]:
    """The networks, see `DistillConfig.network`, that trials of these factors can have."""
    fields = DistillConfig.model_fields
    lists = {name: factors.get(name, (fields[name].default,)) for name in ("student", "objective", "latents")}
    rows = itertools.product(*(() if isinstance(values, Span) else values for values in lists.values()))
    return tuple(dict.fromkeys(Trial(0, dict(zip(lists, row, strict=True)), "").network for row in rows))


def named(number: int, settings: dict[str, Any], factors: Factors) -> Trial:
    """A trial whose name says its number and the values of those factors that vary."""
    varied = [name for name, values in factors.items() if isinstance(values, Span) or len(values) > 1]
    words = [_word(name, settings[name]) for name in varied if name in settings]
    text = re.sub(r"[^A-Za-z0-9.+_-]+", "-", "-".join([f"{number:03d}", *words]))
    return Trial(number, settings, text[:NAME_LENGTH].rstrip("-."))


def _word(name: str, value: Any) -> str:
    initials = "".join(part[0] for part in name.split("_"))
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    if isinstance(value, int | float):
        return f"{initials}{value:.3g}"
    return "all" if value is None else str(value)
