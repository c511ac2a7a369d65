"""What stage two can be told: the settings of one training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from polyp_difom.pipeline.losses import LossName
from polyp_difom.pipeline.objectives.weighted import Schedule
from polyp_difom.pipeline.schedule import RateName


class DistillConfig(BaseModel):
    """Everything that stage two can be told; the resolved values are saved with the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str
    student: str = "unet"
    pretrained: bool = True
    """ImageNet weights for the encoder; resolved to False where the student has none."""
    objective: str = "multiscale"
    teachers: tuple[str, ...] | None = None
    scales: tuple[str, ...] | None = None
    channels: int | None = Field(None, gt=0)
    views: int | None = Field(None, gt=0)
    """Of the store: which scales, how many leading channels of each teacher, how many views; None for all."""
    epochs: int = Field(40, gt=0)
    batch_size: int = Field(16, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Its peak."""
    schedule: RateName = "one-cycle"
    """How the learning rate moves over the training."""
    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False)
    """AdamW's, apart from the gradient; Adam adds it to the gradient."""
    clip: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest norm of the gradient; 0 for any."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which is validated and saved in their place; 0 for none."""
    patience: int | None = Field(None, gt=0)
    """Epochs without a better validation Dice that end the training; None to go through all epochs."""
    distill_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    weight_schedule: Schedule = "constant"
    """How the teachers' share moves over the training."""
    drop_teachers: float = Field(0.0, ge=0, lt=1)
    """Probability with which each of several teachers is left out of a step; one stays."""
    loss: LossName = "dice-bce"
    """Of the segmentation, on the logits and on a student's side outputs alike."""
    flips: bool = True
    """The store's flipped views; without them its first view alone."""
    colour: bool = True
    affine: bool = True
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = Field(None, gt=0)
    """On the CPU; None for as many as PyTorch takes. Sums are rounded differently with another number."""
    signature: str | None = None
    """Of the store that a saved configuration was made for; another store is refused."""
    auto: str | None = None
    """What `--objective auto` found when it chose the objective, in words."""

    @field_validator("objective")
    @classmethod
    def _one_spelling(cls, text: str) -> str:
        return "".join(text.split())

    @field_validator("teachers", "scales")
    @classmethod
    def _each_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names if names is None else tuple(dict.fromkeys(names))
