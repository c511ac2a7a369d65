"""Commands that are killed, stopped, doubled or refused by the disk end in the result of an uninterrupted run."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyp_difom.cache import claims as claiming
from polyp_difom.cache.errors import RunError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import runs, schema
from polyp_difom.pipeline.files import alone_in, contents, empty, write_text
from polyp_difom.pipeline.runs import RunFolder

from . import kills
from .fuse import Strike
from .kills import Bench, Outcome
from .others import clock_backwards, full_disk, may_mount, read_only, stopped, two_copies, worker_events, worker_killed
from .torture import table


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    before = schema.MOST_SAMPLES_PER_SHARD, runs._git_state
    yield Bench(tmp_path_factory.mktemp("kills"))
    schema.MOST_SAMPLES_PER_SHARD, runs._git_state = before


def whole(*outcomes: Outcome) -> None:
    assert [outcome for outcome in outcomes if not outcome.is_good] == []


@pytest.mark.parametrize("name", ["extract", "extend", "distill", "sweep", "export", "hub folder", "predict"])
def test_a_command_killed_at_a_write_is_made_good_by_typing_it_again(bench: Bench, name: str) -> None:
    at = int(np.random.default_rng(len(name)).integers(1, bench.events[name]))
    whole(bench.follow(name, "kill", Strike(at, "inside", signal.SIGKILL)))


@pytest.mark.parametrize(("signed", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_code_and_a_word_on_how_to_go_on(
    bench: Bench, signed: signal.Signals, code: int
) -> None:
    place = bench.new_place("distill")
    ended = kills.attempt(bench.commands["distill"].words(place), place, Strike(bench.events["distill"] // 2, signal=signed))
    assert ended.code == code
    assert "interrupted; the last whole epoch is kept, the same command with --resume goes on" in ended.text


@pytest.mark.parametrize(("name", "file"), [("distill", "config.yaml"), ("predict", "predict.json"), ("sweep", "sweep.yaml")])
def test_a_command_killed_as_its_first_file_is_written_can_be_begun_again(bench: Bench, name: str, file: str) -> None:
    first = next(number for number, path in enumerate(bench.paths[name], 1) if file in path)
    whole(bench.follow(name, "kill", Strike(first + 1, "inside", signal.SIGKILL)))


def test_what_is_known_of_the_teacher_is_copied_by_the_next_extract_where_a_kill_came_first(bench: Bench) -> None:
    copied = [number for number, path in enumerate(bench.paths["extract"], 1) if "metadata.copy.json" in path]
    whole(bench.follow("extract", "kill", Strike(copied[-1], "before", signal.SIGKILL)))


def test_an_extension_killed_before_its_arrays_were_in_a_group_is_made_good_by_typing_it_again(bench: Bench) -> None:
    laid = [number for number, path in enumerate(bench.paths["extend"], 1) if "embedding/zarr" in path]
    whole(bench.follow("extend", "kill", Strike(laid[-1], "after", signal.SIGKILL)))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_is_an_error_with_a_message_and_loses_nothing(bench: Bench, error: int) -> None:
    for name in ("predict", "hub folder"):
        whole(bench.follow(name, "disk", Strike(bench.events[name] // 2, "inside", error=error)))


def test_file_systems_that_are_full_or_read_only_are_told_without_a_traceback(bench: Bench) -> None:
    if not may_mount(bench.folder / "mount"):
        pytest.skip("no file system can be mounted here")
    whole(
        full_disk(bench, "export", 0.4),
        full_disk(bench, "extend", 0.4),
        read_only(bench, "sweep", Strike(bench.events["sweep"] * 3 // 4, signal=signal.SIGKILL)),
    )


def test_of_two_copies_one_does_the_work_and_the_other_helps_or_is_refused(bench: Bench) -> None:
    whole(*(two_copies(bench, name) for name in ("extract", "distill")))


def test_a_sweep_whose_worker_is_killed_ends_as_a_plain_one(bench: Bench) -> None:
    whole(worker_killed(bench, worker_events(bench) // 2, "inside", signal.SIGKILL))


def test_a_stopped_process_keeps_its_shard_and_a_killed_one_leaves_it_to_the_next(bench: Bench) -> None:
    at = bench.events["extract"] * 2 // 3
    whole(stopped(bench, "extract", at, killed=False), stopped(bench, "extract", at, killed=True))


def test_files_of_tomorrow_are_gone_on_with(bench: Bench) -> None:
    whole(clock_backwards(bench, "extract", Strike(bench.events["extract"] // 2, signal=signal.SIGKILL)))


def test_the_table_counts_every_fault_by_kind_and_command() -> None:
    good = Outcome("kill", "extract", "", "", detected=True, recovered=True)
    bad = Outcome("kill", "predict", "", "", detected=True, recovered=False, lost=True, silent=True)
    rows = [line.split() for line in table([good, good, bad]).splitlines()]
    assert rows[1:] == [["kill", "extract", *"222000"], ["kill", "predict", *"110101"], ["all", *"332101"]]


def test_a_folder_at_work_is_refused_to_a_second_process_until_the_first_is_gone(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with alone_in(tmp_path / "run"):
            os.write(write, b"in")
            time.sleep(60)
        os._exit(0)
    os.read(read, 2)
    with pytest.raises(RunError, match=f"process {child} on .*"), alone_in(tmp_path / "run"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "run/.a.csv.7.partial").write_text("half")
    with alone_in(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert os.listdir(tmp_path / "run") == []


def test_overwriting_a_run_takes_away_first_what_it_could_be_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run")
    for path in (run.resume_state, run.path / "config.yaml", run.path / ".config.yaml.7.partial"):
        write_text(path, "x")
    monkeypatch.setattr(runs, "empty", lambda folder, but="": None)
    RunFolder.create(run.path, overwrite=True)
    assert not run.resume_state.exists()
    empty(run.path, last="config.yaml")
    assert contents(run.path) == set()


def test_a_read_only_disk_is_told_even_where_the_half_file_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(RunError, match="Read-only"):
        write_text(tmp_path / "file", "x")


def test_a_claim_of_tomorrow_from_another_host_ends_when_nobody_touches_it(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(claiming.time, "monotonic", lambda: now[0])
    with claiming.joined(tmp_path) as claims:
        claim = tmp_path / ".claims/3"
        claim.parent.mkdir()
        claim.write_text("process 7 on elsewhere")
        for touched in (1, 2):  # alive: touched again and again
            os.utime(claim, (time.time() + 86_400 + touched,) * 2)
            assert not claims.take(3)
            now[0] += claiming.EXPIRY_SECONDS - 1
            assert not claims.take(3)
        now[0] += 2
        assert claims.take(3)
