"""U-Net++ (arXiv 1807.10165): between encoder and decoder, nodes X(i, j) that read all earlier nodes of their depth.

Node X(i, j) has stride 2^i; X(i, 0) is the encoder, X(0, 4) feeds the head. With deep supervision X(0, 1) to X(0, 3) have heads
too, side outputs of training alone (the paper may also average all four). Widths as in `unet`.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyp_difom.pipeline.students.latents import LATENT_CHANNELS, Latents
from polyp_difom.pipeline.students.protocol import STUDENTS, Student, doubled
from polyp_difom.pipeline.students.unet import ConvBlock, base_width, taps_of

DEPTH = 4


class UNetPlusPlus(Student):
    """Taps: `encoder8` X(3, 0), `decoder8` X(3, 1), `bottleneck` X(4, 0) at stride 16, `latent1`, `latent2` if asked for."""

    stride = 2**DEPTH

    def __init__(self, base: int = 32, latents: bool = False, deep: bool = False):
        super().__init__()
        widths = [base << level for level in range(DEPTH + 1)]
        self.encoder: nn.ModuleList = nn.ModuleList(ConvBlock(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.latents = Latents(widths[DEPTH]) if latents else None
        below = [*widths[:DEPTH], 2 * LATENT_CHANNELS if latents else widths[DEPTH]]
        self.nodes = nn.ModuleDict({
            f"{i}-{j}": ConvBlock(j * widths[i] + (below if j == 1 else widths)[i + 1], widths[i])
            for j in range(1, DEPTH + 1) for i in range(DEPTH + 1 - j)
        })  # fmt: skip
        self.head = nn.Conv2d(base, 1, 1)
        self.sides = tuple(f"side{j}" for j in range(1, DEPTH)) if deep else ()
        self.side_heads = nn.ModuleList(nn.Conv2d(base, 1, 1) for _ in self.sides)
        self.taps = taps_of(widths, latents)

    def segment(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Student.segment`."""
        rows = [[self.encoder[0](inputs)]]
        for block in self.encoder[1:]:
            rows.append([block(F.max_pool2d(rows[-1][0], 2))])
        taps = {"encoder8": rows[3][0], "bottleneck": rows[DEPTH][0]}
        if self.latents is not None:
            rows[DEPTH][0], seen = self.latents(rows[DEPTH][0])
            taps |= seen
        for j in range(1, DEPTH + 1):
            for i in range(DEPTH + 1 - j):
                upper = doubled(rows[i + 1][j - 1])
                rows[i].append(self.nodes[f"{i}-{j}"](torch.cat([*rows[i], upper], 1)))
        maps = taps | {"decoder8": rows[3][1]}
        if self.training:
            maps |= {side: head(node) for side, head, node in zip(self.sides, self.side_heads, rows[0][1:], strict=False)}
        return self.head(rows[0][DEPTH]), maps


@STUDENTS.register("unetpp")
def build_unetpp(variant: str | None, latents: bool, pretrained: bool) -> UNetPlusPlus:
    """`unetpp` (base width 32), `unetpp:B` with B channels at full resolution, `unetpp:deep` or `unetpp:B-deep` with deep
    supervision; nothing is pretrained."""
    match = re.fullmatch(r"(?:(\d+)-)?deep", variant or "")
    width = match[1] if match else variant
    return UNetPlusPlus(base_width("U-Net++", "unetpp", width), latents, deep=match is not None)
