"""Arrays that memory does not hold: batches are read from the shards as they are needed.

Shapes: b batch, v views, c stored channels, k kept ones, h w grid.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.store import FeatureStore


class OnDisk:
    """One array of some samples; indexed like the tensor that it stands for, by one or two tensors of numbers.

    Args:
        rows: numbers of the samples in the store.
        weight: from stored to kept channels, float32 [k, c]; None where all are kept.
    """

    device = torch.device("cpu")

    def __init__(self, store: FeatureStore, key: str, rows: NDArray[np.int64], weight: Tensor | None = None):
        self.store, self.key, self.rows, self.weight = store, key, rows, weight

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[Tensor, ...]) -> Tensor:
        """Samples [b, ...] of an array without views; maps [b, c, h, w] of one with, by (sample, view)."""
        chunks = np.stack([self.rows[index[0].numpy()], *(i.numpy() for i in index[1:])], 1)
        found = torch.from_numpy(self.store.read(self.key, chunks if len(index) > 1 else chunks[:, 0]))
        return found if self.weight is None else torch.einsum("kc,bc...->bk...", self.weight, found.float()).half()

    def narrowed(self, weight: Tensor) -> OnDisk:
        """The same with fewer channels."""
        return OnDisk(self.store, self.key, self.rows, weight)
