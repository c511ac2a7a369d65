"""Segmentation losses, all of them means over the frames of a batch. Shapes: b batch, s frame side, h w grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["dice-bce", "structure"]


def dice_bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice (one minus, smoothed by one pixel, per image) plus binary cross-entropy, of logits and masks [b, 1, s, s]."""
    probability = logits.sigmoid().flatten(1)
    truth = masks.flatten(1)
    overlap = 2 * (probability * truth).sum(1) + 1
    dice = 1 - overlap / (probability.sum(1) + truth.sum(1) + 1)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, masks)


def structure(logits: Tensor, masks: Tensor) -> Tensor:
    """PraNet's weighted cross-entropy plus weighted IoU (arXiv 2006.11392, section 2.3; arXiv 1911.11445), [b, 1, s, s].

    A pixel weighs 1 + 5 |mean of the mask over 31 x 31 pixels - mask|: up to six times as much at a border.
    """
    weight = 1 + 5 * (F.avg_pool2d(masks, 31, stride=1, padding=15) - masks).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    entropy = (weight * entropy).sum((2, 3)) / weight.sum((2, 3))
    probability = logits.sigmoid()
    overlap = (weight * probability * masks).sum((2, 3)) + 1
    union = (weight * (probability + masks - probability * masks)).sum((2, 3)) + 1
    return (entropy + 1 - overlap / union).mean()


LOSSES: dict[LossName, Loss] = {"dice-bce": dice_bce, "structure": structure}


def supervise(loss: Loss, logits: Tensor, sides: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Mean loss of the logits [b, 1, s, s] and of a student's side outputs [b, 1, h, w], resized to the masks.

    The mean, where PraNet takes the sum, so that a weight of the teachers' terms means the same for every student.
    """
    resized = [F.interpolate(side, masks.shape[-2:], mode="bilinear", align_corners=False) for side in sides]
    return torch.stack([loss(output, masks) for output in (logits, *resized)]).mean()
