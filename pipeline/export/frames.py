"""Frames to check and calibrate an export on: the user's, else those of the run's store, else drawn ones; never test frames.

Shapes: h w a picture's own size, s frame side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.frames import read_frame, read_image, read_mask
from polyp_difom.pipeline.data.sources import Source, gather
from polyp_difom.pipeline.data.synthetic import draw
from polyp_difom.pipeline.reads import FRAMES, SIGNATURE, kept, lost, of_store

FEW, MANY = 16, 200
"""Frames to compare on: where arithmetic alone may differ, and where Dice may."""
CALIBRATION = 64
DRAWN = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Frames:
    """Pictures with their masks.

    Attributes:
        words: what they are.
        images: uint8 [h, w, 3].
        masks: bool [h, w].
        calibration: squared train frames, uint8 [3, s, s]; empty where none are known.
    """

    words: str
    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    calibration: list[NDArray[np.uint8]]


def choose_frames(
    sources: tuple[Source, ...], header: Mapping[str, Any], learned: Collection[str], precision: str, stretch: bool
) -> Frames:
    """Validation frames to compare on, and train frames for int8.

    Args:
        sources: the user's data; empty to take the store's frames.
        header: of the checkpoint.
        learned: data sets that the run learned from.
        stretch: give frames that are squared already other sizes, so that resizing is tried too.

    Raises:
        UsageError: int8 without train frames, or data with no split of its own that the run did not learn from.
        DataError: pictures that cannot be used.
    """
    count = FEW if precision == "float32" else MANY
    if sources:
        return _given(sources, header, learned, count, precision == "int8")
    try:
        found = _stored(header, count)
    except CacheError as error:
        if precision == "int8":
            raise UsageError(
                "int8 needs train frames to set its scales by", got=f"the run's store cannot be read: {error.what}",
                remedy="give the data that the run was trained on: --data DIR",
            ) from error  # fmt: skip
        found = _drawn(header["frame_size"], error.what)
    return _stretched(found) if stretch else found


def _given(
    sources: tuple[Source, ...], header: Mapping[str, Any], learned: Collection[str], count: int, calibrate: bool
) -> Frames:
    """Train and validation frames as the run's store split them."""
    if "split" not in header:
        raise RunError(
            "the checkpoint does not say how its frames were split",
            remedy="leave --data away, or run `polyp-difom distill` again",
        )
    split = header["split"]
    if str(split["policy"]).startswith("csv:"):
        raise UsageError(
            "the run's store was split by a file, so --data cannot be split as it was", where="--data", got=split["policy"],
            remedy="leave --data away: the frames of the run's store are taken",
        )  # fmt: skip
    found = gather(sources, {"train", "val"}, split_by=split["policy"], val_fraction=split["val_fraction"], seed=split["seed"])
    if found.predicted and not any(pair.split == "val" for pair in found.pairs):
        raise UsageError(
            "these masks are a network's own, no truth to compare with", where="--data",
            remedy="add a data set with masks that people drew, or leave --data away",
        )  # fmt: skip
    if foreign := sorted(found.invented - set(learned)):
        raise UsageError(
            f"data set {foreign[0]!r} has no split of its own, and the run did not learn from it: all of it is test data",
            where="--data", wanted=f"some of: {', '.join(sorted(learned)) or 'the sets that the run learned from'}",
        )  # fmt: skip
    pairs = {name: [pair for pair in found.pairs if pair.split == name] for name in ("train", "val")}
    split_name = "val" if pairs["val"] else "train"
    chosen = _spread(pairs[split_name], count)
    images = [read_image(pair.image) for pair in chosen]
    masks = [read_mask(pair.mask, image.shape[:2]) for pair, image in zip(chosen, images, strict=True)]
    frames = (
        [read_frame(pair, header["frame_size"]).image for pair in _spread(pairs["train"], CALIBRATION)] if calibrate else []
    )
    sets = ", ".join(sorted({pair.dataset for pair in chosen}))
    return Frames(f"{len(images)} {split_name} frames of {sets}", images, masks, frames)


def _stored(header: Mapping[str, Any], count: int) -> Frames:
    """Squared frames of the run's own store; CacheError where it cannot be read or is another one by now."""
    if not header.get("cache"):
        raise CacheError("the file does not say where the run's store is")
    if "://" in header["cache"]:
        raise CacheError("the run's store lies at an address, which a file's own word opens no connection to")
    store = FeatureStore.open(header["cache"])
    if {FRAMES, SIGNATURE}.intersection(lost(kept(header), of_store(store.manifest))):
        raise CacheError("another store lies where the run's store was", where=store.location)
    rows = {name: [i for i, split in enumerate(store.samples.split) if split == name] for name in ("train", "val")}
    images, masks = (store.read(key, np.array(_spread(rows["val"], count))) for key in (schema.IMAGE, schema.MASK))
    calibration = store.read(schema.IMAGE, np.array(_spread(rows["train"], CALIBRATION)))
    pictures = [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images]
    words = f"{len(pictures)} val frames of the run's store"
    return Frames(words, pictures, [mask.astype(bool) for mask in masks], list(calibration))


def _drawn(size: int, why: str) -> Frames:
    pictures, masks = zip(*(draw(seed, max(size, 64)) for seed in range(DRAWN)), strict=True)
    return Frames(f"{DRAWN} synthetic frames ({why}; --data DIR checks on real ones)", list(pictures), list(masks), [])


def _stretched(frames: Frames) -> Frames:
    """The same frames at four sizes in turn."""
    images, masks = [], []
    for number, (image, mask) in enumerate(zip(frames.images, frames.masks, strict=True)):
        wide, high = ((4, 3), (5, 4), (2, 2), (7, 5))[number % 4]
        size = image.shape[1] * wide // 2 + number % 3, image.shape[0] * high // 2
        images.append(np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))
        masks.append(np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)))
    return Frames(f"{frames.words}, stretched to several sizes", images, masks, frames.calibration)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread."""
    return list(items[:: -(-len(items) // count) or 1])
