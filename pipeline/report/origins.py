"""Where an evaluated target's figures come from, in words; what nobody recorded is said to be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.data.predicted import PREDICTED
from polyp_difom.pipeline.json_files import read_json
from polyp_difom.pipeline.runs import RunFolder

UNKNOWN = "unknown"
_SUSPICION = {
    "not expected": "polyp frames in its own training are not expected",
    "likely": "its own training probably held polyp frames",
    "unknown": "whether its own training held polyp frames is unknown",
}
"""In words, what a teacher's passport says about polyp frames in its training data."""
KINDS = {
    "run": "run folder, best checkpoint",
    "checkpoint": "checkpoint file",
    "hub-folder": "hub folder",
    "onnx": "ONNX file",
    "torchscript": "TorchScript file",
    "openvino": "OpenVINO file",
    "masks": "folder of masks or probability maps, made by an unknown tool",
}


def facts(run: Path | None, about: Mapping[str, Any]) -> dict[str, str]:
    """Origins of the figures of an evaluation, by name.

    Args:
        run: folder of the run that was evaluated, where the figures lie in it; what lies elsewhere is not looked at.
        about: what the evaluation says of its target.

    Raises:
        RunError: the run's record of its environment cannot be read.
    """
    header = about["header"]
    known = {
        "what was evaluated": f"{KINDS[about['kind']]}: {about['path']}",
        "weights, sha256": about["sha256"] or ("none: maps only" if about["kind"] == "masks" else UNKNOWN),
        "student": header.get("student", UNKNOWN),
        "objective": header.get("objective", UNKNOWN),
        **({"chosen by": header["auto"]} if header.get("auto") else {}),
        "teachers": "; ".join(_teachers(header)) or UNKNOWN,
        "trained on": _datasets(header),
        "split": _split(header),
        "seed": str(header.get("seed", UNKNOWN)),
        "chosen checkpoint": _checkpoint(header),
        "precision in training": header.get("precision", UNKNOWN),
        "frame side": f"{header['frame_size']} pixels" if "frame_size" in header else UNKNOWN,
        "store signature": header.get("signature", UNKNOWN),
    }
    machine = _machine(run) if run else {}
    return known | {name: machine.get(name, UNKNOWN) for name in ("store", "program's git state", "packages", "hardware")}


def cautions(header: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning for every teacher that may have seen polyp frames, which the test frames may be among."""
    entries = header.get("provenance", {}).get("teachers", [])
    return tuple(
        f"{entry['name']}: {_suspicion(entry)}, so frames of the test sets may be among them."
        for entry in entries
        if "not expected" not in entry["contamination"]
    )


def _suspicion(entry: Mapping[str, str]) -> str:
    return _SUSPICION.get(entry["contamination"], f"polyp frames in its own training: {entry['contamination']}")


def _teachers(header: Mapping[str, Any]) -> list[str]:
    if header.get("teachers") == []:
        return ["none"]
    entries = {entry["name"]: entry for entry in header.get("provenance", {}).get("teachers", [])}
    told = []
    for name in header.get("teachers") or []:
        if name not in entries:
            told.append(f"{name} (licence and training data unknown)")
            continue
        entry = entries[name]
        weights = entry.get("weights_digest", UNKNOWN)[:16]
        told.append(f"{name} (licence {entry['licence']}; {_suspicion(entry)}; weights {weights})")
    return told


def _datasets(header: Mapping[str, Any]) -> str:
    entries = header.get("provenance", {}).get("datasets", [])
    masks = {PREDICTED: ", masks predicted"}
    told = (f"{e['name']} ({e.get('frames', UNKNOWN)} frames{masks.get(e.get('layout'), '')})" for e in entries)
    return ", ".join(told) or UNKNOWN


def _split(header: Mapping[str, Any]) -> str:
    split = header.get("split")
    return f"{split['policy']}, seed {split['seed']}, {split['val_fraction']:.0%} of train for validation" if split else UNKNOWN


def _checkpoint(header: Mapping[str, Any]) -> str:
    if "val_dice" not in header:
        return UNKNOWN
    return f"epoch {header['epoch']} of {header.get('epochs', UNKNOWN)}, validation Dice {header['val_dice']:.4f}"


def _machine(folder: Path) -> dict[str, str]:
    """Of a run's training.

    Raises:
        RunError: the run's record of its environment cannot be read.
    """
    run, path = RunFolder(folder), folder / "env.json"
    try:
        environment = read_json(path)
        packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
        hardware = ", ".join(environment["gpus"]) or f"{environment['cpus']} CPU cores"
        return {
            "store": str(run.config()["cache"]),
            "program's git state": environment.get("git") or UNKNOWN,
            "packages": f"Python {environment['python']}, {packages}",
            "hardware": f"{hardware}; {environment['platform']}",
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError("the run's record of its environment cannot be read", where=path, got=repr(error)) from error
