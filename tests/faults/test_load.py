"""Many samples: opening stays quick, shuffled reading keeps its rate, memory and file handles stay where they are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from polyp_difom.pipeline.evaluation import metrics

from .load import make_store, measure


def test_a_large_store_opens_at_once_and_is_read_at_a_steady_rate_in_constant_memory(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", 20_000)
    found = measure(tmp_path / "s.zarr", opens=20)
    assert found.open_seconds < 1
    assert found.last_rate > 0.3 * found.first_rate
    assert found.grown < 4 * 2**20
    assert found.leaked <= 1


def test_hundreds_of_opens_leak_no_file_handle(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", 10)
    assert measure(tmp_path / "s.zarr", opens=200).leaked <= 1


def test_the_interval_of_ten_thousand_images_takes_no_more_memory_than_their_scores() -> None:
    scores = np.random.default_rng(0).random(10_000)
    tracemalloc.start()
    metrics._bootstrap(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
