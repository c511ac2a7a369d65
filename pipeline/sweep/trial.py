"""One trial from its record to its run folder: begun, resumed, or found to be over already."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator

from polyp_difom.cache.errors import DISK_FAULTS, CacheError, PolypDifomError
from polyp_difom.cache.lock import name_of_this_process
from polyp_difom.pipeline.distill import distill
from polyp_difom.pipeline.runs import RunFolder
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.sweep.folder import Record, SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.space import Trial
from polyp_difom.pipeline.trainer import Watch

MOST_DEATHS = 3
"""A trial whose process died this often after the same epoch is given up."""


class Pruned(Exception):
    """Raised by a watcher: the trial does badly enough to be ended."""


def run_trial(
    folder: SweepFolder, sweep: SweepConfig, trial: Trial, shelf: Shelf | None = None, watch: Watch | None = None
) -> Record:
    """Trains one student in its own run folder, from its last epoch where there is one, and returns its ended record.

    What is wrong with the trial itself makes it fail; what is wrong with store or disk would stop every other one too.

    Raises:
        CacheError: the store is gone, damaged, or another one now. RunError, OSError: the disk is full or refuses.
    """
    run, before = folder.run(trial), folder.record(trial.number)
    record = _begun(trial, before, len(run.history()))
    if twin := _same_settings(folder.records(), trial):
        return record.model_copy(update={"state": "finished", "same_as": twin.number})
    if record.starts[-MOST_DEATHS - 1 :].count(record.starts[-1]) > MOST_DEATHS:
        died = f"its process died {MOST_DEATHS} times after epoch {record.starts[-1]}"
        return record.model_copy(update={"state": "failed", "error": died})
    if misfit := folder.facts().get(trial.network, {}).get("error"):
        return record.model_copy(update={"state": "failed", "error": misfit})
    folder.write(record)
    began = time.perf_counter()
    state, error = _outcome(run, sweep, trial, shelf, watch)
    seconds = round(time.perf_counter() - began, 3)
    return record.model_copy(update={"state": state, "error": error, "seconds": seconds})


def _begun(trial: Trial, before: Record | None, epochs_done: int) -> Record:
    """The record of a trial that starts, or starts again, in this process."""
    starts = (*(before.starts if before else ()), epochs_done)
    return Record(
        number=trial.number, name=trial.name, settings=trial.settings, state="running", starts=starts,
        host=name_of_this_process(),
    )  # fmt: skip


def _same_settings(records: list[Record], trial: Trial) -> Record | None:
    """A finished trial of the same settings, trained for itself."""
    alike: Iterator[Record] = (
        r for r in records if r.settings == trial.settings and r.state == "finished" and r.same_as is None
    )
    return next((record for record in alike if record.number != trial.number), None)


def _outcome(
    run: RunFolder, sweep: SweepConfig, trial: Trial, shelf: Shelf | None, watch: Watch | None
) -> tuple[str, str | None]:
    """(state, error) of a trial that was trained as far as it goes."""
    resume = run.resume_state.is_file()
    if run.last.is_file() and not resume:
        return "finished", None
    try:
        machine = {"device": sweep.device, "threads": sweep.threads, "signature": sweep.signature}
        config = trial.config(sweep.cache, sweep.reads, **machine)
        distill(config, run.path, resume=resume, overwrite=not resume and run.path.exists(), shelf=shelf, watch=watch)
    except Pruned:
        return "pruned", None
    except CacheError:
        raise
    except PolypDifomError as error:
        if is_fault_of_machine(error):
            raise
        return "failed", error.message
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        return "failed", traceback.format_exc()
    return "finished", None


def is_fault_of_machine(error: BaseException | None) -> bool:
    """The disk is full, read-only or broken, which no other trial would survive either."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FAULTS:
            return True
        error = error.__cause__
    return False
