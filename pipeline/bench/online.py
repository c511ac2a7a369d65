"""Teachers in the training loop, as they would run without a cache: for comparison. Shapes: b batch, c channels, h w grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.bench.random_teacher import random_weights
from polyp_difom.pipeline.device import autocast
from polyp_difom.pipeline.objectives.protocol import Key, Targets
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.teachers.protocol import Teacher, full_name, load_teacher
from polyp_difom.pipeline.trainer import Trainer


class Online:
    """Frames in, an objective's targets out: each teacher in its extraction's precision, its bases, area resampling.

    Args:
        trainer: whose objective says which maps.
    """

    def __init__(self, teachers: Sequence[Teacher], trainer: Trainer):
        manifest, self.device = trainer.store.manifest, trainer.device
        self.cells, self.precision = manifest.scales, manifest.precision
        self.keys, self.wants_spectra = set(trainer.objective.keys), trainer.train.needs.spectra
        self.teachers = [teacher.to(self.device).to(memory_format=torch.channels_last) for teacher in teachers]
        entries = {entry.name: entry for entry in manifest.teachers}
        self.maps = {
            teacher.spec.name: [
                (number, scales, schema.stored_basis(trainer.store, entries[teacher.spec.name], scales))
                for number, scales in schema.maps_of_scales(teacher.spec, manifest.frame_size, tuple(manifest.scales)).items()
            ]
            for teacher in teachers
        }

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Targets:
        """Targets of frames [b, 3, s, s]."""
        maps: dict[Key, Tensor] = {}
        for teacher in self.teachers:
            name = teacher.spec.name
            with autocast(self.device, self.precision):
                natives = teacher(frames)
            for number, scales, basis in self.maps[name]:
                stored = basis.apply(natives[number].float())
                maps |= {(name, scale): area_resample(stored, self.cells[scale]) for scale in scales}
        maps = {key: values for key, values in maps.items() if key in self.keys}
        if self.wants_spectra:
            return Targets(spectra={key: spectra.spectrum(values) for key, values in maps.items()})
        return Targets(maps=maps)


def load_teachers(
    names: Sequence[str], random: bool, scratch: Path, progress: Progress, size: int, store: FeatureStore | None
) -> list[Teacher]:
    """These teachers on the CPU, with random weights where asked for, as a store of frames of `size` pixels would have them.

    Args:
        store: that they are compared with, if there is one: they see frames at the side that it was made at.

    Raises:
        UsageError: an unknown teacher, or one without random weights. MissingDependencyError: no weights.
    """
    sides = {entry.name: entry.input_size for entry in store.manifest.teachers} if store else {}
    loaded = []
    for number, name in enumerate(names):
        folder = scratch / f"weights{number}"
        folder.mkdir()
        source = random_weights(name, folder) if random else None
        loaded.append(load_teacher(name, source, sides.get(full_name(name)), progress.say, size))
    return loaded
