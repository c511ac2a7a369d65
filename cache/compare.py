"""Two stores side by side: settings, samples, and the values of every array that both hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.store import FeatureStore

BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class ArrayDifference:
    """How far an array's values lie apart over the samples that both stores hold.

    Args:
        key: of the array.
        samples: how many samples differ in at least one value.
        largest: greatest absolute difference of two values.
        cosine: between all values of the one and all of the other.
    """

    key: str
    samples: int
    largest: float
    cosine: float


@dataclass(frozen=True)
class Difference:
    """What tells two stores apart.

    Args:
        settings: (dotted key, value in the first, value in the second) where the manifests disagree.
        only_first, only_second: ids that one side alone holds.
        changed: shared ids whose image file, mask file or split differs.
        unfinished: shared ids whose shard is incomplete on a side; their values are not compared.
        shared: ids whose values are compared.
        arrays: every array of the same shape and dtype on both sides.
    """

    settings: list[tuple[str, Any, Any]]
    only_first: list[str]
    only_second: list[str]
    changed: list[str]
    unfinished: list[str]
    shared: int
    arrays: list[ArrayDifference]

    @property
    def equal(self) -> bool:
        """Nothing differs, and everything could be compared."""
        apart = (self.settings, self.only_first, self.only_second, self.changed, self.unfinished)
        return not any(apart) and not any(array.samples for array in self.arrays)


def compare(first: FeatureStore, second: FeatureStore, progress: Callable[[int, int], None] | None = None) -> Difference:
    """Manifests, sample tables and arrays of two stores; samples are matched by id, whatever their order.

    Args:
        progress: called with (arrays compared, arrays in all).

    Raises:
        CacheError: a chunk is damaged.
    """
    rows = [{name: row for row, name in enumerate(store.samples.ids)} for store in (first, second)]
    both = [name for name in rows[0] if name in rows[1]]
    ready = [store.done().repeat(store.manifest.samples_per_shard) for store in (first, second)]
    whole = [name for name in both if ready[0][rows[0][name]] and ready[1][rows[1][name]]]
    pairs = np.array([[side[name] for name in whole] for side in rows], np.int64)
    layouts = [{key: (spec.shape, spec.dtype) for key, spec in store.manifest.whole().items()} for store in (first, second)]
    keys = [key for key, layout in layouts[0].items() if layouts[1].get(key) == layout]
    arrays = []
    for step, key in enumerate(keys if whole else [], start=1):
        arrays.append(_array_difference(first, second, key, pairs))
        if progress is not None:
            progress(step, len(keys))
    return Difference(
        settings=_as_read(first).differences(_as_read(second)),
        only_first=[name for name in rows[0] if name not in rows[1]],
        only_second=[name for name in rows[1] if name not in rows[0]],
        changed=[name for name in both if _facts(first, rows[0][name]) != _facts(second, rows[1][name])],
        unfinished=sorted(set(both) - set(whole)),
        shared=len(whole),
        arrays=arrays,
    )


def _as_read(store: FeatureStore) -> Manifest:
    """Where views were added later is no difference."""
    return store.manifest.model_copy(update={"arrays": store.manifest.whole(), "schema_version": 1})


def _facts(store: FeatureStore, row: int) -> tuple[str, str, str]:
    return store.samples.sha256[row], store.samples.mask_sha256[row], store.samples.split[row]


def _array_difference(first: FeatureStore, second: FeatureStore, key: str, pairs: NDArray[np.int64]) -> ArrayDifference:
    spec = first.manifest.whole()[key]
    step = max(1, BLOCK_BYTES // (spec.chunks_per_sample * spec.chunk_bytes))
    largest, apart, products = 0.0, 0, np.zeros(3)
    for start in range(0, pairs.shape[1], step):
        chosen = pairs[:, start : start + step]
        a, b = (
            store.read(key, rows, verify="always").reshape(len(rows), -1).astype(np.float64)
            for store, rows in zip((first, second), chosen, strict=True)
        )
        gaps = np.abs(a - b).max(axis=1)
        largest, apart = max(largest, float(gaps.max())), apart + int(np.count_nonzero(gaps))
        products += [np.vdot(a, b), np.vdot(a, a), np.vdot(b, b)]
    norms = math.sqrt(products[1]) * math.sqrt(products[2])
    return ArrayDifference(key, apart, largest, float(products[0] / norms) if norms else float(not apart))
