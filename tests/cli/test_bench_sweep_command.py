"""`polyp-difom bench sweep`: the commands that it times are run here, in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.bench import sweep as bench


@pytest.fixture
def ran(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs commands in this process instead of watching others; the names of those that ran."""
    names = []

    def timed(self: object, label: str, words: list[str]) -> float:
        names.append(words[0])
        began = time.perf_counter()
        result = cli(*words)
        assert result.exit_code == 0, result.stderr
        return time.perf_counter() - began

    monkeypatch.setattr(bench._Bench, "timed", timed)
    monkeypatch.setattr(bench._Bench, "watched", lambda self, label, words: 300 if words[0] == "sweep" else 200)
    return names


def test_a_store_is_swept_against_separate_calls(cli: Callable[..., Any], ran: list[str], store: FeatureStore) -> None:
    options = ["--students", 2, "--student", "unet:4", "--epochs", 1, "--jobs", 1, "--device", "cpu"]
    result = cli("bench", "sweep", "--store", store.location, *options, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert ran == ["sweep", "distill", "distill"]
    assert found["parts"]["extract"] == pytest.approx(
        sum(store.ledger()[f"{p}_seconds"] for p in ("teacher", "decode", "write"))
    )
    assert [way["students"] for way in found["ways"][::3]] == [2, 10, 30, 100]
    assert all(way["seconds"] > 0 and not way["measured"] for way in found["ways"])
    assert found["memory"]["sweep"] == 300


def test_frames_are_extracted_once_for_each_separate_run(
    cli: Callable[..., Any], ran: list[str], store: FeatureStore, monkeypatch: pytest.MonkeyPatch, extracting: Any, frames: Path
) -> None:
    def quickly(folder: Path, *_: object) -> Callable[[int], list[str]]:
        from polyp_difom.pipeline.extract import extract

        for number in range(2):
            extract(extracting(frames, folder / f"{number}.zarr"))
        return lambda number: ["cache", "info", str(folder / f"{number}.zarr")]

    monkeypatch.setattr(bench, "_extraction", quickly)
    options = ["--students", 2, "--student", "unet:4", "--epochs", 1, "--jobs", 1, "--device", "cpu"]
    result = cli("bench", "sweep", *options)
    assert result.exit_code == 0, result.stderr
    assert ran == ["cache", "cache", "sweep", "distill", "distill"]
    for word in ("one extract, one sweep", "from the parts", "beat runs that each extract: ", "(1.50 times"):
        assert word in result.stdout.replace("\n", " ")


def test_a_store_that_is_not_there_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no " in refused(4, "bench", "sweep", "--store", str(tmp_path / "missing.zarr"), "-q")
