"""Every command that reads a stranger's run or sweep, on every hostile one, watched; one forked child a folder.

`python -m tests.hostile.visit FOLDER [SHARE]` prints one JSON object for each command on each folder.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from polyp_difom.cli.main import app

from .corpus import gradient
from .limits import patience
from .networks import checkpoint
from .runs import Stranger, frames, runs, whole_run
from .sweeps import sweeps, whole_sweep
from .watch import Watch, dangers_of

ADDRESSES = 12 << 30
SECRET = "canary-7f3a"  # noqa: S105  (stands in a file that nobody may read)


FIGURES = (
    "metrics.jsonl",
    "scores",
    "summary",
    "env.json",
    "bench.json",
    "target.json",
    "frames.csv",
    "set's file",
    "protocol's",
)
"""What only pages are made of."""


class Grounds:
    """Whole folders to spoil, frames, and what lies outside."""

    def __init__(self, root: Path):
        self.root, self.data, self.outside, self.executed = root, root / "data/synthetic", root / "outside", root / "executed"
        frames(self.data)
        self.outside.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        (self.outside / "secret.csv").write_text(f"id,split\n{SECRET},train\n")
        self.named = root / "named"
        (self.named / "store.zarr").mkdir(parents=True)
        (self.named / "store.zarr/zarr.json").write_text(json.dumps({"attributes": SECRET}))
        (self.named / "secret.safetensors").write_bytes(checkpoint())
        Image.fromarray(gradient(32, 32)).save(self.named / "secret.png")
        (root / "whole").mkdir()
        self.run = whole_run(root / "whole/run")
        code, text = typed(
            ["evaluate", self.run, "--data", self.data, "--split", "all", "--measures", "overlap", "--overlays", "0", "-q"]
        )
        assert code == 0, text
        self.sweep = whole_sweep(root / "whole/sweep")

    def cases(self) -> list[Stranger]:
        """All strangers."""
        return [*runs(self.outside, self.executed), *sweeps(self.outside, self.executed)]

    def place(self, case: Stranger, home: Path) -> Path:
        """A spoiled copy below `home`."""
        folder = home / case.folder
        shutil.copytree(self.sweep if case.kind == "sweep" else self.run, folder)
        case.change(folder)
        return folder

    def commands(self, case: Stranger, folder: Path, out: Path) -> Iterator[list[Any]]:
        """What a user may type."""
        inside = f"./{folder.name}"  # the folder's own name may begin with a dash
        if case.kind == "sweep":
            yield ["sweep", "show", inside]
            yield ["sweep", "report", inside, "-o", out / "page.html"]
            return
        device = ["--device", "cpu"]
        yield ["report", inside, "-o", out / "page.html"]
        if case.name.startswith(FIGURES):
            return
        yield ["predict", inside, self.data / "images", "-o", out / "predicted", "--save", "mask,overlay", *device]
        yield ["export", inside, "--to", "hub-folder", "-o", out / "hub"]
        yield [
            "evaluate",
            inside,
            "--data",
            self.data,
            "--split",
            "all",
            "--measures",
            "overlap",
            "-o",
            out / "figures",
            *device,
        ]
        yield ["report", out / "figures", "-o", out / "second.html"]


def typed(words: list[Any]) -> tuple[int, str]:
    """(exit code, output) of a command line run in this process; 99 where anything but an error for users came through."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            app([str(word) for word in words])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            said.write(traceback.format_exc(limit=-4))
            code = 99
    return code, said.getvalue()


def visit(grounds: Grounds, case: Stranger, watch: Watch, home: Path) -> Iterator[dict[str, Any]]:
    """What became of each command, and what was wrong with it."""
    folder, out = grounds.place(case, home), home / "out"
    (out / "tmp").mkdir(parents=True)
    tempfile.tempdir = str(out / "tmp")
    os.chdir(home)
    for words in grounds.commands(case, folder, out):
        if words[0] == "report" and words[1] == out / "figures" and not words[1].exists():
            continue
        with watch.over((folder, grounds.data, grounds.named), out) as done, patience():
            code, said = typed(words)
        wrong = [*done]
        if code not in range(6):
            wrong.append(f"ended with {code}")
        if code and "error: " not in said and "Usage:" not in said:
            wrong.append("no message")
        if any(not (character.isprintable() or character == "\n") for character in said):
            wrong.append("control characters in the output")
        for page in (out / "page.html", out / "second.html"):
            if words[-1] == page and page.exists():
                text = page.read_text(encoding="utf-8", errors="replace")
                wrong += dangers_of(text) + (["a secret on the page"] if SECRET in text else [])
        if grounds.executed.exists():
            wrong.append("code was run")
        yield {"kind": case.kind, "name": case.name, "command": " ".join(map(str, words[:2 if words[0] == "sweep" else 1])), "code": code, "wrong": wrong, "said": said[-1500:]}  # fmt: skip


def main(root: Path, share: float = 1.0, seed: int = 0) -> None:
    """All cases, or a seeded share of them."""
    torch.set_num_threads(1)
    grounds, watch = Grounds(root), Watch(root)
    every = grounds.cases()
    chosen = np.random.default_rng(seed).permutation(len(every))[: max(1, round(share * len(every)))]
    warm = root / "warm"
    for case in (Stranger("run", "whole", lambda folder: None), Stranger("sweep", "whole", lambda folder: None)):
        for line in visit(grounds, case, watch, warm / case.kind):  # imports what children need
            assert (line["code"], line["wrong"]) == (0, []), line
            print(json.dumps(line), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    for number in sorted(chosen.tolist()):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _child(grounds, every[number], watch, root / f"case-{number}")
        _, status = os.waitpid(child, 0)
        if status:
            case = every[number]
            print(json.dumps({"kind": case.kind, "name": case.name, "command": "all", "code": os.waitstatus_to_exitcode(status), "wrong": ["the process ended"], "said": ""}), flush=True)  # fmt: skip
        shutil.rmtree(root / f"case-{number}", ignore_errors=True)


def _child(grounds: Grounds, case: Stranger, watch: Watch, home: Path) -> None:
    code = 1
    try:
        for line in visit(grounds, case, watch, home):
            print(json.dumps(line), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float((sys.argv[2:] or ["1"])[0]), int((sys.argv[3:] or ["0"])[0]))
