"""The healthy colon of a synthetic frame: a perspective tube with haustral folds, vessels and a mottled colour.

Shapes: s frame side in pixels. Coordinates x, y run over [-1, 1] across the frame, heights point at the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

Map = NDArray[np.floating]  # [s, s], or [s, s, 3] where it holds colours

_PALETTE = np.array(  # linear red, green, blue reflectance of the wall
    [[0.88, 0.33, 0.22], [0.84, 0.24, 0.11], [0.92, 0.48, 0.36], [0.86, 0.30, 0.29], [0.72, 0.30, 0.10]], dtype=np.float32
)
_NOISE_STD = 0.48  # of a cubic B-spline surface over unit normal knots


@lru_cache(maxsize=64)
def _spline_basis(side: int, cells: int) -> Map:
    """[s, cells + 3] cubic B-spline weights of `side` pixels over `cells` equal cells."""
    knots = np.arange(-3, cells + 4, dtype=np.float64)
    at = (np.arange(side) + 0.5) * cells / side
    return BSpline.design_matrix(at, knots, 3).toarray().astype(np.float32)


def smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Map:
    """[s, s] smooth random surface of about unit variance, its bumps one of `cells` cells wide."""
    basis = _spline_basis(side, cells)
    return basis @ rng.standard_normal((cells + 3, cells + 3), dtype=np.float32) @ basis.T / np.float32(_NOISE_STD)


@lru_cache(maxsize=4)
def pixel_grid(side: int) -> tuple[Map, Map]:
    """x [1, s] and y [s, 1] of the pixel centres, in [-1, 1]."""
    line = ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1).astype(np.float32)
    return line[None, :], line[:, None]


@dataclass(frozen=True)
class Wall:
    """A healthy wall before lesions are placed on it; every map is [s, s] but `colour`, which is [3]."""

    slope: Map  # height of the tube without folds
    relief: Map  # height of the folds
    light: Map  # light that arrives, 0 (lumen) to about 1
    vessels: Map  # vessel density, 0..1
    mottle: Map  # local reddening (positive) or paling (negative)
    colour: Map  # reflectance


def draw_wall(rng: np.random.Generator, side: int) -> Wall:
    """A random stretch of colon; in about a third of all draws the lumen is out of view."""
    x, y = pixel_grid(side)
    far = rng.random() < 0.35
    reach = rng.uniform(1.2, 2.0) if far else rng.uniform(0.05, 0.75)
    bearing = rng.uniform(0, 2 * np.pi)
    lumen = (float(reach * np.cos(bearing)), float(reach * np.sin(bearing)))
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(1.0, 1.5)
    u = ((x - lumen[0]) * np.cos(turn) + (y - lumen[1]) * np.sin(turn)) * squeeze
    v = (y - lumen[1]) * np.cos(turn) - (x - lumen[0]) * np.sin(turn)
    radius = np.sqrt(u * u + v * v) * np.exp(0.2 * smooth_noise(rng, side, 3) + 0.06 * smooth_noise(rng, side, 9))
    relief, ring, shade = _folds(rng, side, radius)
    core = rng.uniform(0.15, 0.6)
    light = ring**2 / (ring**2 + core**2) * shade
    glare = rng.uniform(0.0, 1.6) * np.clip(0.2 + 0.6 * smooth_noise(rng, side, 2), 0, 1) ** 2
    light *= 0.85 + glare - rng.uniform(0.1, 0.4) * ((x - rng.uniform(-0.4, 0.4)) ** 2 + (y - rng.uniform(-0.4, 0.4)) ** 2)
    weights = rng.dirichlet(np.full(len(_PALETTE), 0.35)).astype(np.float32)
    return Wall(
        slope=(rng.uniform(0.25, 0.6) * radius).astype(np.float32),
        relief=relief + 0.02 * smooth_noise(rng, side, 7),
        light=np.clip(light, 0.01, None).astype(np.float32),
        vessels=_vessels(rng, side),
        mottle=np.float32(rng.uniform(0.2, 1.0)) * (0.6 * smooth_noise(rng, side, 4) + 0.4 * smooth_noise(rng, side, 11)),
        colour=(weights @ _PALETTE * rng.uniform(0.92, 1.08, 3)).astype(np.float32),
    )


def _folds(rng: np.random.Generator, side: int, radius: Map) -> tuple[Map, Map, Map]:
    """Height of the rings around the lumen, their effective radius and their shading.

    A ring has its crest at the inner rim, where it hides what lies deeper: the radius, and with it the light, drops in a step
    there; outwards the ring falls into a valley that darkens up to the next crest.
    """
    warp = rng.uniform(0.15, 0.55) * smooth_noise(rng, side, 3) + 0.12 * smooth_noise(rng, side, 8)
    octaves = rng.uniform(0.8, 2.4)
    phase = octaves * np.log2(radius + 0.1) + warp + rng.uniform(0, 1)
    t = phase - np.floor(phase)
    strength = np.clip(rng.uniform(0.0, 0.9) + 0.6 * smooth_noise(rng, side, 3), 0, 1)
    strength = np.maximum(strength, np.clip(1.1 - 2 * radius, 0, 1))  # deep folds always hide what is behind them
    crest = np.sin(np.pi * t**0.45) ** 2
    height = rng.uniform(0.06, 0.2) * strength * crest * np.clip(radius * 1.2, 0, 1) / octaves
    step = np.exp2(strength * (0.35 - t) / octaves)
    ring = radius * np.clip(step, 0.5, 2)
    shade = 1 - rng.uniform(0.25, 0.6) * strength * t**3
    return height.astype(np.float32), ring.astype(np.float32), shade.astype(np.float32)


def _vessels(rng: np.random.Generator, side: int) -> Map:
    """Thin curves along the zero level of two noise surfaces, thick and fine, present in patches."""
    wide = smooth_noise(rng, side, 6) + 0.35 * smooth_noise(rng, side, 18)
    fine = smooth_noise(rng, side, 14) + 0.4 * smooth_noise(rng, side, 34)
    patches = np.clip(0.4 + 0.6 * smooth_noise(rng, side, 3), 0, 1)
    lines = np.exp(-((wide / 0.08) ** 2)) + 0.7 * np.exp(-((fine / 0.16) ** 2))
    return (rng.uniform(0.0, 1.0) * patches * np.clip(lines, 0, 1)).astype(np.float32)
