"""What a sweep saves: the arithmetic of its parts, and the memory of a family of processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.pipeline.bench import sweep as bench
from polyp_difom.pipeline.bench.sweep import WAYS, Parts, bench_sweep
from polyp_difom.pipeline.progress import Progress

MIB = 2**20
CHILDREN = """
import subprocess, sys, time
held = bytearray(int(sys.argv[1])); held[::4096] = b"x" * len(held[::4096])
subprocess.run([sys.executable, "-c", "import time; b = bytearray(60 << 20); b[::4096] = b'x' * len(b[::4096]); time.sleep(2)"])
"""


@pytest.fixture
def watching(tmp_path: Path) -> bench._Bench:
    return bench._Bench(tmp_path, "unet:4", 1, "cpu", Progress())


def test_ways_are_added_up_from_their_parts() -> None:
    parts = Parts(extract=100.0, distill=10.0, trial=12.0, around=20.0, jobs=2)
    assert parts.seconds(3) == (100 + 20 + 24, 100 + 30, 300 + 30)
    assert parts.first_cheaper_than(WAYS.index("separate extracts and distill calls")) == 2
    # two at a time: 20 + 12 n / 2 against 10 n; an odd one takes a whole turn, so 6 is the first from which on it stays so
    assert parts.first_cheaper_than(WAYS.index("one extract, separate distill calls")) == 6


def test_a_sweep_that_never_pays_has_no_break_even() -> None:
    parts = Parts(extract=0.0, distill=1.0, trial=2.0, around=1.0, jobs=1)
    assert parts.first_cheaper_than(1) is None


def test_memory_counts_the_children_too(watching: bench._Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COMMAND", (sys.executable, "-c", CHILDREN))
    peak = watching.watched("", [str(40 * MIB)])
    assert 100 * MIB < peak < 200 * MIB


def test_a_command_that_fails_is_an_error_with_its_words(watching: bench._Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('error: no such store')"))
    for start in (watching.timed, watching.watched):
        with pytest.raises(RunError, match="no such store"):
            start("", ["sweep"])


def test_a_store_and_data_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        bench_sweep(store=str(tmp_path), data=tmp_path)
