"""Sweep folders of strangers, each with something hostile in one of its files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from polyp_difom.pipeline.sweep.folder import Record, SweepConfig, SweepFolder

from .corpus import LAUGHS
from .networks import DEEP
from .runs import EVIL, STUDENT, Stranger, whole_run
from .spoiling import Change, edited, linked, writing

FACT = {"parameters": 3000, "gmacs": 0.1, "latency_ms": 2.0, "seconds": 0.1, "error": None}


def whole_sweep(folder: Path) -> Path:
    """A sweep over three trials, two of them with a run, made by hand."""
    sweep = SweepFolder(folder)
    sweep.make()
    factors = {"student": (STUDENT,), "epochs": (2,), "objective": ("none", "multiscale"), "seed": (0, 1)}
    config = SweepConfig(cache="cache/none.zarr", factors=factors, signature="0" * 64)
    sweep.create(config)
    for trial, state in zip(config.planned(), ("finished", "finished", "failed"), strict=False):
        error = "it did not fit" if state == "failed" else None
        sweep.write(
            Record(
                number=trial.number,
                name=trial.name,
                settings=trial.settings,
                state=state,
                starts=(0,),
                seconds=1.0,
                error=error,
            )
        )
        if state == "finished":
            whole_run(sweep.run(trial).path)
    sweep.students.write_text(json.dumps({STUDENT: FACT}))
    return folder


def sweeps(outside: Path, executed: Path) -> Iterator[Stranger]:
    """All of them; see `runs.runs`."""
    every = {**_settings(outside, executed), **_students(), **_trials(outside), **_figures(outside)}
    yield from (Stranger("sweep", name, change) for name, change in every.items())
    for number, name in enumerate((f"a{EVIL}".replace("/", "_"), "a\nb", "{{7777*7777}}")):
        yield Stranger("sweep", f"sweep's folder name {number}", lambda sweep: None, name)


def _settings(outside: Path, executed: Path) -> dict[str, Change]:
    texts = {
        "python tag": f"cache: !!python/object/apply:os.mkdir [{executed}]\nfactors: {{seed: [0]}}\n", "laughs": LAUGHS, "deep": "[" * 50_000, "list": "[]\n", "large": "x" * (2 << 20), "nothing": "",
        "span": "cache: x\nfactors: {seed: {low: .nan, high: .inf}}\n", "span text": "cache: x\nfactors: {seed: 0..99999999999999999999}\n",
    }  # fmt: skip
    many = list(range(1000))
    held: dict[str, dict[str, Any]] = {
        "cache absolute": {"cache": str(outside.with_name("named") / "store.zarr")}, "cache remote": {"cache": "s3://injected/store.zarr"}, "cache text": {"cache": EVIL}, "factor's name": {"factors": {EVIL: [1, 2]}}, "values": {"factors": {"student": [EVIL, "a"], "seed": [EVIL]}},
        "nested values": {"factors": {"objective": [["none"], {"a": 1}], "seed": [0]}}, "null values": {"factors": {"objective": [None, "none"]}}, "many trials": {"factors": {"seed": many, "epochs": many, "views": many}}, "no factors": {"factors": {}},
        "objective": {"factors": {"objective": [EVIL, "none"], "seed": [0]}}, "number names": {"factors": {1: [2, 3]}}, "signature": {"signature": EVIL}, "device": {"device": EVIL}, "trials": {"sampler": "random", "trials": 10**9}, "nan values": {"factors": {"learning_rate": [float("nan"), 1e400]}},
        "stage folder": {"stage_dir": str(outside)}, "path names": {"factors": {"student": ["../../../outside", "/etc/passwd"]}}, "dates": {"factors": {"seed": ["2001-01-01"]}}, "digits": {"factors": {"seed": [10**400, 1]}},
    }  # fmt: skip
    found: dict[str, Change] = {f"sweep.yaml {name}": writing("sweep.yaml", text.encode()) for name, text in texts.items()}

    def setting(values: dict[str, Any]) -> Change:
        def change(sweep: Path) -> None:
            path = sweep / "sweep.yaml"
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

        return change

    return found | {f"sweep.yaml {name}": setting(values) for name, values in held.items()}


def _students() -> dict[str, Change]:
    changes: dict[str, Change] = {
        f"students.json {name}": writing("students.json", raw)
        for name, raw in {"list": b"[]", "deep": DEEP, "empty": b"", "text": b"hello", "not UTF-8": b"\xff", "null": b"null", "large": b'["' + b"x" * (40 << 20) + b'"]'}.items()
    }  # fmt: skip
    for name, held in {"texts": dict.fromkeys(FACT, EVIL), "nan": {"latency_ms": float("nan")}, "infinite": {"gmacs": float("inf")}, "zero": {"latency_ms": 0}, "negative": {"latency_ms": -1.0, "parameters": -3},
                       "huge": {"latency_ms": 1e308, "parameters": 10**400}, "error": {"error": EVIL}, "lists": {key: [1] for key in FACT}, "no facts": {"parameters": None, "latency_ms": None}}.items():  # fmt: skip
        changes[f"students.json {name}"] = edited("students.json", {STUDENT: FACT | held})
    changes["students.json student a list"] = edited("students.json", {STUDENT: [EVIL]})
    return changes


def _trials(outside: Path) -> dict[str, Change]:
    trial = "trials/0.json"
    changes: dict[str, Change] = {
        f"trial {name}": writing(trial, raw)
        for name, raw in {"empty": b"", "deep": DEEP, "list": b"[]", "not UTF-8": b"\xff", "large": b'["' + b"x" * (40 << 20) + b'"]'}.items()
    }  # fmt: skip
    for name, held in {
        "name upwards": {"name": "../../outside"}, "name absolute": {"name": str(outside)}, "name text": {"name": EVIL}, "name empty": {"name": ""}, "name dots": {"name": ".."}, "name long": {"name": "x" * 5000}, "name zero": {"name": "\0"},
        "same as itself": {"same_as": 0}, "same as none": {"same_as": 77}, "same as running": {"same_as": 2}, "state": {"state": EVIL}, "error": {"state": "failed", "error": f"{EVIL}\nTraceback\n{EVIL}"}, "number": {"number": 5}, "number negative": {"number": -1},
        "seconds nan": {"seconds": float("nan")}, "seconds text": {"seconds": EVIL}, "seconds huge": {"seconds": 1e308}, "settings list": {"settings": []}, "settings nested": {"settings": {"objective": [EVIL], "epochs": {"a": 1}, "student": [1], "seed": {}}},
        "settings texts": {"settings": {"objective": EVIL, "epochs": EVIL, "student": EVIL, "seed": EVIL}}, "settings strange": {"settings": {EVIL: EVIL}}, "settings huge": {"settings": {"seed": 10**400, "epochs": 10**400, "learning_rate": 1e308}},
        "settings nan": {"settings": {"learning_rate": float("nan"), "seed": float("inf"), "objective": "none"}}, "host": {"host": EVIL}, "teachers": {"settings": {"objective": "multiscale", "teachers": [EVIL]}}, "settings null": {"settings": dict.fromkeys(("objective", "student", "epochs", "seed"))},
    }.items():  # fmt: skip
        changes[f"trial {name}"] = edited(trial, held)
    changes["trial's file name"] = lambda sweep: shutil.copy(sweep / trial, sweep / f"trials/{'9' * 200}.json")
    changes["trial's file name in other digits"] = lambda sweep: shutil.copy(sweep / trial, sweep / "trials/\u0661.json")
    changes["trial a folder"] = lambda sweep: (sweep / "trials/7.json").mkdir()
    changes["trial a pipe"] = lambda sweep: os.mkfifo(sweep / "trials/7.json")
    return changes


def _figures(outside: Path) -> dict[str, Change]:
    run, changes = "runs/*", dict[str, Change]()
    for name, raw in {"nan": b'{"epoch": 1, "val_dice": NaN, "seconds": 1}\n', "text": json.dumps({"epoch": EVIL, "val_dice": EVIL, "seconds": EVIL}).encode() + b"\n", "missing": b"{}\n", "list": b"[1]\n", "deep": DEEP + b"\n",
                      "huge": b'{"epoch": 1, "val_dice": 1e308, "seconds": 1e308}\n{"epoch": 2, "val_dice": -1e308, "seconds": 1e308}\n', "null": b'{"epoch": null, "val_dice": null, "seconds": null}\n'}.items():  # fmt: skip
        changes[f"trial's figures {name}"] = writing(f"{run}/metrics.jsonl", raw)

    def all_linked(name: str, target: Path | str) -> Change:
        return lambda sweep: [linked(name, str(target))(folder) for folder in (sweep / "runs").iterdir()]

    changes["trial's figures elsewhere"] = all_linked("metrics.jsonl", outside / "secret.txt")
    changes["trial's figures a device"] = all_linked("metrics.jsonl", "/dev/zero")
    for name, target in (
        ("runs", str(outside)),
        ("trials", str(outside)),
        ("sweep.yaml", str(outside / "secret.txt")),
        ("students.json", str(outside / "secret.txt")),
        ("study.journal", "/etc/passwd"),
        ("trials/0.json", str(outside / "secret.txt")),
        (".claims", str(outside)),
        ("report.html", str(outside / "secret.txt")),
        ("results.csv", str(outside / "secret.txt")),
    ):
        changes[f"{name} elsewhere"] = linked(name, target)
    return changes
