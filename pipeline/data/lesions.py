"""Synthetic polyps: where they sit, their outline, their relief and how far their surface departs from the wall.

Shapes: s frame side in pixels; lengths are in half frame sides, as in `mucosa`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyp_difom.pipeline.data.mucosa import Map, pixel_grid, smooth_noise

Kind = Literal["sessile", "flat", "pedunculated"]

_SMALLEST, _LARGEST = 0.006, 0.36  # share of the frame that a lesion aims at
_TINTS = np.array(  # red, green, blue factor at full strength: reddened, pale, yellowish, dusky
    [[1.0, 0.45, 0.45], [1.25, 1.7, 1.65], [1.2, 1.25, 0.6], [0.7, 0.5, 0.6]], dtype=np.float32
)


@dataclass(frozen=True)
class Lesion:
    """One lesion's random draw, free of the frame's resolution."""

    kind: Kind
    x: float
    y: float
    radius: float
    turn: float
    stretch: float
    harmonics: tuple[complex, ...]  # of the outline, orders 2, 3, ...
    stalk: tuple[float, float]  # from the head's centre to the stalk's foot; (0, 0) without one
    bulge: float  # height over radius
    tint: tuple[float, float, float]
    pits: float  # strength of the surface pattern
    pit_cells: int
    lobes: float
    keeps_vessels: float
    softness: float  # width of the blended rim
    shadow: float


@dataclass(frozen=True)
class Shape:
    """A lesion on the pixel grid, all [s, s]: `inside` is the signed distance-like depth, positive inside."""

    inside: Map
    alpha: Map  # share of the lesion in the blend; above 0.5 exactly where `inside` is positive
    height: Map


def place_lesions(rng: np.random.Generator, visible: NDArray[np.bool_]) -> list[Lesion]:
    """None (4 %), one (74 %), two or three lesions that lie in the visible field and do not cover each other."""
    wanted = int(rng.choice(4, p=[0.04, 0.74, 0.15, 0.07]))
    placed: list[Lesion] = []
    for attempt in range(120):
        if len(placed) == wanted:
            break
        lesion = _draw_lesion(rng, scale=(0.6 if placed else 1.0) * 0.97**attempt)
        apart = all(np.hypot(lesion.x - other.x, lesion.y - other.y) > 1.1 * (lesion.radius + other.radius) for other in placed)
        if apart and _seen(lesion, visible):
            placed.append(lesion)
    return placed


def _draw_lesion(rng: np.random.Generator, scale: float) -> Lesion:
    kind: Kind = rng.choice(np.array(["sessile", "flat", "pedunculated"]), p=[0.58, 0.25, 0.17]).item()
    share = _SMALLEST * (_LARGEST / _SMALLEST) ** rng.beta(1.2, 1.1) * scale
    radius = float(np.sqrt(4 * max(share, _SMALLEST) / np.pi)) * (0.85 if kind == "pedunculated" else 1.0)
    turn, order = rng.uniform(0, 2 * np.pi), np.arange(2, 8)
    wobble = rng.uniform(0.05, 0.35) * rng.standard_normal(6) / order**1.3
    tint_strength = rng.uniform(0.15, 0.45) if kind == "flat" else rng.beta(1.3, 1.4)
    tint = 1 + tint_strength * (rng.dirichlet(np.full(4, 0.4)) @ _TINTS - 1)
    reach = rng.uniform(1.2, 1.8) * radius if kind == "pedunculated" else 0.0
    bulge = {"flat": rng.uniform(0.01, 0.06), "sessile": rng.uniform(0.3, 0.85), "pedunculated": rng.uniform(0.6, 0.95)}[kind]
    return Lesion(
        kind=kind,
        x=rng.uniform(-0.9, 0.9),
        y=rng.uniform(-0.9, 0.9),
        radius=radius,
        turn=turn,
        stretch=rng.uniform(1.0, 1.25 if kind == "pedunculated" else 1.6),
        harmonics=tuple(complex(z) for z in wobble * np.exp(1j * rng.uniform(0, 2 * np.pi, 6))),
        stalk=(float(reach * np.cos(turn)), float(reach * np.sin(turn))),
        bulge=bulge,
        tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        pits=rng.uniform(0.25, 0.7) if kind == "flat" else rng.beta(1.0, 1.7),
        pit_cells=int(rng.integers(30, 80)),
        lobes=rng.uniform(0.0, 0.45),
        keeps_vessels=rng.uniform(0.0, 0.4),
        softness=rng.uniform(0.02, 0.05) if kind == "flat" else rng.uniform(0.008, 0.02),
        shadow=0.0 if kind == "flat" else rng.uniform(0.1, 0.6),
    )


def _seen(lesion: Lesion, visible: NDArray[np.bool_]) -> bool:
    """Whether the centre, the stalk's foot and most of a ring inside the outline lie in the visible field."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x = lesion.x + np.append(0.8 * lesion.radius * np.cos(angle), [0.0, lesion.stalk[0]])
    y = lesion.y + np.append(0.8 * lesion.radius * np.sin(angle), [0.0, lesion.stalk[1]])
    side = len(visible)
    column, row = ((x + 1) * side / 2).astype(int), ((y + 1) * side / 2).astype(int)
    framed = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    seen = framed & visible[row.clip(0, side - 1), column.clip(0, side - 1)]
    return bool(seen[-2:].all() and seen.mean() > 0.85)


def shape_of(lesion: Lesion, rng: np.random.Generator, side: int) -> Shape:
    """The lesion on a grid of `side` pixels; the outline is a random Fourier contour, joined by the stalk if there is one."""
    x, y = pixel_grid(side)
    dx, dy = x - np.float32(lesion.x), y - np.float32(lesion.y)
    u = (dx * np.cos(lesion.turn) + dy * np.sin(lesion.turn)) * np.sqrt(lesion.stretch)
    v = (dy * np.cos(lesion.turn) - dx * np.sin(lesion.turn)) / np.sqrt(lesion.stretch)
    distance = np.hypot(u, v) + np.float32(1e-6)
    angle = np.linspace(-np.pi, np.pi, 361)
    outline = 1 + sum(np.real(c * np.exp(1j * k * angle)) for k, c in enumerate(lesion.harmonics, start=2))
    rim = lesion.radius * np.interp(np.arctan2(v, u), angle, np.clip(outline, 0.4, None)).astype(np.float32)
    inside = rim - distance
    round_off = np.clip(distance / rim, 0, 1) ** 2
    reach = distance / (lesion.radius + (rim - lesion.radius) * round_off)
    height = lesion.bulge * lesion.radius * np.clip(1 - reach**2, 0, None) ** 0.75
    height *= np.clip(1 + lesion.lobes * smooth_noise(rng, side, max(4, round(2.5 / lesion.radius))), 0.3, None)
    if lesion.kind == "pedunculated":
        inside, height = _with_stalk(lesion, dx, dy, inside, height)
    softness = max(lesion.softness, 2.5 / side)
    ramp = np.clip(inside / softness * 0.5 + 0.5, 0, 1)
    return Shape(inside.astype(np.float32), (ramp * ramp * (3 - 2 * ramp)).astype(np.float32), height.astype(np.float32))


def _with_stalk(lesion: Lesion, dx: Map, dy: Map, inside: Map, height: Map) -> tuple[Map, Map]:
    """Joins a rounded stalk that widens at its foot and lies lower than the head."""
    foot_x, foot_y = lesion.stalk
    along = np.clip((dx * foot_x + dy * foot_y) / (foot_x**2 + foot_y**2), 0, 1)
    off = np.hypot(dx - along * foot_x, dy - along * foot_y)
    width = lesion.radius * (0.38 + 0.3 * along**3)
    stalk = width - off
    ridge = (0.7 - 0.5 * along) * width * np.clip(1 - (off / width) ** 2, 0, None) ** 0.5
    return np.maximum(inside, stalk), np.maximum(height, ridge)
