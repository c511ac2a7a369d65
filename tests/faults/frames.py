"""Frames for the benches: drawn ones, or a few of a real data set, squared small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from polyp_difom.pipeline.data.frames import read_frame
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.synthetic import write_dataset


def write_frames(folder: Path, count: int, size: int, seed: int = 0, data: Sequence[Path] = ()) -> None:
    """`count` frames as images/ and masks/ below `folder`, drawn by `seed` from the data sets in `data`, where there are any."""
    if not data:
        write_dataset(folder, count=count, size=size, seed=seed)
        return
    pairs = [pair for path in data for pair in find_pairs(path)]
    for number in sorted(np.random.default_rng(seed).choice(len(pairs), count, replace=False).tolist()):
        frame = read_frame(pairs[number], size)
        for name, pixels in (("images", frame.image.transpose(1, 2, 0)), ("masks", 255 * frame.mask)):
            path = folder / name / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8)).save(path)
