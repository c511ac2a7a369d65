"""`bench reader`: every way gives the same values, and the ratios hold what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from polyp_difom.cache.errors import CacheError, RunError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench import reader
from polyp_difom.pipeline.bench.reader import BARS, FIRST, KEY, NPY, OURS, ZARR, bench_reader, drawn_store


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "DRAWN", {"tiny": ((4, 6, 6), 40)})


def test_drawn_samples_have_the_promised_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [math.prod(shape) * 2 for shape, _ in reader.DRAWN.values()] == [247_808, 991_232]


def test_every_way_is_timed_against_first_and_later_passes_and_the_later_ones_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "JUDGED_BYTES", 288)
    found = {row.way: row for row in bench_reader(repeats=2)}
    assert {OURS, FIRST, ZARR, NPY} <= set(found)
    assert (found[OURS].ratio, found[FIRST].first_ratio, found[OURS].met, found[OURS].sample_bytes) == (1.0, 1.0, None, 288)
    assert {way: row.bar for way, row in found.items() if row.bar} == {way: bar for way, bar in BARS.items() if way in found}
    assert all(row.met is (row.ratio >= row.bar) for row in found.values() if row.bar)


def test_samples_too_small_for_the_bars_are_not_judged() -> None:
    assert {(row.bar, row.met) for row in bench_reader(repeats=1)} == {(None, None)}


def test_first_passes_check_every_chunk_and_later_ones_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = drawn_store(tmp_path / "s.zarr", (4, 6, 6), 40)
    np.save(tmp_path / "copy.npy", store.read(KEY))
    sizes: list[int] = []
    real = google_crc32c.value
    monkeypatch.setattr(google_crc32c, "value", lambda data: sizes.append(len(data)) or real(data))
    first, later = reader._first_passes(store, KEY, 40), reader._ways(store, KEY, tmp_path / "copy.npy")[OURS]

    def chunks_checked(read: Callable[[], object]) -> int:
        sizes.clear()
        read()
        return sizes.count(288)

    assert [chunks_checked(first) for _ in range(5)] == [16] * 5
    assert [chunks_checked(lambda: later(np.arange(16))) for _ in range(2)] == [0, 0]


def test_a_given_store_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    store = drawn_store(tmp_path / "s.zarr", (4, 6, 6), 40)
    before = {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    assert {row.array for row in bench_reader(str(store.location), repeats=1)} == {KEY}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_way_that_gives_other_values_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader._ways

    def wrong(store: FeatureStore, key: str, copy: Path) -> dict[str, Callable]:
        return {**real(store, key, copy), ZARR: lambda rows: np.zeros((len(rows), 1, 4, 6, 6), np.float16)}

    monkeypatch.setattr(reader, "_ways", wrong)
    with pytest.raises(RunError, match="zarr-python gives other values"):
        bench_reader(repeats=1)


def test_stores_that_cannot_be_timed_are_refused(tmp_path: Path) -> None:
    few = drawn_store(tmp_path / "few.zarr", (4, 6, 6), 8)
    with pytest.raises(UsageError, match="too few samples"):
        bench_reader(str(few.location))
    with pytest.raises(CacheError, match="no feature store"):
        bench_reader(str(tmp_path / "missing.zarr"))
