"""Many samples: opening stays quick, shuffled reading keeps its rate, memory and file handles stay where they are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from polyp_difom.cli.main import app
from polyp_difom.pipeline.evaluation.paired import bootstrap

from .load import leaked_descriptors, make_frames, make_store, measure


def test_a_store_of_100_000_samples_opens_at_once_and_is_read_at_a_steady_rate_in_constant_memory(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", 100_000)
    found = measure(tmp_path / "s.zarr")
    assert found.open_seconds < 1
    assert found.last_rate > 0.3 * found.first_rate
    assert found.grown < 4 * 2**20


def test_a_thousand_opens_leak_no_file_handle(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", 10)
    assert leaked_descriptors(tmp_path / "s.zarr", 1000) <= 1


def test_figures_and_page_of_more_frames_take_no_more_memory_than_their_rows(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        folder = tmp_path / str(n)
        words = make_frames(folder, n)
        tracemalloc.start()
        for command in (words, ["report", f"{folder}/figures", "-o", f"{folder}/report.html"]):
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.stderr
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert CliRunner().invoke(app, make_frames(tmp_path, 4)).exit_code == 0  # imports
    first = peak(10)
    assert peak(200) - first < 1.5 * 2**20  # all frames and maps would be five


def test_the_interval_of_ten_thousand_images_takes_no_more_memory_than_their_scores() -> None:
    scores = np.random.default_rng(0).random(10_000)
    tracemalloc.start()
    bootstrap(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
