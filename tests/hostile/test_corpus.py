"""Every file of the corpus is read as it is or refused with one clear message: no crash, no hang, no memory, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("pydicom")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

MEMORY = 512 << 20
"""Bytes that reading any case may take on top of what the process holds, imports of the readers included."""
SECONDS = 10
"""Of CPU time."""
CODES = {"UsageError": 2, "DataError": 3, "CacheError": 4, "MissingDependencyError": 5, "RunError": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """All that the driver prints: the memory before, an object a case and reader, what was written."""
    command = f"from tests.hostile.driver import main; main({str(folder)!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def outcomes(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return told[1:-1]


def test_more_than_two_hundred_distinct_files_are_tried(outcomes: list[dict[str, Any]]) -> None:
    table = Counter((outcome["kind"], outcome["got"]) for outcome in outcomes if outcome["reader"] != "read_map")
    for kind in sorted({kind for kind, _ in table}):
        tried = sum(count for (other, _), count in table.items() if other == kind)
        print(f"{kind:28}{tried:5} tried{table[kind, 'refused']:5} refused{table[kind, 'read']:5} read")
    assert len({outcome["path"] for outcome in outcomes if outcome["expected"] == "refused"}) >= 200
    assert sum(count for (_, got), count in table.items() if got in ("read", "refused")) == sum(table.values())


def test_what_is_odd_is_read_as_it_is_and_what_is_bad_is_refused(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["got"] in ("read", "refused"), outcome  # neither crashes nor hangs, nor other pixels
        if outcome["expected"] != "either" and outcome["reader"] != "read_map":  # which wants more than a picture
            assert outcome["got"] == outcome["expected"], outcome


def test_a_bad_map_is_no_map_either(outcomes: list[dict[str, Any]]) -> None:
    accepted = [
        one["path"] for one in outcomes if (one["reader"], one["expected"], one["got"]) == ("read_map", "refused", "read")
    ]
    assert accepted == []


def test_each_refusal_is_one_clear_message_that_names_the_file(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        if outcome["got"] == "refused":
            what, *details = outcome["message"].splitlines()
            assert outcome["code"] == CODES[outcome["error"]]
            assert 8 < len(what) < 140, outcome
            assert Path(outcome["path"]).name in outcome["message"], outcome
            assert len(details) <= 12, outcome
            assert len(outcome["message"]) < 2000, outcome
            assert all(character.isprintable() or character == "\n" for character in outcome["message"]), outcome


def test_memory_and_time_stay_bounded(told: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> None:
    greedy = [(one["path"], one["peak"] - told[0]["memory"]) for one in outcomes if one["peak"] - told[0]["memory"] > MEMORY]
    assert greedy == []
    assert [one["path"] for one in outcomes if one["seconds"] > SECONDS] == []


def test_reading_writes_nothing_and_runs_no_pickle(
    told: list[dict[str, Any]], outcomes: list[dict[str, Any]], folder: Path
) -> None:
    assert told[-1] == {"written": []}
    assert not (folder / "executed").exists()
    assert sum(outcome["kind"] == "pickle" for outcome in outcomes) >= 15
