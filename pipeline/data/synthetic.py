"""The embedded default data set: synthetic colonoscopy frames with exact lesion masks, a function of seed and size alone.

A frame is a height field lit from the camera: tube and folds (`mucosa`), lesions (`lesions`), then what lies on top (residue,
bubbles, highlights) and what the endoscope adds (field mask, exposure, blur, noise, lettering). No patient's image is involved.
Shapes: s frame side in pixels.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.lesions import Lesion, Shape, place_lesions, shape_of
from polyp_difom.pipeline.data.mucosa import Map, Wall, draw_wall, pixel_grid, smooth_noise
from polyp_difom.pipeline.data.optics import blur, draw_field, expose, grain, highlights, lambert, letter

VERSION = 1  # raise it whenever the same seed draws another frame
SMALLEST_SIDE = 32
_BLOOD = np.array([0.15, 0.60, 0.50], dtype=np.float32)  # absorption of red, green, blue
_RESIDUE = np.array([[0.66, 0.35, 0.06], [0.88, 0.68, 0.42], [0.36, 0.16, 0.05]], dtype=np.float32)


@dataclass(frozen=True)
class Scene:
    """One synthetic frame: image uint8 [s, s, 3], mask bool [s, s], field bool [s, s] (the endoscope's window)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    field: NDArray[np.bool_]


@dataclass
class _Surface:
    """The scene while it is painted: height and light [s, s], albedo [s, s, 3], wetness [s, s]."""

    height: Map
    albedo: Map
    light: Map
    wet: Map


def draw(seed: int, size: int = 352) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One frame (uint8 [size, size, 3]) and its lesion mask (bool [size, size]), fixed by seed and size.

    The mask holds exactly the pixels where the lesion's share of the blend exceeds one half; about 4 % of masks are empty.

    Raises:
        UsageError: a negative seed, or a side below 32 pixels.
    """
    scene = compose(seed, size)
    return scene.image, scene.mask


def compose(seed: int, size: int = 352) -> Scene:
    """As `draw`, with the field of view."""
    if seed < 0 or size < SMALLEST_SIDE:
        raise UsageError(
            "cannot draw such a synthetic frame",
            got=f"seed {seed}, side {size}",
            wanted=f"a seed of 0 or more and a side of at least {SMALLEST_SIDE} pixels",
            remedy="change the seed or the size",
        )
    rng = np.random.default_rng(seed)
    coverage, field = draw_field(rng, size)
    wall = draw_wall(rng, size)
    surface = _healthy(rng, wall)
    mask = np.zeros((size, size), dtype=bool)
    lesions = place_lesions(rng, field)
    for lesion, own in zip(lesions, rng.spawn(len(lesions)), strict=True):
        shape = shape_of(lesion, own, size)
        _add_lesion(own, surface, wall, lesion, shape)
        mask |= shape.alpha > 0.5
    _add_residue(rng, surface)
    linear, mirror = _shade(rng, surface)
    _add_bubbles(rng, linear, mirror)
    image: Map = blur(rng, expose(rng, linear, mirror, field)) * coverage[..., None]
    letter(rng, image)
    image = grain(rng, image)
    return Scene((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask & field, field)


def _tissue(colour: Map, vessels: Map, mottle: Map) -> Map:
    return colour * np.exp(-(vessels + 0.22 * mottle)[..., None] * _BLOOD)


def _healthy(rng: np.random.Generator, wall: Wall) -> _Surface:
    """The bare wall with up to three bulges, healthy half domes that fade into it on one side."""
    height, side = wall.slope + wall.relief, len(wall.slope)
    x, y = pixel_grid(side)
    for _ in range(rng.integers(4)):
        radius, turn = rng.uniform(0.15, 0.6), rng.uniform(0, 2 * np.pi)
        u, v = x - rng.uniform(-0.8, 0.8), y - rng.uniform(-0.8, 0.8)
        along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        across = across + 0.25 * radius * smooth_noise(rng, side, 4)
        dome = np.clip(1 - (along * along + across * across) / radius**2, 0, None) ** 1.3
        height = height + rng.uniform(0.2, 0.7) * radius * dome * np.clip(0.5 + along / radius, 0, 1) ** 2
    wet = np.full((side, side), rng.uniform(-0.3, 0.5), dtype=np.float32)
    return _Surface(height, _tissue(wall.colour, wall.vessels, wall.mottle), wall.light.copy(), wet)


def _add_lesion(rng: np.random.Generator, surface: _Surface, wall: Wall, lesion: Lesion, shape: Shape) -> None:
    """Blends one lesion into height, colour and light, and lays its contact shadow on the wall beside it."""
    side, alpha = len(shape.alpha), shape.alpha
    x, y = pixel_grid(side)
    pits = smooth_noise(rng, side, lesion.pit_cells) + 0.7 * smooth_noise(rng, side, lesion.pit_cells // 3)
    pattern = np.exp(-((pits / 0.5) ** 2)) - 0.4
    mottle = 0.5 * wall.mottle + rng.uniform(0.0, 0.8) * smooth_noise(rng, side, 9)
    tissue = _tissue(wall.colour * np.array(lesion.tint, dtype=np.float32), lesion.keeps_vessels * wall.vessels, mottle)
    tissue *= np.exp(-1.3 * lesion.pits * pattern[..., None] * _BLOOD)
    surface.albedo += alpha[..., None] * (tissue - surface.albedo)
    if lesion.kind != "flat":
        level = float((surface.light * alpha).sum() / max(float(alpha.sum()), 1.0))
        away = (x * lesion.x + y * lesion.y) / (np.hypot(x, y) * np.hypot(lesion.x, lesion.y) + 1e-3)
        reach = np.exp(np.minimum(shape.inside, 0) / (0.25 * lesion.radius))
        shadow = lesion.shadow * reach * np.clip(0.55 + 0.45 * away, 0, 1)
        surface.light *= 1 - shadow * (1 - alpha)
        surface.light += 0.8 * alpha * (max(level, 0.12) * (1 + 0.8 * shape.height) - surface.light)
        surface.height -= 0.8 * alpha * (surface.height - wall.slope)
        surface.wet += alpha * rng.uniform(-0.2, 0.4)
    surface.height += alpha * (shape.height + 0.006 * lesion.pits * pattern)


def _add_residue(rng: np.random.Generator, surface: _Surface) -> None:
    """Stool, bile or mucus on top of everything in 40 % of frames: blotches or scattered specks."""
    if rng.random() > 0.4:
        return
    side = len(surface.height)
    clump = smooth_noise(rng, side, 3) + 0.5 * smooth_noise(rng, side, 11) + rng.uniform(0.2, 0.9) * smooth_noise(rng, side, 32)
    cover = np.clip((clump - rng.uniform(1.9, 2.8)) * 4, 0, 1) * rng.uniform(0.5, 0.95)
    colour = rng.dirichlet(np.full(len(_RESIDUE), 0.5)).astype(np.float32) @ _RESIDUE
    surface.albedo += cover[..., None] * (colour - surface.albedo)
    surface.height += 0.02 * cover


def _shade(rng: np.random.Generator, surface: _Surface) -> tuple[Map, Map]:
    """Linear colour [s, s, 3] and mirror reflections [s, s] of the painted surface."""
    side = len(surface.height)
    lamp = (float(rng.uniform(-0.45, 0.45)), float(rng.uniform(-0.45, 0.45)))
    gy: Map = np.gradient(surface.height, 2 / side, axis=0)
    gx: Map = np.gradient(surface.height, 2 / side, axis=1)
    light = surface.light * lambert(gx, gy, lamp)
    deep = np.clip(0.35 - light, 0, None)[..., None] * np.array([0.0, 1.2, 1.6], dtype=np.float32)
    linear = surface.albedo * light[..., None] * np.exp(-deep)
    mirror = highlights(rng, gx, gy, surface.wet, lamp) * np.clip(light * 2.5 - 0.15, 0, 1)
    return linear.astype(np.float32), mirror.astype(np.float32)


def _add_bubbles(rng: np.random.Generator, linear: Map, mirror: Map) -> None:
    """A cluster of foam bubbles in a quarter of all frames: bright rims, each with a window's reflection."""
    if rng.random() > 0.25:
        return
    side = len(mirror)
    x, y = pixel_grid(side)
    centre, spread = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.05, 0.4)
    for _ in range(rng.integers(1, 20)):
        (cx, cy), radius = centre + spread * rng.standard_normal(2), rng.uniform(0.015, 0.07)
        left, right, top, bottom = (
            int(np.clip((c + 1) * side / 2, 0, side)) for c in (cx - radius, cx + radius, cy - radius, cy + radius)
        )
        window = np.s_[top : bottom + 1, left : right + 1]
        q = np.hypot(x[:, left : right + 1] - cx, y[top : bottom + 1] - cy) / radius
        glint = np.hypot(x[:, left : right + 1] - cx + 0.4 * radius, y[top : bottom + 1] - cy + 0.4 * radius) / radius
        linear[window] *= (1 + 0.5 * np.exp(-(((q - 0.85) / 0.12) ** 2)) - 0.12 * (q < 0.8))[..., None]
        mirror[window] = np.maximum(mirror[window], 0.8 * np.clip(1.6 - 8 * glint, 0, 1))


def write_dataset(
    out: Path, count: int = 200, size: int = 256, seed: int = 0, progress: Callable[[int], None] | None = None
) -> None:
    """Writes `count` frames to out/images/NNNN.jpg, their masks to out/masks/NNNN.png (0 or 255) and out/synthetic.json.

    All is written beside `out` first and renamed at the end: after a kill there is no `out`, only a hidden sibling to delete.
    Two data sets of different seeds share no frame.

    Args:
        progress: called after each frame with the number of frames written.

    Raises:
        UsageError: `out` is a file or holds something already, or a number is out of range; nothing is touched.
        DataError: the place cannot be written.
    """
    if count < 1 or seed < 0 or size < SMALLEST_SIDE:
        raise UsageError(
            "cannot write such a synthetic data set",
            got=f"count {count}, seed {seed}, side {size}",
            wanted=f"a count of at least 1, a seed of 0 or more and a side of at least {SMALLEST_SIDE} pixels",
            remedy="change the count, the seed or the size",
        )
    out = out.resolve()
    stage = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(
                "will not write a synthetic data set over what is there",
                where=out,
                wanted="a new or empty folder",
                remedy="name another folder, or delete this one",
            )
        _write_frames(stage, count, size, seed, progress)
        os.replace(stage, out)
    except OSError as error:
        raise DataError(
            "cannot write the synthetic data set",
            where=error.filename or out,
            got=error.strerror or str(error),
            wanted="a place that can be written",
            remedy="name another folder, or make room and give yourself the right to write there",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_frames(stage: Path, count: int, size: int, seed: int, progress: Callable[[int], None] | None) -> None:
    for folder in ("images", "masks"):
        (stage / folder).mkdir(parents=True)
    digits = max(4, len(str(count - 1)))
    for index in range(count):
        frame_seed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        image, mask = draw(frame_seed, size)
        Image.fromarray(image).save(stage / "images" / f"{index:0{digits}d}.jpg", quality=92)
        Image.fromarray(mask.astype(np.uint8) * 255).save(stage / "masks" / f"{index:0{digits}d}.png")
        if progress is not None:
            progress(index + 1)
    note = {
        "synthetic": True,
        "about": "Drawn by a program; no patient's images. For tests and first steps, not for clinical conclusions.",
        "generator_version": VERSION,
        "seed": seed,
        "count": count,
        "size": size,
    }
    (stage / "synthetic.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
