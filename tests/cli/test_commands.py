"""The command as a whole: help without torch, Ctrl-C, and the small commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import schema

Refused = Callable[..., str]
PLAIN = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_there() -> None:
    wanted = {("extract",), ("distill",), ("evaluate",), ("report",), ("doctor",), ("data", "check"), ("data", "synth")}
    assert wanted | {("cache", "info"), ("cache", "verify")} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_each_of_its_options_explains_itself(path: tuple[str, ...], cli: Callable) -> None:
    result = cli(*path, "--help")
    assert result.exit_code == 0
    command = COMMANDS[path]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name


HELP = """
import sys
sys.argv = ["polyp-difom", *sys.argv[1:]]
from polyp_difom.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "torchvision", "zarr", "numpy", "scipy", "yaml"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


QUIET = """
import sys
sys.argv = ["polyp-difom", "--version"]
from polyp_difom.cli.main import main
try:
    main()
except SystemExit:
    import huggingface_hub
print(huggingface_hub.logging.get_verbosity())
"""


@pytest.mark.parametrize(("given", "level"), [({}, 40), ({"HF_HUB_VERBOSITY": "info"}, 20)])
def test_retries_of_the_hubs_client_are_silent_unless_asked_for(given: dict[str, str], level: int) -> None:
    environment = {name: value for name, value in PLAIN.items() if name != "HF_HUB_VERBOSITY"} | given
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split()[-1] == str(level), done.stderr


@pytest.mark.parametrize("words", [["--help"], ["extract", "--help"], ["distill", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, env=PLAIN, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_an_unknown_command_is_answered_with_a_close_one(refused: Refused) -> None:
    assert "distill" in refused(2, "distil")


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extract import Runner
from polyp_difom.pipeline.trainer import Trainer
schema.MOST_SAMPLES_PER_SHARD = 2

def slowed(real, seconds):
    def run(*args):
        time.sleep(seconds)
        return real(*args)
    return run

Runner.embed = slowed(Runner.embed, 0.1)
Trainer.step = slowed(Trainer.step, 0.05)
sys.argv = ["polyp-difom", *sys.argv[1:]]
from polyp_difom.cli.main import main
main()
"""


def interrupt(command: list[object], ready: Callable[[], bool]) -> tuple[int, str, str]:
    """Ctrl-C once `ready`; exit code, stdout, stderr."""
    words = [sys.executable, "-c", SLOW, *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN) as process:
        limit = time.monotonic() + 60
        while not ready() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def test_ctrl_c_stops_an_extraction_and_the_same_command_completes_it(
    cli: Callable, small: list[str], frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["extract", "-d", frames, "--cache", tmp_path / "s.zarr", *small]
    code, stdout, stderr = interrupt(command, lambda: (tmp_path / "s.zarr/done/c/1").exists())
    assert (code, stdout) == (130, "")
    assert "interrupted" in stderr
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert 0 < FeatureStore.open(tmp_path / "s.zarr").done().sum() < 11
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 2)
    assert cli(*command).exit_code == 0
    assert FeatureStore.open(tmp_path / "s.zarr").verify() == []


def test_ctrl_c_stops_a_run_and_the_same_command_with_resume_completes_it(
    cli: Callable, store: FeatureStore, light: list[str], tmp_path: Path
) -> None:
    command = ["distill", "--cache", store.location, *light, "--epochs", "6", "-o", tmp_path / "run"]
    metrics = tmp_path / "run/metrics.jsonl"
    code, stdout, stderr = interrupt(command, lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    assert (code, stdout) == (130, "")
    assert "interrupted" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    result = cli(*command, "--resume")
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_cache_info_tells_what_a_store_holds(cli: Callable, store: FeatureStore) -> None:
    said = json.loads(cli("cache", "info", store.location, "--json").stdout)
    assert (said["frames"], said["views"], said["scales"]) == (22, ["identity", "hflip"], {"s8": 8, "s16": 4, "s32": 2})
    assert said["shards"] == {"done": 1, "total": 1}
    table = cli("cache", "info", store.location).stdout
    assert re.search(r"dinov2:small\s+16\b", table)
    assert store.manifest.signature() in table


def test_cache_verify_finds_one_flipped_bit_and_exits_4(cli: Callable, store: FeatureStore, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(str(store.location), tmp_path / "s.zarr")
    assert cli("cache", "verify", tmp_path / "s.zarr").exit_code == 0
    key = "teachers/dinov2-small/s16/spectrum"
    (shard,) = (path for path in (tmp_path / "s.zarr" / key / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(bytes(data))
    result = cli("cache", "verify", tmp_path / "s.zarr")
    assert result.exit_code == 4
    assert f"{key}, shard 0, sample synthetic/" in result.stderr
    said = json.loads(cli("cache", "verify", tmp_path / "s.zarr", "--json").stdout)
    assert [damage["key"] for damage in said["damaged"]] == [key]


def test_data_check_reports_sound_frames_and_exits_3_for_a_bad_one(cli: Callable, copied_frames: Path) -> None:
    said = json.loads(cli("data", "check", copied_frames, "--json").stdout)
    assert (said["frames"], said["errors"]) == (24, [])
    path = copied_frames / "images/0005.jpg"
    path.write_bytes(path.read_bytes()[:500])
    result = cli("data", "check", copied_frames)
    assert result.exit_code == 3
    assert "0005.jpg" in result.stderr
    assert "1 of 24 frames cannot be used" in result.stderr


def test_data_synth_draws_what_extract_reads_and_never_draws_over_anything(
    cli: Callable, refused: Refused, small: list[str], tmp_path: Path
) -> None:
    assert cli("data", "synth", tmp_path / "new", "--count", "12", "--size", "64").exit_code == 0
    assert cli("extract", "-d", tmp_path / "new", "--cache", tmp_path / "s.zarr", *small).exit_code == 0
    assert "new" in refused(2, "data", "synth", tmp_path / "new")


def test_doctor_names_versions_devices_and_weights(cli: Callable) -> None:
    result = cli("doctor", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    found = {(finding["topic"], finding["name"]): finding for finding in said["findings"]}
    assert found["version", "torch"]["ok"]
    assert ("device", "cpu") in found
    assert ("weights", "sam:vit_b") in found


def test_doctor_exits_5_when_a_package_is_missing(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyp_difom.pipeline import health

    monkeypatch.setattr(health, "PACKAGES", (*health.PACKAGES, "no-such-package"))
    result = cli("doctor")
    assert result.exit_code == 5
    assert "no-such-package" in result.stderr
