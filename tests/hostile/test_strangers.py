"""A stranger's run or sweep is read or refused: nothing in it runs, nothing outside it is opened, and no page holds more than text."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.errors import CacheError, RunError
from polyp_difom.pipeline.evaluation.record import EvaluationRecord
from polyp_difom.pipeline.export.frames import _stored
from polyp_difom.pipeline.json_files import parsed
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.sweep.folder import SweepFolder
from polyp_difom.pipeline.sweep.results import rows

from .limits import Hang, patience
from .runs import EVIL, epochs, header, lines, runs, whole_run
from .spoiling import edited, linked, writing
from .sweeps import sweeps, whole_sweep
from .watch import dangers_of

SHARE = 0.06
"""Of the hostile folders, as many as are tried here; `make torture` tries all."""


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every command on a share of the folders."""
    call = [sys.executable, "-m", "tests.hostile.visit", str(tmp_path_factory.mktemp("strangers")), str(SHARE)]
    done = subprocess.run(
        call, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_commands_on_hostile_folders_end_with_a_page_or_one_message(visits: list[dict[str, Any]]) -> None:
    assert [visit for visit in visits if visit["wrong"]] == []
    assert {visit["command"] for visit in visits} >= {"report", "predict", "export", "evaluate", "sweep show", "sweep report"}


@pytest.mark.parametrize(
    ("limits", "act"), [((0.05, 60), lambda: all(True for _ in count())), ((60, 0.05), lambda: time.sleep(60))]
)
def test_a_reader_that_works_or_waits_too_long_hangs(limits: tuple[float, float], act: Callable[[], object]) -> None:
    with pytest.raises(Hang), patience(*limits):
        act()
    with patience(60, 60):
        time.sleep(0.1)


def test_there_are_hundreds_of_distinct_hostile_folders(tmp_path: Path) -> None:
    names = [(case.kind, case.name) for make in (runs, sweeps) for case in make(tmp_path / "outside", tmp_path / "executed")]
    assert len(names) == len(set(names)) > 250


@pytest.mark.parametrize(
    "page",
    ["<script>x</script>", "<p onclick=x>", "<img src=//a/b>", "<a href=javascript:x>", "<style>a{background:url(x)}</style>",
     "<b id=injected>", "<svg><use href=x /></svg>", "<meta http-equiv=refresh>", str(7777 * 7777)],
)  # fmt: skip
def test_the_check_of_pages_tells_what_would_run_or_be_fetched(page: str) -> None:
    assert dangers_of(page)
    assert dangers_of("<style>p{color:red}</style><img src='data:image/jpeg;base64,AA'><p>&lt;script&gt;</p>") == []


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "[" * 200_000, "9" * 5000, "{"])
def test_json_that_is_no_number_or_too_deep_is_refused_as_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(text)


@pytest.mark.parametrize(
    "row", [1, {}, {"epoch": 1}, epochs(val_dice=math.nan)[1], epochs(val_dice="1")[1], epochs(x=[1])[1], epochs(x=1e300)[1], epochs(epoch=True)[1]]
)  # fmt: skip
def test_figures_that_are_no_figures_are_named_with_their_line(row: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text(lines([epochs()[0], row]))
    with pytest.raises(RunError, match="figures are damaged"):
        run.history()


def test_epochs_that_do_not_rise_are_damage(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text(lines(epochs()[::-1]))
    with pytest.raises(RunError, match="line 2"):
        run.history()


@pytest.mark.parametrize(
    "change",
    [
        edited("trials/0.json", {"name": "../../outside"}), edited("trials/0.json", {"name": EVIL}), edited("trials/0.json", {"number": 1}),
        edited("trials/0.json", {"same_as": 77}), edited("trials/0.json", {"settings": {"objective": [1]}}), edited("trials/0.json", {"seconds": math.nan}),
        writing("students.json", b"[]"), writing("students.json", b"[" * 200_000), edited("students.json", {"unet:4": {"latency_ms": -1}}),
        linked("students.json", "/etc/passwd"), linked("trials", ".."),
    ],
)  # fmt: skip
def test_a_damaged_sweep_is_named_and_not_followed_out_of_its_folder(change: Any, tmp_path: Path) -> None:
    sweep = whole_sweep(tmp_path / "sweep")
    assert len(rows(SweepFolder.open(sweep))) == 4
    change(sweep)
    with pytest.raises(RunError):
        rows(SweepFolder.open(sweep))


@pytest.mark.parametrize(
    "about", [{"kind": "x"}, {"kind": []}, {"parameters": -1}, {"parameters": 10**400}, {"sha256": [1]}, {"header": header(seed="x")}, {"header": header(val_dice=math.nan)}]
)  # fmt: skip
def test_what_a_record_says_of_its_target_is_checked_before_use(about: dict[str, Any], tmp_path: Path) -> None:
    record = EvaluationRecord(whole_run(tmp_path / "run"))
    sound = {"kind": "run", "path": "x", "name": "x", "sha256": None, "header": header(), "parameters": 3}
    record.folder.mkdir()
    (record.folder / "target.json").write_text(json.dumps(sound))
    assert record.about() == sound
    (record.folder / "target.json").write_text(json.dumps(sound | about))
    with pytest.raises(RunError):
        record.about()


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "bench.json", "metrics.jsonl"])
def test_a_report_follows_no_link_out_of_a_run(name: str, tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    linked(name, "/etc/passwd")(run)
    with pytest.raises(RunError, match="leads out"):
        EvaluationRecord.open(run)


@pytest.mark.parametrize("cache", ["s3://bucket/x.zarr", "http://127.0.0.1:9/x.zarr", "memory://x"])
def test_a_checkpoints_word_alone_opens_no_connection(cache: str) -> None:
    with pytest.raises(CacheError, match="opens no connection"):
        _stored(header(cache=cache), 1)
