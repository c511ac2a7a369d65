"""What a store teaches, as a picture: frames beside their teachers' maps and bands in principal-component colours.

Shapes: k samples, c channels, h w grid, s frame side.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.manifest import TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.data.frames import flip
from polyp_difom.pipeline.overlays import outlines

DEFAULT_SAMPLES = 4
CLIP = 2.0
"""Percentage of cells at either end of a colour that saturate."""
_GAP = 6
_PAPER, _INK, _LINE, _RIM = (22, 22, 22), (240, 240, 240), (255, 255, 255), (0, 0, 0)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Colours:
    """Feature vectors as colours: three principal directions, each brought to 0..1.

    Attributes:
        mean: [c].
        directions: [c, 3], the leading principal directions.
        low, high: [3], what becomes 0 and 1.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def fit(cls, maps: NDArray) -> Colours:
        """To maps [k, c, h, w]; directions are signed so that their largest entry is positive; fewer than 3 channels leave
        the other colours grey.
        """
        cells = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
        mean = cells.mean(0)
        _, vectors = np.linalg.eigh(np.cov(cells - mean, rowvar=False).reshape(len(mean), len(mean)))
        leading = np.zeros((len(mean), 3))
        found = vectors[:, ::-1][:, :3]
        leading[:, : found.shape[1]] = found * np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
        low, high = np.percentile((cells - mean) @ leading, [CLIP, 100 - CLIP], axis=0)
        return cls(mean, leading, low, np.maximum(high, low + np.finfo(np.float32).tiny))

    def paint(self, maps: NDArray) -> Picture:
        """Maps [k, c, h, w] as [k, h, w, 3]."""
        scores = (np.moveaxis(maps, 1, -1) - self.mean) @ self.directions
        return (255 * ((scores - self.low) / (self.high - self.low)).clip(0, 1)).round().astype(np.uint8)


def choose_samples(store: FeatureStore, wanted: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the wanted samples, or of a few spread over the complete shards.

    Raises:
        UsageError: no such sample.
        CacheError: no shard is complete.
    """
    row = {name: index for index, name in enumerate(store.samples.ids)}
    for name in wanted:
        if name not in row:
            close = difflib.get_close_matches(name, row, n=3, cutoff=0.3)
            raise UsageError(
                f"the store has no sample {name!r}", where=store.location,
                wanted=f"one of {len(row)}, such as {store.samples.ids[0]}",
                remedy=f"did you mean {' or '.join(close)}?" if close else None,
            )  # fmt: skip
    if wanted:
        return np.array([row[name] for name in wanted])
    ready = np.flatnonzero(store.done().repeat(store.manifest.samples_per_shard)[: len(store)])
    if not len(ready):
        raise CacheError("no shard is complete yet", where=store.location, remedy="run extract")
    return ready[np.linspace(0, len(ready) - 1, min(DEFAULT_SAMPLES, len(ready))).round().astype(int)]


def show(store: FeatureStore, samples: Sequence[str] = (), view: str = "identity") -> Image.Image:
    """A sheet with a row for each sample and teacher: frame, mask, then for each scale the map and its low and high band.

    Colours are fitted over the shown maps of a teacher and scale, so rows compare; the low band has its map's colours, the
    high band (whose mean is zero) its own. Masks are grey, black at 0 and white at 1 (their high band at -0.5 and 0.5). Cells
    are enlarged without smoothing; the true mask's outline lies over all of them.

    Args:
        samples: ids; empty for a few.
        view: of the store's views, for frame, mask and maps alike.

    Raises:
        UsageError: no such sample, or a view that the store does not hold.
        CacheError: a shard that is damaged or not complete.
    """
    views = store.manifest.views
    if view not in views:
        raise UsageError(f"the store has no view {view!r}", where="--view", wanted=f"one of: {', '.join(views)}")
    rows = choose_samples(store, samples)
    images = flip(store.read(schema.IMAGE, rows), view).transpose(0, 2, 3, 1)
    masks = flip(store.read(schema.MASK, rows), view) > 0
    titles: list[str] = ["frame", "mask"]
    for scale, cells in store.manifest.scales.items():
        titles += [f"{scale}: map {cells} x {cells}", f"{scale}: low band", f"{scale}: high band"]
    panels = {entry.name: _panels(store, entry, rows, view, masks) for entry in store.manifest.teachers}
    captioned = []
    for number, row in enumerate(rows.tolist()):
        white = np.repeat(masks[number, :, :, None], 3, axis=2).astype(np.uint8) * 255
        own = [_outlined(images[number], masks[number]), white]
        name = f"{store.samples.ids[row]} ({store.samples.split[row]}), view {view}"
        captioned += [(f"{name}, {teacher}", [*own, *pictures[number]]) for teacher, pictures in panels.items()]
    return _sheet(titles, captioned, store.manifest.frame_size)


def _panels(
    store: FeatureStore, teacher: TeacherEntry, rows: NDArray[np.int64], view: str, masks: NDArray[np.bool_]
) -> list[list[Picture]]:
    """For each sample its pictures [s, s, 3]: map, low and high band of every scale."""
    chunks = np.stack([rows, np.full(len(rows), store.manifest.views.index(view))], 1)
    side, steps = store.manifest.frame_size, schema.steps_of(store)
    columns = []
    for scale in store.manifest.scales:
        key = schema.embedding_key(teacher.name, scale)
        maps = store.read(key, chunks).astype(np.float32) * steps.get(key, np.float32(1))
        low, high = (band.numpy() for band in spectra.split_bands(torch.from_numpy(maps)))
        if teacher.kind == "mask":
            columns += [_grey(maps), _grey(low), _grey(high + 0.5)]
            continue
        colours = Colours.fit(maps)
        columns += [colours.paint(maps), colours.paint(low), Colours.fit(high).paint(high)]
    return [[_outlined(_enlarged(column[k], side), masks[k]) for column in columns] for k in range(len(rows))]


def _grey(maps: NDArray) -> Picture:
    """Maps [k, 1, h, w], 0..1, as [k, h, w, 3]."""
    return np.moveaxis((255 * maps.clip(0, 1)).round().astype(np.uint8), 1, -1).repeat(3, -1)


def _enlarged(picture: Picture, side: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def _outlined(picture: Picture, mask: NDArray[np.bool_]) -> Picture:
    """With the mask's border as a thin white line on a black rim."""
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for colour, width in ((_RIM, 3), (_LINE, 1)):
        for path in outlines(mask):
            corners = [(float(x), float(y)) for x, y in path]
            for start, end in pairwise([*corners, corners[0]]):
                pen.line([start, end], colour, width)
    return np.asarray(canvas)


def _sheet(titles: list[str], rows: list[tuple[str, list[Picture]]], side: int) -> Image.Image:
    """Captioned rows of pictures [side, side, 3] below a line of titles; columns are as wide as the widest title at least."""
    font = ImageFont.load_default(max(10.0, side / 22))
    strip = round(max(10.0, side / 22) * 1.6)
    pitch = max(side, *(math.ceil(font.getlength(title)) + _GAP for title in titles)) + _GAP
    caption_width = max(math.ceil(font.getlength(caption)) for caption, _ in rows)
    width = _GAP + max(len(titles) * pitch, caption_width + _GAP)
    sheet = Image.new("RGB", (width, strip + len(rows) * (strip + side + _GAP)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((_GAP + column * pitch, strip / 2), title, _INK, font, anchor="lm")
    for number, (caption, pictures) in enumerate(rows):
        top = strip + number * (strip + side + _GAP)
        pen.text((_GAP, top + strip / 2), caption, _INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (_GAP + column * pitch, top + strip))
    return sheet
