"""Teachers on their device: squared frames in, stored arrays out.

Shapes: b batch, n samples, v views, c channels, h w grid, s frame side.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.manifest import Manifest
from polyp_difom.pipeline import schema, spectra
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.data.frames import flip_axes
from polyp_difom.pipeline.device import autocast, out_of_memory
from polyp_difom.pipeline.progress import Advance, Progress
from polyp_difom.pipeline.quantise import quantise
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.teachers.compiling import compile_where_it_pays
from polyp_difom.pipeline.teachers.protocol import Teacher

Arrays = dict[str, NDArray]
"""By key of the store."""
Bases = dict[int, Basis]
"""By number of the map."""
MapsOfTeacher = dict[int, tuple[str, ...]]
"""By number of the map: the scales that are made from it, finest first."""


class Runner:
    """The teachers, and what of the plan they need to run.

    Args:
        manifest: of the arrays that shards are made of, in its views.
        maps: by teacher, which of its maps are made into which scales.
        decode: of the number of a sample, what is stored of its frame; at least `schema.IMAGE`, uint8 [3, s, s].
        batch_size: images that a teacher sees at once; in a shard, all views of a frame together.
    """

    def __init__(
        self, teachers: list[Teacher], manifest: Manifest, maps: Mapping[str, MapsOfTeacher], decode: Callable[[int], Arrays],
        device: torch.device, batch_size: int, progress: Progress,
    ):  # fmt: skip
        self.teachers = [teacher.to(device).to(memory_format=torch.channels_last) for teacher in teachers]
        self.manifest, self.maps, self.decode = manifest, maps, decode
        self.device, self.batch_size, self.progress = device, batch_size, progress
        self.views = [flip_axes(view) for view in manifest.views]
        mapped = {name: spec for name, spec in manifest.arrays.items() if spec.chunk_dims}
        start = min((spec.first for spec in mapped.values()), default=0)
        self._pieces: dict[str, dict[str, slice]] = defaultdict(dict)
        """By key of maps or spectra in all these views: the arrays that hold them, and which of the views each holds."""
        for name, spec in mapped.items():
            key = spec.continues.key if spec.continues else name
            self._pieces[key][name] = slice(spec.first - start, spec.first - start + spec.shape[0])
        self._most: dict[str, int] = {}
        """By teacher: images that its memory was found to hold."""

    def compile_where_it_pays(self, samples: int) -> None:
        """See `compiling`; `samples` of the store are to be embedded in all views, by whichever workers."""
        views = len(self.views)
        batch = views * max(1, self.batch_size // views)
        compile_where_it_pays(self.teachers, self.device, samples * views, batch, self.progress.say)

    def to_device(self, batch: Tensor) -> Tensor:
        """Frames uint8 [b, 3, s, s] as floats in 0..1 on the device; a GPU is not waited for."""
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        return (batch.to(self.device, non_blocking=True).float() / 255).contiguous(memory_format=torch.channels_last)

    def embed(self, teacher: Teacher, frames: Tensor, precision: str | None = None) -> dict[int, Tensor]:
        """Float32 maps [b, c, h, w] of frames [b, 3, s, s], on the teacher's own grids, by number; only those stored.

        Where the device's memory does not hold so many at once, the batch is halved, and stays so.

        Raises:
            RuntimeError: one image alone is too much (`out_of_memory`).
        """
        name = teacher.spec.name
        while True:
            most = min(len(frames), self._most.get(name, len(frames)))
            try:
                pieces = [self._run(teacher, piece, precision or self.manifest.precision) for piece in frames.split(most)]
            except RuntimeError as error:
                if most == 1 or not out_of_memory(error):
                    raise
                self._most[name] = most // 2
            else:
                return pieces[0] if len(pieces) == 1 else {n: torch.cat([piece[n] for piece in pieces]) for n in pieces[0]}
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # out here: until the error is dropped its frames hold the memory
            self.progress.say(
                f"{name}: out of memory with {most} images at once, going on with {most // 2}; only rounding differs"
            )

    def _run(self, teacher: Teacher, frames: Tensor, precision: str) -> dict[int, Tensor]:
        with autocast(self.device, precision):
            maps = teacher(frames)
        return {number: maps[number].float() for number in self.maps[teacher.spec.name]}

    def shard(self, frames: list[Arrays], bases: Mapping[str, Bases], advance: Advance) -> tuple[Arrays, float]:
        """All arrays of one shard, [n, ...] each, and the seconds that the teachers took."""
        arrays: Arrays = {}
        for key, spec in self.manifest.arrays.items():
            known = key in frames[0]
            arrays[key] = np.stack([f[key] for f in frames]) if known else np.empty((len(frames), *spec.shape), spec.dtype)
        images = np.stack([frame[schema.IMAGE] for frame in frames])
        coming: list[tuple[slice, dict[str, Tensor], Callable[[], None]]] = []

        def keep(rows: slice, made: dict[str, Tensor], arrive: Callable[[], None]) -> None:
            arrive()
            for key, values in made.items():
                arrays[key][rows] = values.numpy()

        began, start = time.perf_counter(), 0
        for batch in torch.from_numpy(images).split(max(1, self.batch_size // len(self.views))):
            rows = slice(start, start := start + len(batch))
            coming.append((rows, *self._to_host(self._batch(self.to_device(batch), bases))))
            if len(coming) > 1:  # while a GPU copies a batch's maps it is given the next one
                keep(*coming.pop(0))
            advance(len(batch))
        keep(*coming.pop())
        return arrays, time.perf_counter() - began

    def _to_host(self, made: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """These tensors in host memory, and what to call before they are read."""
        if self.device.type != "cuda":
            return made, lambda: None
        held = {key: torch.empty(values.shape, dtype=values.dtype, pin_memory=True) for key, values in made.items()}
        for key, values in made.items():
            held[key].copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return held, arrived.synchronize

    def _batch(self, frames: Tensor, bases: Mapping[str, Bases]) -> dict[str, Tensor]:
        """Maps and spectra [b, v, ...] of frames [b, 3, s, s] in all views, by key of the store."""
        views = torch.cat([frames.flip(axes) for axes in self.views]).contiguous(memory_format=torch.channels_last)
        made: dict[str, Tensor] = {}
        for teacher in self.teachers:
            name = teacher.spec.name
            for number, native in self.embed(teacher, views).items():
                stored = bases[name][number].apply(native)
                for scale in self.maps[name][number]:
                    maps = area_resample(stored, self.manifest.scales[scale])
                    key = schema.embedding_key(name, scale)
                    is_int8 = self.manifest.arrays[next(iter(self._pieces[key]))].dtype == "int8"
                    made[key] = _int8(key, maps, bases[name][number].steps[scale]) if is_int8 else maps.half()
                    if self.manifest.spectra != "none":
                        spectrum = spectra.spectrum(maps)
                        block = spectra.low_block(spectrum) if self.manifest.spectra == "low" else spectrum
                        made[schema.spectrum_key(name, scale)] = spectra.pack(block).half()
        joined = {key: values.unflatten(0, (len(self.views), -1)).transpose(0, 1) for key, values in made.items()}
        return {name: joined[key][:, held] for key in joined for name, held in self._pieces[key].items()}


def _int8(key: str, maps: Tensor, steps: NDArray[np.float32]) -> Tensor:
    """Maps [b, c, h, w] as int8; integers could not tell the store that a value is not finite."""
    if not maps.isfinite().all():
        raise CacheError(
            f"{key} is not finite", got="NaN or infinity", wanted="finite values, which alone may be cached",
            remedy="run the teacher in float32; if it stays, look at the frames",
        )  # fmt: skip
    return quantise(maps, torch.from_numpy(steps).to(maps.device)[:, None, None])
