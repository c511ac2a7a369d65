"""`make reproduce FOLDER=...`: the whole flow once, small and with fixed seeds; prints a digest of everything that it made.

Another environment on the same machine, with the same number of threads and a folder of the same name (a checkpoint says where its
store lies), prints the same: compare the two with `diff`. Left out are times, hosts, `env.json` and the state of git.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import torch

from polyp_difom.cli.main import app
from polyp_difom.pipeline import runs

from .faults.commands import Command, snapshot

PLAIN = ("--device", "cpu", "-q")
TRAIN = ("distill", "--cache", "store.zarr", "--student", "unet:4", "--epochs", "2", "--batch-size", "8", "--seed", "7", *PLAIN)
STEPS: tuple[tuple[str, ...], ...] = (
    ("data", "synth", "frames", "--count", "24", "--size", "64", "--seed", "3", "-q"),
    (
        "extract", "-d", "frames", "--teachers", "efficientnet-lite0", "--cache", "store.zarr", "--size", "64", "--views", "2",
        "--channels", "16", *PLAIN,
    ),
    (*TRAIN, "--objective", "none", "-o", "control"),
    (*TRAIN, "--objective", "multiscale", "-o", "taught"),
    ("evaluate", "control", "-d", "frames", "--split", "all", *PLAIN),
    ("evaluate", "taught", "-d", "frames", "--split", "all", *PLAIN),
    ("report", "taught", "control", "-o", "report.html"),
    ("export", "taught", "--to", "onnx", "-o", "taught.onnx", "-q"),
    ("export", "taught", "--to", "hub-folder", "-o", "hub", "-q"),
    ("predict", "taught", "frames/images", "-o", "predicted", "--save", "mask,probability,coco", *PLAIN),
)  # fmt: skip
VARYING = r"ledger/(values|host)/|env\.json$"


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that the flow leaves in a new folder, by name."""
    runs._git_state = lambda: None
    folder.mkdir(parents=True)
    with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        for words in STEPS:
            app(words, standalone_mode=False)
    made = snapshot(folder, Command("all", lambda place: [], (), VARYING))
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in made.items()}


if __name__ == "__main__":
    found = digests(Path(sys.argv[1]).resolve())
    print(json.dumps({"threads": torch.get_num_threads()} | found, indent=1))
