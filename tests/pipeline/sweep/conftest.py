"""Small sweeps over the small store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.run import resolved
from polyp_difom.pipeline.sweep.space import parse_grid

TINY = "student=unet:4 batch_size=4 epochs=2 precision=float32 "
MakeSweep = Callable[..., tuple[SweepFolder, SweepConfig]]


@pytest.fixture
def make_sweep(store: FeatureStore, tmp_path: Path) -> MakeSweep:
    """make_sweep("objective=none,multiscale seed=0..1") -> a sweep that has begun, none of its trials yet."""

    def make(grid: str, name: str = "sweep", **changes: object) -> tuple[SweepFolder, SweepConfig]:
        values = {"cache": str(store.location), "device": "cpu", "jobs": 1, "threads": 1, **changes}
        config = resolved(SweepConfig(factors=parse_grid(TINY) | parse_grid(grid), **values), store)
        folder = SweepFolder(tmp_path / name)
        folder.create(config)
        return folder, config

    return make
