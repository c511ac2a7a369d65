"""SAM's attention without its detours: the package's weights, logits and names, fused where that is faster.

The package adds to every logit a decomposed relative position, rel_h(q)[row of k] + rel_w(q)[column of k] (arXiv 2112.01526).
Three exact ways to do so:

- fold: rel_h and rel_w become extra head dimensions of q, met by one-hot rows and columns on k: no mask, so that plain
  flash attention serves, at d + h + w dimensions.
- mask: their sum is an additive mask, [n, n] for every head, of the fused kernel.
- heads: logits written out, one head at a time: a twelfth of the package's memory.

Shapes: b batch (of windows, in windowed blocks), h w grid, n = h * w tokens, m heads, d channels of a head, c = m * d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT

Way = Literal["fold", "mask", "heads"]


class FusedAttention(nn.Module):
    """The package's `Attention` on one grid through a fused kernel; shares its parameters and keeps their names.

    Args:
        source: with its weights loaded; positions are tabulated here.
        grid: (h, w) of its inputs.
        windowed: whether these are small windows rather than whole frames.
    """

    row_table: Tensor
    column_table: Tensor
    places: Tensor

    def __init__(self, source: Attention, grid: tuple[int, int], windowed: bool):
        from segment_anything.modeling.image_encoder import get_rel_pos

        super().__init__()
        self.qkv, self.proj = source.qkv, source.proj
        self.num_heads, self.scale, self.use_rel_pos = source.num_heads, source.scale, source.use_rel_pos
        self.grid, self.windowed = grid, windowed
        if not self.use_rel_pos:
            return
        self.rel_pos_h, self.rel_pos_w = source.rel_pos_h, source.rel_pos_w
        h, w = grid
        rows = F.one_hot(torch.arange(h).repeat_interleave(w), h)
        columns = F.one_hot(torch.arange(w).repeat(h), w)
        self.register_buffer("row_table", get_rel_pos(h, h, self.rel_pos_h.detach()), persistent=False)  # [h, h, d]
        self.register_buffer("column_table", get_rel_pos(w, w, self.rel_pos_w.detach()), persistent=False)  # [w, w, d]
        self.register_buffer("places", torch.cat([rows, columns], 1).to(self.rel_pos_h), persistent=False)  # [n, h + w]

    def way(self, device: torch.device) -> Way:
        """The fastest way there. On an H100 (ViT-B, bfloat16) the global blocks' folding gave 155 frames/s, masks 95; 281 and
        251 compiled. A CPU core takes 1.6 s for a global block folded, 0.7 s masked, and by heads 0.9 s (bfloat16: 0.3 s).
        """
        if self.windowed:
            return "mask"
        return "fold" if device.type == "cuda" else "heads"

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, h, w, c] -> [b, h, w, c]."""
        b, h, w, _ = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [b, m, n, d]
        if self.use_rel_pos:
            rows, columns = self._relative(q)
            out = self._attend(q, k, v, rows, columns, way=self.way(x.device))
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, -1))

    def _relative(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What each query [b, m, n, d] adds for each row [b, m, n, h] and each column [b, m, n, w] of keys."""
        placed = q.unflatten(2, self.grid)
        rows = torch.einsum("bmhwd,hkd->bmhwk", placed, self.row_table)
        columns = torch.einsum("bmhwd,wkd->bmhwk", placed, self.column_table)
        return rows.flatten(2, 3), columns.flatten(2, 3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, way: Way) -> Tensor:
        """softmax(scale * q . k + rows + columns) v, [b, m, n, d]."""
        if way == "fold":
            width = v.shape[-1]
            q = torch.cat([q * self.scale, rows, columns], -1)
            k = torch.cat([k, self.places.to(k.dtype).expand(*k.shape[:2], -1, -1)], -1)
            v = F.pad(v, (0, q.shape[-1] - width))  # flash kernels want one width
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
        if way == "mask":
            mask = (rows[..., :, None] + columns[..., None, :]).flatten(-2)  # [b, m, n, n]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        heads = zip(*(tensor.split(1, 1) for tensor in (q * self.scale, k, v, rows, columns)), strict=True)
        return torch.cat([self._attend_plainly(*one) for one in heads], 1)

    def _attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The same with its logits written out; q is scaled."""
        logits = (q @ k.transpose(-2, -1)).unflatten(-1, self.grid)
        logits += rows[..., :, None]
        logits += columns[..., None, :]
        return logits.flatten(-2).softmax(-1) @ v


def fuse_attention(encoder: ImageEncoderViT) -> None:
    """Replaces the attention of every block, in place; names, parameters and state dict stay as they are."""
    cells = encoder.img_size // encoder.patch_embed.proj.stride[0]
    for block in encoder.blocks:
        side = block.window_size or cells
        block.attn = FusedAttention(block.attn, (side, side), windowed=block.window_size > 0)


def restore_attention(encoder: nn.Module) -> None:
    """The package's own attention again, in place, with the same parameters; nothing where there is none of ours."""
    from segment_anything.modeling.image_encoder import Attention

    for block in encoder.modules():
        fused = getattr(block, "attn", None)
        if not isinstance(fused, FusedAttention):
            continue
        own = Attention(fused.proj.in_features, fused.num_heads, use_rel_pos=fused.use_rel_pos, input_size=fused.grid)
        own.qkv, own.proj = fused.qkv, fused.proj
        if fused.use_rel_pos:
            own.rel_pos_h, own.rel_pos_w = fused.rel_pos_h, fused.rel_pos_w
        block.attn = own.train(fused.training)
