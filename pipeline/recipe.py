"""What stage two can be told: the settings of one training."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    distill_weight: float = Field(1.0, ge=0)
    affine: bool = True
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = Field(None, gt=0)
    """On the CPU; None for as many as PyTorch takes. Sums are rounded differently with another number."""
    signature: str | None = None
    """Of the store that a saved configuration was made for; another store is refused."""
