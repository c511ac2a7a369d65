"""What an endoscope adds to a synthetic scene: the shape of its field, wet highlights, exposure, blur, grain and lettering.

Shapes: s frame side in pixels; colours are linear [s, s, 3] until `expose`, then display values in 0..1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polyp_difom.pipeline.data.mucosa import Map, pixel_grid, smooth_noise


def draw_field(rng: np.random.Generator, side: int) -> tuple[Map, NDArray[np.bool_]]:
    """The endoscope's window: coverage 0..1 [s, s], and where a lesion may be seen; octagon, circle or whole frame.

    A corner box (a position display, in about a third of all frames) is cut out of both.
    """
    x, y = pixel_grid(side)
    x, y = x - rng.uniform(-0.06, 0.06), y - rng.uniform(-0.04, 0.04)
    form = rng.choice(np.array(["octagon", "circle", "whole"]), p=[0.6, 0.25, 0.15])
    if form == "octagon":
        half, cut = rng.uniform(0.93, 1.05, 2), rng.uniform(1.35, 1.7)
        edge = np.minimum(np.minimum(half[0] - np.abs(x), half[1] - np.abs(y)), (cut - np.abs(x) - np.abs(y)) * 0.7)
    elif form == "circle":
        edge = np.minimum(rng.uniform(0.92, 1.15) - np.hypot(x, y), rng.uniform(0.85, 1.1) - np.abs(y))
    else:
        edge = np.full((side, side), 1.0)
    if rng.random() < 0.3:
        edge = np.minimum(edge, np.maximum(x + rng.uniform(0.4, 0.65), rng.uniform(0.35, 0.6) - y))
    coverage = np.clip(edge * side / 4 + 0.5, 0, 1).astype(np.float32)
    return coverage, coverage > 0.5


def lambert(gx: Map, gy: Map, lamp: tuple[float, float]) -> Map:
    """Diffuse share of the light on a surface of slopes gx, gy under a lamp slightly beside the camera; 1 face on."""
    cosine = (1 - gx * lamp[0] - gy * lamp[1]) / np.sqrt((1 + gx * gx + gy * gy) * (1 + lamp[0] ** 2 + lamp[1] ** 2))
    return np.clip(cosine, 0.03, 1)


def highlights(rng: np.random.Generator, gx: Map, gy: Map, wet: Map, lamp: tuple[float, float]) -> Map:
    """Mirror reflections, 0..1: clusters where the rippled wet surface faces halfway between lamp and camera."""
    side = len(gx)
    ripple, fine = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.5)
    across = gx - lamp[0] + ripple * smooth_noise(rng, side, 26) + fine * smooth_noise(rng, side, 72)
    down = gy - lamp[1] + ripple * smooth_noise(rng, side, 26) + fine * smooth_noise(rng, side, 72)
    patches = np.clip(0.5 * smooth_noise(rng, side, 4) + 0.4 * smooth_noise(rng, side, 10) + wet, 0, 1)
    size = rng.uniform(0.004, 0.02)
    return np.clip(1.6 * patches * np.exp(-(across * across + down * down) / size) - 0.15, 0, 1)


def expose(rng: np.random.Generator, linear: Map, mirror: Map, field: NDArray[np.bool_]) -> Map:
    """Automatic exposure over the field, with its errors; white balance, highlights and the camera's tone curve."""
    balance = np.array([1.0, rng.uniform(0.85, 1.12), rng.uniform(0.7, 1.2)], dtype=np.float32)
    gain = np.exp(rng.normal(0.1, 0.3)) / linear[..., 0][field].mean()
    exposed = linear * (balance * np.float32(gain))
    exposed += 3.5 * mirror[..., None]
    return (1 - np.exp(-exposed)) ** np.float32(rng.uniform(0.6, 0.9))


def blur(rng: np.random.Generator, image: Map) -> Map:
    """Defocus (a fifth of all frames), motion (a tenth) or the slight softness of every lens."""
    side, chance = len(image), rng.random()
    if chance < 0.1:
        return ndimage.uniform_filter1d(image, max(2, round(side * rng.uniform(0.01, 0.03))), axis=int(rng.integers(2)))
    sigma = rng.uniform(0.003, 0.007) if chance < 0.3 else rng.uniform(0.0012, 0.0022)
    return ndimage.gaussian_filter(image, (sigma * side, sigma * side, 0), truncate=2.5)


def grain(rng: np.random.Generator, image: Map) -> Map:
    """Sensor noise: one luminance layer and a weaker, coarser colour layer."""
    side, strength = len(image), np.float32(rng.uniform(0.003, 0.013))
    luminance = rng.standard_normal((side, side, 1), dtype=np.float32)
    colour = np.stack([smooth_noise(rng, side, max(4, side // 3)) for _ in range(3)], axis=-1)
    return image + strength * (luminance + 0.5 * colour)


def letter(rng: np.random.Generator, image: Map) -> None:
    """Writes a few lines of unreadable lettering at the left rim, in half of all frames, in place."""
    if rng.random() < 0.5:
        return
    side, ink = len(image), rng.uniform(0.7, 0.95)
    pitch = max(1, round(side / 200))
    top = int(side * rng.uniform(0.05, 0.5))
    for line in range(int(rng.integers(2, 6))):
        glyphs = rng.random((5, int(rng.integers(3, 11)), 4)) < 0.55
        glyphs[..., 3] = False
        dots = np.kron(glyphs.reshape(5, -1), np.ones((pitch, pitch), dtype=bool))
        row = top + line * 8 * pitch
        patch = image[row : row + len(dots), 2 * pitch : 2 * pitch + dots.shape[1]]
        patch[dots[: patch.shape[0], : patch.shape[1]]] = ink
