"""Stage two: a light student learns masks and the cached teachers' maps; no teacher is loaded, no image folder is read.

Every random draw is a function of (seed, epoch), so a run that was stopped and resumed ends at the same weights. Several
processes that torchrun started share each batch, and end at those weights within rounding (see distributed.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.auto import AUTO, choose
from polyp_difom.pipeline.device import enough_memory
from polyp_difom.pipeline.distributed import leads, world
from polyp_difom.pipeline.divergence import with_a_way_out
from polyp_difom.pipeline.files import alone_in
from polyp_difom.pipeline.introducing import introduce
from polyp_difom.pipeline.progress import Logged, Progress
from polyp_difom.pipeline.recipe import DistillConfig
from polyp_difom.pipeline.resuming import as_begun, load, require_resumable, save
from polyp_difom.pipeline.runs import PILOTS, RunFolder
from polyp_difom.pipeline.schema import seen_before
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.subset import open_store
from polyp_difom.pipeline.trainer import Trainer, Watch


def distill(
    config: DistillConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    shelf: Shelf | None = None,
    watch: Watch | None = None,
) -> RunFolder:
    """Train one student and return its run folder.

    Args:
        shelf: arrays of this store that are in memory already, for several trainings over one store.

    Raises:
        CacheError: a store that is missing, incomplete or damaged.
        UsageError: an unknown student, objective or teacher. RunError: the run folder cannot be used.
    """
    progress = progress if progress and leads() else Progress()
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", remedy="give one of them")
    if config.objective == AUTO:
        config, going = choose(config, out, progress, distill, resume=resume, overwrite=overwrite, shelf=shelf)
        resume, overwrite = going, resume and not going  # a kill may have come while the run was being made
    if resume:
        require_resumable(RunFolder(out))
        config = as_begun(config, RunFolder(out).config())
    elif leads():
        RunFolder(out).refuse_to_lose(overwrite, _beside(config))
    store = open_store(config)
    trainer = Trainer(config, store, progress, resume=resume, shelf=shelf)
    with alone_in(out) if leads() else nullcontext():
        run = _open_run(trainer, out, resume=resume, overwrite=overwrite)
        if leads():
            trainer.progress = Logged(progress, run.path / "train.log")
        introduce(trainer)
        with enough_memory(trainer.device, config.batch_size // world()), with_a_way_out(trainer, run):
            trainer.fit(run, watch)
    return run


def _open_run(trainer: Trainer, out: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    run = RunFolder(out)
    if resume:
        load(trainer, run)
    elif leads():
        run = RunFolder.create(out, overwrite=overwrite, beside=_beside(trainer.config))
        settings = trainer.resolved | {"compile": trainer.config.compile}
        run.describe(settings, trainer.store.samples, seen_before(trainer.store, trainer.teachers))
        save(trainer, run)
    return run


def _beside(config: DistillConfig) -> str:
    """What may lie in the folder before the run does."""
    return PILOTS if config.auto else ""
