"""Pictures of a frame with the outlines of truth and prediction, readable without colour vision.

The truth is a solid bright line, the prediction a dashed darker one; both on a dark rim, so they show on any tissue.
Shapes: h, w the frame's size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter1d

from polyp_difom.cache.errors import DataError

# Okabe & Ito, Color Universal Design (2008): yellow and sky blue differ in hue and in lightness
_TRUTH = (240, 228, 66)
PREDICTION = (86, 180, 233)
RIM = (0, 0, 0)
_PAPER = (22, 22, 22)
_INK = (240, 240, 240)
_SMOOTHING = 2  # outlines are drawn at this multiple of the frame's size, then averaged down
_SHEET_WIDTH = 640

Path = NDArray[np.float64]


def overlay(
    image: NDArray[np.uint8], truth: NDArray[np.bool_] | None, prediction: NDArray[np.bool_], caption: str | None = None
) -> NDArray[np.uint8]:
    """Draw the outlines of `truth` (solid) and `prediction` (dashed) on a frame.

    With a caption, a strip below the frame holds the text and the legend, and says so when a mask is empty.

    Shape:
        image [h, w, 3] uint8, truth and prediction [h, w] bool; result [h + strip, w, 3] uint8.

    Raises:
        DataError: the shapes do not fit together.
    """
    height, width = image.shape[:2]
    if image.shape != (height, width, 3) or any(
        mask.shape != (height, width) for mask in (truth, prediction) if mask is not None
    ):
        truths = "none" if truth is None else list(truth.shape)
        raise DataError(
            "frame and masks differ in shape",
            got=f"frame {list(image.shape)}, prediction {list(prediction.shape)}, truth {truths}",
            wanted="a frame [h, w, 3] and masks [h, w]",
            remedy="resize the prediction to the frame first",
        )
    line = max(2.0, min(height, width) / 110)
    canvas = Image.fromarray(image).resize((width * _SMOOTHING, height * _SMOOTHING), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for mask, colour, dashed in ((truth, _TRUTH, False), (prediction, PREDICTION, True)):
        for path in [] if mask is None else outlines(mask):
            _stroke(pen, _softened(path, line) * _SMOOTHING, line * _SMOOTHING, colour, dashed)
    drawn = canvas.resize((width, height), Image.Resampling.BOX)
    if caption is None:
        return np.asarray(drawn)
    return np.concatenate([np.asarray(drawn), _strip(width, caption, truth, prediction)])


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Pictures in rows of `columns`, each brought to the same width (at most 640 pixels, shape kept), on a dark ground.

    Raises:
        DataError: no pictures, or fewer than one column.
    """
    if not pictures or columns < 1:
        raise DataError(
            "nothing to lay out", got=f"{len(pictures)} pictures in {columns} columns", wanted="at least one of each"
        )
    side = min(_SHEET_WIDTH, max(picture.shape[1] for picture in pictures))
    cells = [
        Image.fromarray(picture).resize((side, round(picture.shape[0] * side / picture.shape[1])), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    columns, gap = min(columns, len(cells)), max(2, side // 80)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    tops = np.cumsum([gap, *(max(cell.height for cell in row) + gap for row in rows)]).tolist()
    sheet = Image.new("RGB", (gap + columns * (side + gap), tops[-1]), _PAPER)
    for row, top in zip(rows, tops[:-1], strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (side + gap), top))
    return np.asarray(sheet)


def outlines(mask: NDArray[np.bool_]) -> list[Path]:
    """The closed borders of a mask, holes included, each [k, 2] as (x, y) pixel corners, walked with the mask on the right."""
    padded = np.pad(mask, 1).astype(np.int8)
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across, down = np.diff(padded, axis=0), np.diff(padded, axis=1)
    # every border edge runs between two pixel corners; its direction keeps the mask on the right (y points down)
    for sign, field, start, end in (
        (1, across[:, 1:-1], (0, 0), (1, 0)),
        (-1, across[:, 1:-1], (1, 0), (0, 0)),
        (1, down[1:-1], (0, 1), (0, 0)),
        (-1, down[1:-1], (0, 0), (0, 1)),
    ):
        for y, x in np.argwhere(field == sign).tolist():
            ends.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    paths = []
    while ends:
        here = first = next(iter(ends))
        path: list[tuple[int, int]] = []
        while not path or here != first:
            path.append(here)
            following = ends[here].pop()
            if not ends[here]:
                del ends[here]
            here = following
        paths.append(np.array(path, np.float64))
    return paths


def _softened(path: Path, line: float) -> Path:
    """The same border without its pixel stairs: a running mean along the path, shorter than the line is wide."""
    return uniform_filter1d(path, size=max(3, 2 * round(line) + 1), axis=0, mode="wrap")


def _stroke(pen: ImageDraw.ImageDraw, path: Path, width: float, colour: tuple[int, int, int], dashed: bool) -> None:
    """Draw a closed path; the dark rim is a little wider than the line, and fills the gaps between the dashes."""
    closed = np.concatenate([path, path[:2]])
    _polyline(pen, closed, width * 1.8, RIM)
    if not dashed:
        _polyline(pen, closed, width, colour)
        return
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed[:-1], axis=0).T))])
    dashes = max(2, round(length[-1] / (width * 6)))  # whole dashes, so that the last one meets the first
    for begin in np.arange(dashes) * length[-1] / dashes:
        stop = begin + 0.62 * length[-1] / dashes
        at = np.concatenate([[begin], length[(length > begin) & (length < stop)], [stop]])
        _polyline(pen, np.stack([np.interp(at, length, closed[:-1, axis]) for axis in (0, 1)], axis=1), width, colour)


def _polyline(pen: ImageDraw.ImageDraw, path: Path, width: float, colour: tuple[int, int, int]) -> None:
    pen.line([(x, y) for x, y in path.tolist()], fill=colour, width=max(1, round(width)), joint="curve")


def _strip(width: int, caption: str, truth: NDArray[np.bool_] | None, prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The strip below the frame: the caption, wrapped, then one sample line per mask."""
    size = max(11.0, width / 26)
    font = ImageFont.load_default(size)
    rows = _wrapped(caption, font, width - size)
    entries = (("truth", truth, _TRUTH, False), ("prediction", prediction, PREDICTION, True))
    labels = [
        (name if mask.any() else f"{name} (empty)", colour, dashed)
        for name, mask, colour, dashed in entries
        if mask is not None
    ]
    leading = round(size * 1.35)
    strip = Image.new("RGB", (width, round(size * 0.6) + leading * (len(rows) + 1)), _PAPER)
    pen = ImageDraw.Draw(strip)
    for number, text in enumerate(rows):
        pen.text((size / 2, size * 0.3 + number * leading), text, _INK, font)
    left, middle = size / 2, size * 0.3 + len(rows) * leading + size * 0.6
    for text, colour, dashed in labels:
        sample = np.array([[left, middle], [left + size * 2.2, middle]])
        _polyline(pen, sample, size / 2.6, RIM)
        for begin, end in ((0.0, 0.27), (0.37, 0.63), (0.73, 1.0)) if dashed else ((0.0, 1.0),):
            _polyline(pen, sample[0] + np.outer([begin, end], sample[1] - sample[0]), size / 4.5, colour)
        pen.text((left + size * 2.6, middle), text, _INK, font, anchor="lm")
        left += size * 3.6 + font.getlength(text)
    return np.asarray(strip)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """`text` in lines that fit into `width` pixels; a word too long for a line is cut."""
    lines = [""]
    for word in text.split():
        pieces = max(1, math.ceil(font.getlength(word) / width))
        step = math.ceil(len(word) / pieces)
        for piece in (word[start : start + step] for start in range(0, len(word), step)):
            longer = f"{lines[-1]} {piece}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
    return lines
