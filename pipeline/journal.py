"""What a training leaves to look at, made from its metrics.jsonl: the curves as a picture, and events for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from polyp_difom.cache.errors import MissingDependencyError, RunError
from polyp_difom.pipeline.files import write_text
from polyp_difom.pipeline.report.learning import curves_picture
from polyp_difom.pipeline.runs import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def draw_curves(run: RunFolder) -> None:
    """`plots/curves.svg` of all epochs in metrics.jsonl: losses, validation Dice, agreement with each teacher and band.

    Raises:
        RunError: the disk refuses, or the figures are damaged.
    """
    with _told(run.curves.parent):
        run.curves.parent.mkdir(exist_ok=True)
    write_text(run.curves, curves_picture(run.path.resolve().name, run.history()))


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError("the folder cannot be made or written", where=folder, got=error.strerror or error) from error


class TensorBoard:
    """Follows a training (as its `Watch`) and keeps all its figures as event files in the run's `tensorboard/`.

    The events are made anew from metrics.jsonl after the first epoch that is watched: a run that was killed and resumed
    has no epoch twice, and none lacks because it was trained unwatched. Use it as a context.

    Raises:
        MissingDependencyError: the package is not installed. RunError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "TensorBoard is not installed", where="--tensorboard", remedy="pip install 'polyp-difom[tensorboard]'"
            ) from error
        self._open = SummaryWriter
        self._run, self._written = RunFolder(folder), 0
        self._writer: SummaryWriter | None = None

    def __call__(self, epoch: int, dice: float) -> None:
        self._catch_up()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._catch_up()
        if self._writer:
            self._writer.close()

    def _catch_up(self) -> None:
        if self._writer is None:
            with _told(self._run.events):
                for old in self._run.events.glob("events.out.tfevents.*"):
                    old.unlink()
                self._writer = self._open(str(self._run.events))
        records = self._run.history()
        for record in records[self._written :]:
            for name in record.keys() - {"epoch"}:
                self._writer.add_scalar(name, record[name], record["epoch"])
        self._written = len(records)
        self._writer.flush()
