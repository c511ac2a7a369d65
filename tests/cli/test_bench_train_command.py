"""`polyp-difom bench train`: tables and one JSON object on stdout, refusals with the right exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from polyp_difom.cli import bench_train
from polyp_difom.pipeline.bench.train_figures import Compiling, TrainBench

QUICK = ("unet:4", "--size", "64", "--batch", "2", "--repeats", "1", "--device", "cpu", "--threads", "1")


def test_train_prints_steps_ratios_parts_and_the_machine(cli: Callable[..., Any]) -> None:
    result = cli("bench", "train", *QUICK, "--frames", 100)
    assert result.exit_code == 0, result.stderr
    for word in ("s for 100 frames", "at most 1.10", "distance to teachers", "more ms", "1 of "):
        assert word in result.stdout
    assert "warming up: multiscale" in result.stderr


def test_train_gives_one_json_object(cli: Callable[..., Any]) -> None:
    result = cli("bench", "train", *QUICK, "--objective", "none", "--json", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert [way["name"] for way in found["ways"]] == list(found["stages"]) == ["none"]
    assert (found["ratios"], found["compiling"]) == ([], [])
    assert {"device", "threads", "load", "versions", "precision"} <= set(found)


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ("unett",), "did you mean"),
        (2, ("unet:4", "--random-weights"), "--random-weights"),
        (4, ("unet:4", "--cache", "missing.zarr"), "no "),
    ],
)
def test_train_refuses_plainly(refused: Callable[..., str], code: int, words: tuple[str, ...], message: str) -> None:
    assert message in refused(code, "bench", "train", *words, "--size", "64", "--batch", "2", "--device", "cpu", "-q")


def test_a_verdict_says_when_compiling_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = TrainBench(
        machine=None,  # type: ignore[arg-type]
        student="unet", objective="multiscale", size=352, batch=16, precision="bfloat16", frames=5800, teachers=[], ways=[],
        ratios=[], compiling=[], stages={},
    )  # fmt: skip
    pays = bench_train._verdict(Compiling("none, compiled", 40.0, 5.0, 0.2, 8000), bench)
    assert "saves 5.00 ms a step (20.0%)" in pays
    assert "from step 8,000 on, after 22.1 epochs" in pays
    assert "3.0% slower: it does not pay" in bench_train._verdict(Compiling("none, compiled", 40.0, -1.0, -0.03, None), bench)
