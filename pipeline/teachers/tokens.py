"""Dense maps from transformers models: feature maps as they are, tokens folded back onto their grid.

Shapes: b batch, n tokens, c channels, h w grid, s input side.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError, first_line
from polyp_difom.pipeline.teachers.protocol import Request, Teacher, TeacherSpec

MOST_PREFIX = 16
"""More class and register tokens than any known model puts before its patches."""
Depths = tuple[tuple[int, ...], ...]


class TokenTeacher(Teacher):
    """A transformers model; position embeddings are interpolated to the input side where the model knows how."""

    def __init__(self, spec: TeacherSpec, encoder: nn.Module):
        super().__init__(spec, encoder)
        flag = "interpolate_pos_encoding"
        self._options = {flag: True} if flag in inspect.signature(encoder.forward).parameters else {}

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> the last map of every grid, finest first."""
        return dense_maps(self.call(inputs, states=True), inputs.shape[-1], patch_of(self.encoder.config))

    def call(self, inputs: Tensor, states: bool) -> Any:
        """The model's own output; `states` keeps what every block said."""
        return self.encoder(pixel_values=inputs, output_hidden_states=states, **self._options)


class PatchTeacher(TokenTeacher):
    """A plain vision transformer: tokens of chosen blocks, one map for each group of blocks, averaged within it.

    Args:
        blocks: how many the model has.
        norm: what the model itself does to its last block's tokens; blocks before it are treated alike.
    """

    def __init__(self, spec: TeacherSpec, encoder: nn.Module, blocks: int, norm: nn.Module, depths: Depths):
        super().__init__(spec, encoder)
        self.depths, self._norm = depths, norm
        self._last = blocks

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [b, 3, s, s] -> a map [b, c, s / patch, s / patch] for each group of blocks."""
        out = self.call(inputs, states=any(number != self._last for group in self.depths for number in group))
        cells = inputs.shape[-1] // self.spec.strides[0]

        def block(number: int) -> Tensor:
            return out.last_hidden_state if number == self._last else self._norm(out.hidden_states[number])

        return tuple(fold(torch.stack([block(number) for number in group]).mean(0), cells) for group in self.depths)


def patch_teacher(
    request: Request, encoder: Any, norm: nn.Module, *, preprocessing: str, published_side: int, licence: str, data: str
) -> PatchTeacher:
    """A plain vision transformer as a teacher, at the wanted input side and depths."""
    config = encoder.config
    blocks: int = config.num_hidden_layers
    depths = parse_depths(request, blocks)
    side, count = request.side(published_side, config.patch_size), len(depths)
    strides, channels = (config.patch_size,) * count, (config.hidden_size,) * count
    return PatchTeacher(
        TeacherSpec(request.name, side, preprocessing, strides, channels, licence, data), encoder, blocks, norm, depths
    )


def parse_depths(request: Request, blocks: int) -> Depths:
    """`@9+12` averages blocks 9 and 12 into one map, `@4:8:12` gives one map each, no `@` the last block alone.

    Raises:
        UsageError: not of this form, or no such block.
    """
    text = request.name.partition("@")[2] or str(blocks)
    try:
        depths = tuple(tuple(int(number) for number in group.split("+")) for group in text.split(":"))
    except ValueError:
        depths = ((0,),)
    if not all(1 <= number <= blocks for group in depths for number in group):
        raise UsageError(
            f"unknown depths of teacher {request.name!r}", got=f"@{text}",
            wanted=f"blocks 1 to {blocks}: @9+12 averages them into one map, @4:8:12 gives one map each",
        )  # fmt: skip
    return depths


def patch_of(config: Any) -> int | None:
    """Side of a patch in pixels, None where the configuration has no such thing."""
    patch = getattr(config, "patch_size", None)
    patch = patch[0] if isinstance(patch, (list, tuple)) and len(set(patch)) == 1 else patch
    return patch if isinstance(patch, int) else None


def dense_maps(output: Any, side: int, patch: int | None) -> tuple[Tensor, ...]:
    """The maps in a transformers output, finest first; of several on one grid the last.

    Raises:
        UsageError: nothing in it lies on a grid of whole pixels.
    """
    reshaped = getattr(output, "reshaped_hidden_states", None)
    found = [state for state in reshaped or getattr(output, "hidden_states", None) or () if state.ndim == 4]
    last = getattr(output, "last_hidden_state", None)
    if last is not None and not reshaped:
        found.append(last if last.ndim == 4 else fold(last, _cells(last.shape[1], side, patch, [m.shape[-1] for m in found])))
    grids = {tuple(maps.shape[-2:]): maps for maps in found if maps.shape[-1] < side}
    if not grids or any(h != w or side % h for h, w in grids):
        raise UsageError(
            "no dense map can be had from this model", got=f"grids {sorted(grids)} of a {side}-pixel input",
            wanted="square grids of whole pixels", remedy="try an --input-size that is a multiple of 32, or another teacher",
        )  # fmt: skip
    return tuple(grids[grid] for grid in sorted(grids, reverse=True))


def fold(tokens: Tensor, cells: int) -> Tensor:
    """Tokens [b, n, c] -> [b, c, cells, cells]; class and register tokens, which come first, are dropped."""
    return tokens[:, -cells * cells :].transpose(1, 2).unflatten(2, (cells, cells))


def _cells(n: int, side: int, patch: int | None, grids: list[int]) -> int:
    """Cells per side behind n tokens: side / patch, or the grid of the last feature map, or the largest square in n."""
    for cells in [side // patch] if patch else [*grids[-1:], math.isqrt(n)]:
        if 0 <= n - cells * cells <= MOST_PREFIX and side % cells == 0:
            return cells
    raise UsageError(
        "no dense map can be had from this model", got=f"{n} tokens of a {side}-pixel input",
        wanted="one token for each patch, after at most a few class and register tokens", remedy="choose another teacher",
    )  # fmt: skip


def probed(request: Request, encoder: nn.Module, side: int, preprocessing: str, licence: str, data: str) -> TokenTeacher:
    """A teacher whose strides and channels are read off one blank frame.

    Raises:
        UsageError: the model does not take this input size, or gives no dense map.
    """
    teacher = TokenTeacher(TeacherSpec(request.name, side, preprocessing, (), (), licence, data), encoder)
    try:
        maps = teacher(torch.zeros(1, 3, side, side))
    except (ValueError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"teacher {request.name!r} cannot be run on frames", got=first_line(error),
            wanted=f"a vision backbone that takes {side} x {side} pixels",
        ) from error  # fmt: skip
    strides, channels = tuple(side // m.shape[-1] for m in maps), tuple(m.shape[1] for m in maps)
    return TokenTeacher(TeacherSpec(request.name, side, preprocessing, strides, channels, licence, data), encoder)
