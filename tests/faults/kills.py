"""Commands, killed at any change they make to a file, or refused it by the disk, and typed again as their messages say:
is the result that of an uninterrupted run, byte for byte?

Every attempt is a forked child that runs the command line in-process; `Bench.paths`, what an uninterrupted one changes, are the moments.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from polyp_difom.cli.main import app
from polyp_difom.pipeline import runs, schema
from polyp_difom.pipeline.sweep import run as sweeping
from polyp_difom.pipeline.sweep.worker import work

from .commands import Files, commands, compare, snapshot, torn_files
from .frames import write_frames
from .fuse import Fuse, Strike

SECONDS = 240.0
"""After so long a command hangs."""
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
TRIES = 4
"""Commands that messages may lead through before the result is there."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        kind: "kill", "full disk", ...; moment: where it struck.
        detected: the command ended as it must, and said so where it could.
        recovered: what the messages say leads to the result of an uninterrupted run, with nothing left lying about.
        lost: it does not, or what was finished was computed again.
        corrupt: something under its final name was not whole. silent: the result differs and no message said so.
        note: what was wrong. told: by what damage to a store was told.
    """

    kind: str
    command: str
    moment: str
    signal: str
    detected: bool
    recovered: bool
    lost: bool = False
    corrupt: bool = False
    silent: bool = False
    note: str = ""
    told: str = ""

    @property
    def is_good(self) -> bool:
        """Told, and put right."""
        return self.detected and self.recovered and not (self.lost or self.corrupt or self.silent)


class Bench:
    """Frames (drawn, or of real data sets), a teacher, a store, a run, and the commands that use them."""

    def __init__(self, folder: Path, data: Sequence[Path] = ()):
        from transformers import Dinov2Config, Dinov2Model

        runs._git_state = lambda: None  # type: ignore[assignment]
        schema.MOST_SAMPLES_PER_SHARD = 4
        self.folder = folder
        torch.manual_seed(0)
        shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56, "patch_size": 14}
        Dinov2Model(Dinov2Config(hidden_size=16, **shape)).save_pretrained(folder / "weights")
        write_frames(folder / "frames", 14, 64, data=data)
        write_frames(folder / "pictures", 3, 64, seed=1, data=data)
        self.commands = {command.name: command for command in commands(folder)}
        for name in ("extract", "distill"):  # in this process, which so imports what children need
            code = _in_process(self.commands[name].words(folder / "base"))
            assert code == 0, f"{name} ended with {code}"
        self.paths: dict[str, list[str]] = {}
        self.sound: dict[str, Files] = {}
        for name, command in self.commands.items():
            place = folder / f"sound-{name}"
            place.mkdir()
            command.begin(place)
            ended = attempt(command.words(place), place, Strike())
            assert ended.code == 0, ended.text
            self.sound[name], self.paths[name] = snapshot(place, command), ended.paths

    @property
    def events(self) -> dict[str, int]:
        """How many moments each command has."""
        return {name: len(paths) for name, paths in self.paths.items()}

    def new_place(self, name: str) -> Path:
        """A folder for one fault, with nothing in it but what the command works on."""
        place = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{name}-".replace(" ", "-")))
        self.commands[name].begin(place)
        return place

    def follow(
        self, name: str, kind: str, strike: Strike, seconds: float | None = None, between: Callable[[Path], None] | None = None
    ) -> Outcome:
        """One fault, and what the messages say afterwards.

        Args:
            seconds: the command is killed after them, wherever it is.
            between: what else happens before the command is typed again.
        """
        place = self.new_place(name)
        command, signed = self.commands[name], signal.SIGKILL if seconds else strike.signal
        ended = attempt(command.words(place), place, strike, seconds)
        complete = ended.code == 0 and snapshot(place, command) == self.sound[name]
        notes = []
        if not (complete or is_right_end(ended, signed)):
            notes.append(f"ended with {ended.code}: {ended.text[-600:]}")
        unfinished = compare(snapshot(place, command), self.sound[name])
        if (
            unfinished
            and signed is not signal.SIGKILL
            and strike.error != errno.EROFS
            and (left := sorted(path.name for path in place.joinpath("tmp").iterdir()))
        ):
            notes.append(f"left in the temporary folder: {left}")
        torn = torn_files(place, command, self.sound[name])
        if between is not None:
            between(place)
        final = self.restart(name, place)
        differing = final.differing
        if not complete and final.again_wrong:
            notes.append(final.again_wrong)
        notes += [f"torn: {torn}"] if torn else []
        notes += [f"differs: {differing[:6]}"] if differing else []
        notes += [] if final.code == 0 else [f"not put right, code {final.code}: {final.text[-600:]}"]
        detected = bool(complete or is_right_end(ended, signed))
        recovered = final.code == 0 and not differing and not final.again_wrong
        outcome = Outcome(
            kind, name, f"after {seconds:.2f} s" if seconds else f"{strike.moment} event {strike.at}", signed.name if signed else "",
            detected=detected, recovered=recovered, lost=not recovered, corrupt=bool(torn),
            silent=final.code == 0 and bool(differing), note="; ".join(notes),
        )  # fmt: skip
        if not outcome.note:
            shutil.rmtree(place)
        return outcome

    def restart(self, name: str, place: Path) -> Final:
        """Types the command again, as its messages say, until it is done."""
        command = self.commands[name]
        kept, words, flags = command.kept(place), command.words(place), command.again
        for _ in range(TRIES):
            ended = attempt([*words, *flags], place, Strike())
            if ended.code == 0 or "finished already" in ended.text:
                break
            flags = advised(ended.text)
        done = ended.code == 0 or "finished already" in ended.text
        after = command.kept(place)
        again = [key for key, value in kept.items() if after.get(key) != value]
        differing = compare(snapshot(place, command), self.sound[name]) if done else []
        return Final(0 if done else ended.code, ended.text, differing, f"computed again: {again}" if again else "")


@dataclass(frozen=True)
class Final:
    """How a restart ended."""

    code: int
    text: str
    differing: list[str]
    again_wrong: str


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative for a signal), what it printed, the path of each event where it came so far."""

    code: int
    text: str
    paths: list[str]


def advised(text: str) -> tuple[str, ...]:
    """Flags that a refusal tells its user to add."""
    if "leave --resume away" in text or "no sweep here" in text:
        return ()
    return next(((flag,) for flag in ("--overwrite", "--resume") if flag in text), ())


def attempt(words: list[str], place: Path, strike: Strike, seconds: float | None = None) -> Ended:
    """Runs a command in a forked child; killed after `seconds`, where given."""
    return wait(begin(words, place, strike), place, seconds)


def begin(words: list[str], place: Path, strike: Strike, copy: int = 0) -> int:
    """The number of a forked child that runs a command, the `copy`-th at work in that place."""
    place.joinpath("tmp").mkdir(parents=True, exist_ok=True)
    log = _log(place, copy)
    log.touch()  # it may be killed before it can
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tempfile.tempdir = str(place / "tmp")
        if strike.once is None:  # no worker processes
            vars(sweeping.LOCAL)["run"] = lambda folder, config, arrays, *_: work(folder, config, arrays)
        fuse = Fuse(place, strike)
        fuse.arm()
        code = _in_process(words)
        os.write(2, f"\nevents {json.dumps(fuse.paths)}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def _log(place: Path, copy: int) -> Path:
    return place.with_name(f"{place.name}.{copy}.log")


def wait(child: int, place: Path, seconds: float | None = None, copy: int = 0) -> Ended:
    """For a child's end; it is killed after `seconds`, where given, and taken to hang after `SECONDS`."""
    until = time.monotonic() + (seconds or SECONDS)
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            found = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    text = _log(place, copy).read_text(errors="replace")
    text, _, paths = text.partition("\nevents ")
    return Ended(os.waitstatus_to_exitcode(found[1]), text, json.loads(paths) if paths else [])


def _in_process(words: list[str]) -> int:
    try:
        app(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def is_right_end(ended: Ended, signed: signal.Signals | None) -> bool:
    """By its signal, or with the code and the message of one who was interrupted; for a disk fault, with an error's message."""
    if "Traceback" in ended.text:
        return False
    if signed is signal.SIGKILL:
        return ended.code == -9
    if signed is not None:
        return ended.code == CODES[signed] and "interrupted" in ended.text
    return ended.code in (1, 4) and "error: " in ended.text
