"""Several processes fill one store: which shards are whose, and the loop that fills them.

Every worker runs the same command. Without parts, workers take whatever shard is free; with parts, shard number i is of
part i % count. In both cases a shard is claimed first, so that a wrong partition makes workers wait, not collide.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from polyp_difom.cache.claims import Claims
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.distributed import ranks
from polyp_difom.pipeline.plan import READERS, ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Bases, Runner

WAIT_SECONDS = 0.5
"""Between two looks at shards that other workers hold."""
SETUP_SECONDS = 7200.0
SETUP_POLL_SECONDS = 2.0
"""How long, and how often, a part at a URL looks for what part 0 is to set up."""


@dataclass(frozen=True)
class Part:
    """A worker's part of the shards.

    Args:
        index, count: shard number i is of part i % count.
        local: number of this process on its host, which picks its GPU.
        helps: turns to the other parts' shards when its own are done, until the store is complete.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    helps: bool = True

    def order(self, shards: list[int]) -> list[int]:
        """Those that this worker may take, its own first."""
        own = [number for number in shards if number % self.count == self.index]
        return own + [number for number in shards if number % self.count != self.index] if self.helps else own


def part_of(config: ExtractConfig, environment: Mapping[str, str]) -> Part:
    """From --part-id and --num-parts, which keep to their part; else from torchrun's variables, whose ranks help one another.

    Raises:
        UsageError: one of the two options without the other, a part that does not exist, or variables that are no numbers.
    """
    if (config.part_id is None) != (config.num_parts is None):
        raise UsageError("--part-id and --num-parts go together", wanted="--part-id I --num-parts N, I from 0 to N - 1")
    if config.part_id is not None and config.num_parts is not None:
        if config.part_id >= config.num_parts:
            raise UsageError("no such part", where="--part-id", got=config.part_id, wanted=f"0 to {config.num_parts - 1}")
        return Part(config.part_id, config.num_parts, helps=False)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, count = ranks(environment)
        return Part(rank, count, local=int(environment.get("LOCAL_RANK", rank)))
    return Part()


def fill(
    store: FeatureStore, claims: Claims, part: Part, runner: Runner, bases: Mapping[str, Bases], progress: Progress
) -> None:
    """Makes every shard of this worker's part; waits for those that other workers hold, and takes over from the dead."""
    waiting = False
    while pending := part.order(store.pending()):
        if fill_free(store, claims, pending, runner, bases, progress):
            continue
        if not waiting:
            progress.say(f"waiting for other workers: {len(pending)} shards are theirs")
            waiting = True
        time.sleep(WAIT_SECONDS)


def _free(store: FeatureStore, claims: Claims, numbers: list[int]) -> Iterator[int]:
    """Claims one shard after another; those that another worker holds, or has finished meanwhile, are left out."""
    for number in numbers:
        if not claims.take(number):
            continue
        if store.done()[number]:
            claims.release(number)
        else:
            yield number


def fill_free(
    store: FeatureStore, claims: Claims, numbers: list[int], runner: Runner, bases: Mapping[str, Bases], progress: Progress
) -> int:
    """Decodes, embeds and writes those that are free; a shard's write overlaps the next one's teachers. How many there were."""
    free, count = _free(store, claims, numbers), 0
    total = sum(len(store.shards[number]) for number in numbers)
    with (
        ThreadPoolExecutor(READERS) as readers,
        ThreadPoolExecutor(1) as writer,
        progress.task("extracting", total) as advance,
    ):

        def ahead() -> tuple[int, list[Future]] | None:
            number = next(free, None)
            return None if number is None else (number, [readers.submit(runner.decode, i) for i in store.shards[number]])

        coming, writing = ahead(), None
        while coming is not None:
            number, decoding = coming
            began = time.perf_counter()
            frames = [future.result() for future in decoding]
            waited = time.perf_counter() - began
            coming = ahead()
            arrays, teacher_seconds = runner.shard(frames, bases, advance)
            if writing is not None:
                writing.result()
            ledger = {"teacher_seconds": teacher_seconds, "decode_seconds": waited, "attempts": 1.0}
            writing = writer.submit(_write, store, claims, number, arrays, ledger)
            count += 1
        if writing is not None:
            writing.result()
    return count


def _write(store: FeatureStore, claims: Claims, number: int, arrays: dict, ledger: dict[str, float]) -> None:
    store.write_shard(number, arrays, ledger)
    claims.release(number)


def refuse_url(store: FeatureStore, part: Part) -> None:
    """UsageError where several workers, who would help one another, are to fill a store in which nothing can be locked."""
    if store.location.path is None and part.count > 1 and part.helps:
        raise UsageError(
            "workers cannot help one another at a URL, because nothing can be locked there", where=store.location,
            got=f"{part.count} workers", wanted="one worker, or --part-id and --num-parts",
        )  # fmt: skip


def await_setup(store: FeatureStore, part: Part, progress: Progress) -> None:
    """At a URL, where nothing can be locked, part 0 alone fits the bases; the other parts wait for them.

    Raises:
        CacheError: they have not come after `SETUP_SECONDS`.
    """
    if store.location.path is not None or part.index == 0:
        return
    entries, scales = store.manifest.teachers, store.manifest.scales
    groups = list(dict.fromkeys(schema.basis_of(entry, scale) for entry in entries for scale in scales))
    until, said = time.monotonic() + SETUP_SECONDS, False
    while not all(store.read_constants(group) for group in reversed(groups)):  # the one written last says that all are final
        if time.monotonic() > until:
            raise CacheError(
                "part 0, which sets the store up, has not done so", where=store.location,
                got=f"{SETUP_SECONDS:.0f} s of waiting", wanted="every teacher's basis",
                remedy="start the same command with --part-id 0, then this one again",
            )  # fmt: skip
        if not said:
            progress.say("waiting for part 0, which fits the teachers' bases")
            said = True
        time.sleep(SETUP_POLL_SECONDS)
