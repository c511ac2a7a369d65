"""Sources in, predictions out: one stream, a batch at a time, whatever the inputs and the formats are.

Shapes: h w a picture's own size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from polyp_difom.cache.errors import DataError, RunError, UsageError
from polyp_difom.pipeline.data.frames import VIEWS, flip_axes
from polyp_difom.pipeline.files import alone_in
from polyp_difom.pipeline.models.protocol import Model
from polyp_difom.pipeline.predict.clock import Clock
from polyp_difom.pipeline.predict.folder import start_afresh
from polyp_difom.pipeline.predict.outputs import OUTPUTS, Output, Prediction, Table
from polyp_difom.pipeline.predict.pictures import Picture, Source
from polyp_difom.pipeline.predict.regions import find_regions
from polyp_difom.pipeline.progress import Progress


class PredictConfig(BaseModel):
    """How to predict.

    Attributes:
        threshold: a pixel is lesion when its probability is at or above it.
        flips: average over four flips, and tell how much they differ.
        save: names of `OUTPUTS`; None for masks (not of films) and overlays, and with `flips` the uncertainty (not of films).
        batch_size: pictures that the network sees at once; None for 1 on a CPU, 8 on a GPU.
        every: of films, every N-th frame.
        limit: stop after so many pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(0.5, gt=0, le=1)
    flips: bool = False
    save: tuple[str, ...] | None = None
    batch_size: int | None = Field(None, ge=1)
    every: int = Field(1, ge=1)
    limit: int | None = Field(None, ge=1)

    def require_outputs(self) -> None:
        """Raise UsageError for a name in `save` that no output has, or one that these settings cannot fill."""
        for name in self.save or ():
            OUTPUTS.get(name)
        if "uncertainty" in (self.save or ()) and not self.flips:
            raise UsageError("no uncertainty without flips", where="--save uncertainty", remedy="add --flips")

    def outputs(self, film: bool) -> tuple[str, ...]:
        """Names of the outputs of a film's frames, or of single pictures."""
        if self.save is not None:
            return self.save
        if film:
            return ("overlay",)
        return ("mask", "overlay", "uncertainty") if self.flips else ("mask", "overlay")


@dataclass(frozen=True)
class Totals:
    """What came of it.

    Attributes:
        pictures: predicted, frames of films included.
        with_lesion: of these, how many have at least one region.
        rates: pictures a second: "whole", and each section by itself.
        device: what the network ran on, with the CPU threads that torch may use.
        failures: sources that could not be read, or not to their end.
    """

    out: Path
    pictures: int
    with_lesion: int
    rates: dict[str, float]
    device: str
    failures: list[DataError]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        failed = [{"what": error.what, **error.details} for error in self.failures]
        return {
            "out": str(self.out), "pictures": self.pictures, "with_lesion": self.with_lesion,
            "pictures_per_second": self.rates, "device": self.device, "failed": failed,
        }  # fmt: skip


def predict(
    model: Model, sources: Sequence[Source], out: Path, config: PredictConfig, progress: Progress | None = None
) -> Totals:
    """Predict all pictures and write them below `out`, which is emptied first (see `folder.refuse_to_lose`).

    A source that cannot be read is noted and the next one is taken. After Ctrl-C all files are finished, then it is raised on.

    Raises:
        RunError: the disk refuses, or the network's output is no number.
        UsageError: outputs that cannot be.
    """
    config.require_outputs()
    progress = progress or Progress()
    info = model.info
    about = {
        "polyp_difom": version("polyp-difom"), "directory": os.getcwd(), "model": info.path, "kind": info.kind,
        "frame_size": info.frame_size,
        "device": info.device, "settings": config.model_dump(), "header": info.header,
    }  # fmt: skip
    failures: list[DataError] = []
    clock, with_lesion = Clock(), 0
    total = sum(source.count(config.every) for source in sources)
    batch_size = config.batch_size or (8 if info.device.startswith("cuda") else 1)
    # the table first, so that it is closed last and holds a row for everything that others hold
    with (
        alone_in(out),
        ExitStack() as open_outputs,
        progress.task("predicting", min(total, config.limit or total)) as advance,
    ):
        start_afresh(out, about)
        model.probability(np.zeros((info.frame_size, info.frame_size, 3), np.uint8))  # the first is slow: not in the figures
        outputs = _Outputs(out, clock, info.name, config, open_outputs)
        stream = islice(clock.timed("decode", _pictures(sources, config.every, failures)), config.limit)
        while batch := list(islice(stream, batch_size)):
            for prediction in _predicted(model, batch, config, clock):
                outputs.add(prediction)
                with_lesion += bool(prediction.regions)
                clock.tick()
                advance(1)
    device = f"{info.device}, {torch.get_num_threads()} CPU threads"
    return Totals(out, clock.pictures, with_lesion, clock.rates(), device, failures)


class _Outputs:
    """The formats asked for, each begun with its first picture; the table always."""

    def __init__(self, out: Path, clock: Clock, model: str, config: PredictConfig, closing: ExitStack):
        self._config, self._closing, self._arguments = config, closing, (out, clock, model)
        self._table = Table(*self._arguments)
        closing.callback(self._table.close)
        self._open: dict[str, Output] = {}
        for name in config.save or ():  # annotation files exist even where nothing could be read
            self._opened(name)

    def add(self, prediction: Prediction) -> None:
        for name in self._config.outputs(bool(prediction.picture.film)):
            self._opened(name).add(prediction)
        self._table.add(prediction)

    def _opened(self, name: str) -> Output:
        if name not in self._open:
            self._open[name] = OUTPUTS.get(name)(*self._arguments)
            self._closing.callback(self._open[name].close)
        return self._open[name]


def _pictures(sources: Sequence[Source], every: int, failures: list[DataError]) -> Iterator[Picture]:
    for source in sources:
        try:
            yield from source.pictures(every)
        except DataError as error:
            failures.append(error)


def _predicted(model: Model, batch: list[Picture], config: PredictConfig, clock: Clock) -> Iterator[Prediction]:
    before = clock.seconds["network"]
    with clock.section("network"):
        maps = _with_flips(model, batch) if config.flips else [(p, None) for p in model.probabilities([b.image for b in batch])]
    seconds = (clock.seconds["network"] - before) / len(batch)
    for picture, (probability, uncertainty) in zip(batch, maps, strict=True):
        if not np.isfinite(probability).all():
            raise RunError("the network's output is no number", where=picture.source, remedy="take another checkpoint")
        mask = probability >= config.threshold
        with clock.section("regions"):
            regions = find_regions(mask, probability)
        yield Prediction(picture, probability, uncertainty, mask, regions, seconds)


def _with_flips(model: Model, batch: list[Picture]) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Mean and standard deviation, each [h, w], over the identity, both mirrors and the half turn."""
    seen = []
    for view in VIEWS:
        axes = tuple(axis + 2 for axis in flip_axes(view))  # pictures are [h, w, 3], maps [h, w]
        maps = model.probabilities([np.ascontiguousarray(np.flip(picture.image, axes)) for picture in batch])
        seen.append([np.flip(one, axes) for one in maps])
    stacks = [np.stack(views) for views in zip(*seen, strict=True)]
    return [(stack.mean(axis=0), stack.std(axis=0)) for stack in stacks]
