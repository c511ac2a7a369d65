"""Students that were trained here, as teachers: `run:FOLDER` gives a run's maps, `run:FOLDER@mask` its lesion probability,
`run:A+B@mask` the mean probability of several runs.

Shapes: b batch, s frame side, c channels, h w grid.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import RunError, UsageError
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.students.protocol import Student
from polyp_difom.pipeline.teachers.protocol import SEVERAL, TEACHERS, Request, Teacher, TeacherSpec

SEVERAL.add("run")
ROLES = ("encoder", "bottleneck", "decoder")
"""Of the taps that are a run's maps; of one stride, the later ones serve the coarser scales."""
FORMS = "run:FOLDER (its maps), run:FOLDER@mask (its lesion probability), or run:A+B@mask (the mean of several runs)"


class RunTeacher(Teacher):
    """Base of both forms; runs in float32, as it is evaluated: bfloat16 moves the maps of student `light` by 7 to 17 %.

    Args:
        size: side of the frames that the runs were trained on.
        frames: as `Teacher.frames`.
    """

    exact = True

    def __init__(self, spec: TeacherSpec, encoder: nn.Module, size: int, frames: list[dict[str, str]]):
        super().__init__(spec, encoder)
        self.frame_size, self.frames = size, frames


class RunMaps(RunTeacher):
    """A trained student's maps.

    Args:
        taps: names of the taps, in the order of the passport.
    """

    encoder: Student

    def __init__(self, spec: TeacherSpec, student: Student, size: int, frames: list[dict[str, str]], taps: tuple[str, ...]):
        super().__init__(spec, student, size, frames)
        self._taps = taps

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Frames [b, 3, s, s] in 0..1, which the student normalises itself -> a map [b, c, h, w] for each tap."""
        maps = self.encoder.features(inputs)[1]
        return tuple(maps[name] for name in self._taps)


class RunMask(RunTeacher):
    """The mean lesion probability of trained students."""

    encoder: nn.ModuleList

    def embed(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Frames [b, 3, s, s] in 0..1 -> one map [b, 1, s, s]."""
        return (torch.stack([student(inputs).sigmoid() for student in self.encoder]).mean(0),)


@TEACHERS.register("run")
def load_run(request: Request) -> Teacher:
    """The best checkpoints of one or several finished runs.

    Raises:
        UsageError: a name of another form, or runs that learned on frames of different sizes.
        RunError: no run, an unfinished one, or a damaged one.
    """
    from polyp_difom.pipeline.models.network import load_run as load_network

    is_mask, folders = _parsed(request)
    for folder in folders:
        _require_finished(folder)
    models = [load_network(folder, "cpu", "float32") for folder in folders]
    sizes = {str(model.info.path): model.info.frame_size for model in models}
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise UsageError(
            f"the runs of teacher {request.name!r} learned on frames of different sizes", got=got, wanted="one size",
            remedy=f"take runs of one size, or put each into a store of its own: extract --size {min(sizes.values())}",
        )  # fmt: skip
    request.say(f"{request.name} runs in float32 always, as it is evaluated")
    size = request.fixed_side(models[0].info.frame_size)
    frames = _frames(folders)
    licence = "; ".join(dict.fromkeys(_licence(model.info.header) for model in models))
    past = "; ".join(dict.fromkeys(_past(RunFolder(m.info.path), m.info.header) for m in models))
    if is_mask:
        spec = TeacherSpec(request.name, size, "unit", (1,), (1,), licence, past, kind="mask")
        return RunMask(spec, nn.ModuleList(model.student for model in models), size, frames)
    student = models[0].student
    taps = sorted(
        (tap for tap in student.taps if tap.role in ROLES and tap.name not in student.sides),
        key=lambda tap: (tap.stride, ROLES.index(tap.role)),
    )
    strides, channels = tuple(tap.stride for tap in taps), tuple(tap.channels for tap in taps)
    spec = TeacherSpec(request.name, size, "unit", strides, channels, licence, past)
    return RunMaps(spec, student, size, frames, tuple(tap.name for tap in taps))


def _parsed(request: Request) -> tuple[bool, list[Path]]:
    """Whether masks are wanted, and the run folders."""
    _, at, output = (request.variant or "").partition("@")
    if at and output != "mask":
        raise UsageError(f"unknown output of teacher {request.name!r}", got=f"@{output}", wanted=FORMS,
                         remedy="a folder whose name holds an @: --teachers run:NAME --weights run:NAME=FOLDER")  # fmt: skip
    if request.weights is None:
        wanted = f"{FORMS}, each folder with a slash, such as runs/large or ./large"
        raise UsageError("run needs the folder of a run", got=request.name, wanted=wanted,
                         remedy=f"name the folder, or give --weights {request.name}=FOLDER")  # fmt: skip
    folders = _folders(request.weights)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(f"a run is named twice in teacher {request.name!r}", got=request.weights, remedy="name it once")
    if len(folders) > 1 and not at:
        each = ",".join(f"run:{folder}" for folder in folders)
        raise UsageError("the maps of several runs have no mean", got=request.name, wanted=FORMS,
                         remedy=f"give --teachers {each}, or --teachers run:{request.weights}@mask")  # fmt: skip
    return bool(at), folders


def _folders(text: str) -> list[Path]:
    """ "a+b" as two folders; a plus inside a folder's name is found by looking."""
    parts, found = text.split("+"), list[Path]()
    while parts:
        tried = range(len(parts), 0, -1)
        end = next((n for n in tried if Path("+".join(parts[:n])).expanduser().is_dir()), 1)
        found.append(Path("+".join(parts[:end])).expanduser())
        del parts[:end]
    return found


def _require_finished(folder: Path) -> None:
    run = RunFolder.open(folder)
    if run.resume_state.is_file():
        raise RunError("the run is not finished", where=folder, wanted="a finished run, whose weights stay as they are",
                       remedy=f"polyp-difom distill --resume -o {folder}")  # fmt: skip


def _frames(folders: list[Path]) -> list[dict[str, str]]:
    """Of several runs, each picture once; learned from counts before selected on."""
    frames: dict[str, dict[str, str]] = {}
    for row in (row for folder in folders for row in RunFolder(folder).samples()):
        if row["pixel_sha256"] not in frames or row["split"] == "train":
            frames[row["pixel_sha256"]] = row
    return list(frames.values())


def _licence(header: dict) -> str:
    from polyp_difom.pipeline.export.describe import licence

    return f"as the training data's: {licence(header)}"


def _past(run: RunFolder, header: dict) -> str:
    """What a run learned from, in words."""
    counts = Counter(run.seen().values())
    frames = " and ".join(f"{number} {split}" for split, number in counts.items())
    told = f"trained on: {', '.join(sorted(run.datasets()))} ({frames} frames)"
    teachers = header.get("provenance", {}).get("teachers", [])
    return told + "".join(f"; taught by {teacher['name']} ({teacher['contamination']})" for teacher in teachers)
