"""What may enter a shard: exactly the manifest's arrays, and finite values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.skeleton import LEDGER_FIELDS


def check_shard(
    manifest: Manifest, ids: Sequence[str], arrays: Mapping[str, NDArray[Any]], ledger: Mapping[str, float]
) -> None:
    """Compares a shard's arrays [k, *shape] and its ledger with the manifest.

    Args:
        manifest: of the store.
        ids: of the shard's k samples.
        arrays: as given to `FeatureStore.write_shard`.
        ledger: as given to `FeatureStore.write_shard`.

    Raises:
        ValueError: keys, shapes or dtypes are not the manifest's.
        CacheError: a value is NaN or infinite; names array and sample.
    """
    fields = set(LEDGER_FIELDS) - {"write_seconds"}
    if set(ledger) != fields:
        raise ValueError(f"the ledger must hold {sorted(fields)}, got {sorted(ledger)}")
    if set(arrays) != set(manifest.arrays):
        raise ValueError(f"a shard must hold {sorted(manifest.arrays)}, got {sorted(arrays)}")
    for key, spec in manifest.arrays.items():
        values, wanted = arrays[key], (len(ids), *spec.shape)
        if values.shape != wanted or values.dtype != spec.dtype:
            raise ValueError(f"{key} must be {spec.dtype} {wanted}, got {values.dtype} {values.shape}")
        if spec.is_float:
            finite = np.isfinite(values).reshape(len(ids), -1).all(axis=1)
            if not finite.all():
                raise CacheError(
                    f"{key} is not finite for sample {ids[int(np.argmin(finite))]!r}",
                    got="NaN or infinity",
                    wanted="finite values, which alone may be cached",
                    remedy="run the teacher in float32; if it stays, look at the frame",
                )
