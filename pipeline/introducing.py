"""What a training says before it begins: what is trained on what, and what will not work well."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polyp_difom.pipeline.averaging import largest_decay
from polyp_difom.pipeline.data.predicted import PREDICTED
from polyp_difom.pipeline.distributed import world
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.students.protocol import parameter_count

if TYPE_CHECKING:
    from polyp_difom.pipeline.trainer import Trainer


def introduce(trainer: Trainer) -> None:
    """Says what is trained on what, and warns of what will not work well."""
    config, say = trainer.config, trainer.progress.say
    say(
        f"{config.student} ({parameter_count(trainer.student) / 1e6:.2f} M parameters), objective {config.objective}, "
        f"{len(trainer.train)} train and {len(trainer.val)} val frames, "
        f"on {trainer.device} in {trainer.precision}: {trainer.why_precision}"
    )
    if pseudo := sum(entry.frames for entry in trainer.store.manifest.datasets if entry.layout == PREDICTED):
        say(f"{pseudo} of the train frames have predicted masks")
    if unread := _unread(config, len({teacher for teacher, _ in trainer.objective.keys})):
        say(unread)
    if len(trainer.train) < config.batch_size:
        say(f"fewer train frames than a batch of {config.batch_size}: each step takes all {len(trainer.train)}")
    for name, feed in (("train", trainer.train), ("val", trainer.val)):
        if feed.all_empty():
            says = "there is no lesion to learn" if name == "train" else "its Dice says nothing about finding lesions"
            say(f"warning: all {len(feed)} {name} masks of {trainer.store.location} are empty: {says}")
    if world() > 1:
        say(f"{world()} processes share each batch of {config.batch_size} frames")
    steps = config.epochs * trainer.steps_per_epoch
    if config.ema > (reached := largest_decay(steps)):
        say(
            f"warning: --ema {config.ema:g} averages over about {1 / (1 - config.ema):,.0f} steps, and this training has "
            f"{steps}: its decay grows to {reached:.3f} only; --ema {math.floor(100 * reached) / 100:g} or less is reached"
        )
    if trainer.pretraining and trainer.begins:
        say(f"the encoder starts from pretrained weights: {trainer.pretraining}")


def _unread(config: DistillConfig, teachers: int) -> str:
    """Which options of teaching have nothing to act on, in words."""
    names = ["drop_teachers"] if teachers else ["distill_weight", "weight_schedule", "drop_teachers"]
    fields = DistillConfig.model_fields
    given = {name: value for name in names if (value := getattr(config, name)) != fields[name].default}
    if teachers > 1 or not given:
        return ""
    options = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
    reason = "a single teacher is never left out" if teachers else f"objective {config.objective} reads no teacher"
    return f"without effect: {options}, as {reason}"
