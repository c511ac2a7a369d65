"""A process that takes one free trial after another until the sweep is over."""

from __future__ import annotations

import signal
from multiprocessing import connection
from pathlib import Path

import torch
from torch import Tensor

from polyp_difom.cache.claims import joined
from polyp_difom.cache.errors import PolypDifomError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.device import pick_device
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.sweep.folder import SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.processes import end_with_parent
from polyp_difom.pipeline.sweep.results import write_results
from polyp_difom.pipeline.sweep.source import source_of, take
from polyp_difom.pipeline.sweep.trial import run_trial

Arrays = dict[tuple[str, str], Tensor]
"""By (split, key of the array): what `Shelf` holds."""


def work(folder: SweepFolder, config: SweepConfig, arrays: Arrays | None = None) -> None:
    """Runs trials until none is left; a dead process's trial is taken over at its last epoch.

    Args:
        arrays: of the store, shared with other processes; None to read what is needed.

    Raises:
        CacheError, RunError, OSError: what would stop every other trial too; trials that ended are kept.
    """
    config = config.here()
    shelf = Shelf(FeatureStore.open(config.cache), pick_device(config.device), Progress(), arrays)
    with joined(folder.path) as claims:
        source = source_of(folder, config)
        while trial := take(source, folder, claims):
            record = run_trial(folder, config, trial, shelf, source.watch(trial))
            folder.write(record)
            source.ended(record)
            claims.release(trial.number)
            with claims.alone():
                write_results(folder)


def main(path: Path, config: SweepConfig, arrays: Arrays | None, report: connection.Connection) -> None:
    """Entry point of a worker process; sends the error that ended it, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the command's handler, which raises
    end_with_parent()
    torch.set_num_threads(config.threads or 1)
    try:
        work(SweepFolder(path), config, arrays)
    except (PolypDifomError, OSError) as error:
        report.send(error)
    else:
        report.send(None)
