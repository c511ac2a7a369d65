"""Where a worker's next trial comes from: a plan that all workers know, or a study that they share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

from polyp_difom.cache.claims import Claims
from polyp_difom.cache.errors import MissingDependencyError, RunError
from polyp_difom.pipeline.sweep.folder import ENDED, Record, SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.space import Span, Trial, as_read, named
from polyp_difom.pipeline.sweep.trial import Pruned
from polyp_difom.pipeline.trainer import Watch

WAIT_SECONDS = 0.5
"""Between two looks at trials that other processes hold."""
STUDY = "sweep"
_STARTUP_TRIALS = 5
"""Trials that run to their end before any is compared with their median."""


class Source(Protocol):
    """Deals out trials; each is claimed, so that no living process's trial is dealt out twice."""

    def open_trials(self, claims: Claims) -> Iterator[Trial]:
        """Trials that nobody has ended, those that were begun first; they may be another process's."""

    def watch(self, trial: Trial) -> Watch | None:
        """What looks at the trial's epochs and may end it."""

    def ended(self, record: Record) -> None:
        """Takes note of a trial's end; told twice, the second time does nothing."""


def take(source: Source, folder: SweepFolder, claims: Claims) -> Trial | None:
    """The next free trial, claimed; waits for those of other processes, in case they die; None when all have ended."""
    while True:
        others = False
        for trial in source.open_trials(claims):
            if not claims.take(trial.number):
                others = True
                continue
            record = folder.record(trial.number)
            if record is None or record.state not in ENDED:
                return trial
            source.ended(record)
            claims.release(trial.number)
        if not others:
            return None
        time.sleep(WAIT_SECONDS)


class Planned:
    """A grid, or random draws: the same list in every process."""

    def __init__(self, folder: SweepFolder, config: SweepConfig):
        self.folder, self.trials = folder, config.planned()

    def open_trials(self, claims: Claims) -> Iterator[Trial]:
        """See `Source`."""
        states = {record.number: record.state for record in self.folder.records()}
        opened = [trial for trial in self.trials if states.get(trial.number) not in ENDED]
        yield from sorted(opened, key=lambda trial: trial.number not in states)

    def watch(self, trial: Trial) -> None:
        """Nothing is pruned: every cell of the table is wanted."""

    def ended(self, record: Record) -> None:
        """Its record says it all."""


class Guided:
    """Optuna's tree-structured Parzen estimator (TPE) with median pruning, over a journal file that processes share.

    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.

    Raises:
        MissingDependencyError: optuna is not installed.
    """

    def __init__(self, folder: SweepFolder, config: SweepConfig):
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise MissingDependencyError("tpe needs Optuna", got=error, remedy="pip install 'polyp-difom[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.config, self.optuna = folder, config, optuna
        self.study = optuna.create_study(
            study_name=STUDY, load_if_exists=True,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal))),
            directions=["maximize" if goal == "dice" else "minimize" for goal in config.optimise],
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=2),
        )  # fmt: skip

    def open_trials(self, claims: Claims) -> Iterator[Trial]:
        """Those of dead processes first, then new ones, each asked for where no other process asks."""
        running = (self.optuna.trial.TrialState.RUNNING,)
        with claims.alone():
            begun = [self._trial(held.number) for held in self.study.get_trials(deepcopy=False, states=running)]
        yield from begun
        while True:
            with claims.alone():
                count = len(self.study.get_trials(deepcopy=False))
                if count >= (self.config.trials or 0):
                    return
                seed = self.config.sampler_seed * 100_003 + count  # the draw depends on the trials so far, not on the process
                self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                number = self.study.ask().number
                trial = self._trial(number)
            yield trial

    def watch(self, trial: Trial) -> Watch | None:
        """Ends a trial that is worse than the median of the others at its epoch; not where there are two goals."""
        if not self.config.prune or len(self.config.optimise) > 1:
            return None
        handle = self._handle(trial.number)

        def look(epoch: int, dice: float) -> None:
            handle.report(dice, epoch)
            if handle.should_prune():
                raise Pruned

        return look

    def ended(self, record: Record) -> None:
        """Tells the study the trial's figures."""
        states = self.optuna.trial.TrialState
        if record.state == "finished":
            measure = {"dice": self._dice, "latency": self._latency}
            self.study.tell(record.number, [measure[goal](record) for goal in self.config.optimise], skip_if_finished=True)
        else:
            state = states.PRUNED if record.state == "pruned" else states.FAIL
            self.study.tell(record.number, state=state, skip_if_finished=True)

    def _handle(self, number: int) -> Any:
        held = self.study.get_trials(deepcopy=False)[number]
        return self.optuna.trial.Trial(self.study, held._trial_id)

    def _trial(self, number: int) -> Trial:
        """The trial of that number, with those values drawn that a killed process left out."""
        handle, settings = self._handle(number), {}
        for name, values in self.config.factors.items():
            if isinstance(values, Span):
                settings[name] = handle.suggest_float(name, values.low, values.high, log=values.log)
            else:
                settings[name] = handle.suggest_categorical(name, values)
        return named(number, as_read(settings), self.config.factors)

    def _dice(self, record: Record) -> float:
        source = record if record.same_as is None else self.folder.record(record.same_as)
        assert source is not None  # noqa: S101
        return max(epoch["val_dice"] for epoch in self.folder.run(source.trial).history())

    def _latency(self, record: Record) -> float:
        network = record.trial.network
        latency = self.folder.facts().get(network, {}).get("latency_ms")
        if latency is None:
            raise RunError("the student's latency was not measured", where=self.folder.students, wanted=network)
        return latency


def source_of(folder: SweepFolder, config: SweepConfig) -> Source:
    """What deals out this sweep's trials."""
    return Guided(folder, config) if config.sampler == "tpe" else Planned(folder, config)
