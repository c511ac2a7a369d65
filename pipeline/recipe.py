"""What stage two can be told: the settings of one training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from polyp_difom.pipeline.losses import LossName
from polyp_difom.pipeline.objectives.weighted import Schedule, needs_of
from polyp_difom.pipeline.schedule import RateName

WITH_LATENTS = " with latents"


class DistillConfig(BaseModel):
    """Everything that stage two can be told; the resolved values are saved with the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str
    student: str = "unet"
    pretrained: bool = True
    """ImageNet weights for the encoder; resolved to False where the student has none."""
    encoder_weights: str | None = None
    """FILE, saved as FILE#sha256=HEX: what the encoder starts from in place of ImageNet weights."""
    latents: bool = False
    """L1 and L2 between encoder and decoder, see students/latents.py; resolved to True where the objective reads them."""
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
    compile: bool = False
    """Whether to measure torch.compile in the first steps, and keep it where it pays; may be another when a run is resumed."""
    signature: str | None = None
    """Of the whole store when the settings were saved."""
    reads: dict[str, str] | None = None
    """Digests of what a saved configuration reads of its store, see `polyp_difom.pipeline.reads`; where one of them is another
    now, the store is refused. Older configurations have the signature alone, which counts then."""
    auto: str | None = None
    """What `--objective auto` found when it chose the objective, in words."""

    @property
    def has_latents(self) -> bool:
        """Whether the student gets latents: asked for, or read by the objective."""
        return self.latents or needs_of(self.objective).latents

    @property
    def network(self) -> str:
        """The student by name, as sweeps tell networks apart: "unet" and "unet with latents"."""
        return self.student + (WITH_LATENTS if self.has_latents else "")

    @field_validator("encoder_weights")
    @classmethod
    def _none_given(cls, source: str | None) -> str | None:
        """An empty flag takes back what a configuration file names."""
        return source or None

    @field_validator("objective")
    @classmethod
    def _one_spelling(cls, text: str) -> str:
        return "".join(text.split())

    @field_validator("teachers", "scales")
    @classmethod
    def _each_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return names if names is None else tuple(dict.fromkeys(names))
