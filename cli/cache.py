"""`polyp-difom cache`: look into a store, check it, mend it, compare it, tidy it up, and hand its arrays to others."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cli import cache_tables as tables
from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, echo, guarded, print_json, print_table
from polyp_difom.cli.extract import read_weights

if TYPE_CHECKING:
    from polyp_difom.cache.inspection import Damage
    from polyp_difom.cache.store import FeatureStore
    from polyp_difom.pipeline.recompute import Likeness
    from polyp_difom.pipeline.repair import Repair

app = typer.Typer(help="Look into a feature store, check it, compare it, export it.", no_args_is_help=True)
Store = Annotated[str, typer.Argument(help="Store that `polyp-difom extract` made.")]


@app.command()
@guarded
def info(store: Store, as_json: options.Json = False) -> None:
    """What is in a store: frames, teachers, grids, bytes, what was measured, and how far extraction got."""
    from polyp_difom.cache.store import FeatureStore

    summary = FeatureStore.open(store).summary()
    if as_json:
        print_json(summary)
        return
    print_table(["store", summary["path"]], tables.overview(summary))
    rows = [
        [t["name"], f"{t['channels']}{' (mask)' if t['kind'] == 'mask' else ''}", t["licence"], t["contamination"]]
        for t in summary["teachers"]
    ]
    print_table(["teacher", "channels", "licence of the weights", "polyp frames in its training?"], rows)
    print_table(["array", "shape of one sample", "dtype", "MiB"], tables.arrays(summary))
    if summary["measured"]:
        print_table(["measured on train frames", "of", "value"], tables.measured(summary["measured"]))


@app.command()
@guarded
def verify(
    store: Store,
    recompute: Annotated[int, typer.Option(min=0, help="Run the live teachers on this many random samples and compare.")] = 0,
    repair: Annotated[bool, typer.Option("--repair", help="Compute damaged shards again, just these.")] = False,
    weights: Annotated[
        list[str], typer.Option(help="TEACHER=PATH, as given to extract, for --recompute and --repair; repeatable.")
    ] = [],  # noqa: B006
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read every byte and compare every checksum; exit code 4 if anything is damaged.

    --repair puts small files back from the store's own copy, runs the teachers again on the frames of a damaged shard and
    replaces what was lost. Where frames themselves are lost, it marks the shard as pending and prints the extract command.
    """
    from dataclasses import asdict

    from polyp_difom.cache.inspection import untold
    from polyp_difom.cache.store import FeatureStore

    terminal, given = Terminal(quiet), dict(read_weights(text) for text in weights)
    restored: list[str] = []
    if repair:
        from polyp_difom.pipeline.repair import restore_metadata

        restored = restore_metadata(store)
        for name in restored:
            echo(f"{name}: put back from the store's copy", err=True)
    opened = FeatureStore.open(store)
    for lack in untold(opened):
        terminal.say(f"note: {lack}; --recompute asks the live teachers")
    damages = _damages(opened, terminal)
    said: dict[str, Any] = {"store": store, "restored": restored, "damaged": [asdict(damage) for damage in damages]}
    done: Repair | None = None
    if damages and repair:
        from polyp_difom.pipeline.repair import repair as mend

        done = mend(store, damages, weights=given, device=device, progress=terminal)
        said["repair"] = asdict(done)
    found: list[Likeness] = []
    if recompute and (not damages or (done is not None and not done.pending)):
        from polyp_difom.pipeline import recompute as live

        found = live.recompute(FeatureStore.open(store), recompute, weights=given, device=device, progress=terminal)
        said["recomputed"] = [asdict(row) for row in found]
    if as_json:
        print_json(said)
    _settle(store, len(damages), done, as_json)
    if found:
        if not as_json:
            tables.tell_likeness(found)
        live.require_alike(opened, found)


def _damages(store: FeatureStore, terminal: Terminal) -> list[Damage]:
    """Every damaged place, told as well."""
    with terminal.task("verifying", len(store.manifest.arrays) * len(store.shards)) as advance:
        damages = store.verify(lambda done, total: advance(1))
    for damage in damages:
        echo(f"{damage.key}, shard {damage.shard}, sample {damage.sample}: {damage.reason}", err=True)
    return damages


@app.command()
@guarded
def show(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write, for instance maps.png.")],
    sample: Annotated[list[str], typer.Option(help="Id of a sample; repeatable. Default: a few.")] = [],  # noqa: B006
    view: Annotated[str, typer.Option(help="identity, hflip, vflip or rot180, of those in the store.")] = "identity",
) -> None:
    """A picture of what is taught: frame, mask, and every teacher's maps, low and high bands in colours."""
    import io

    from polyp_difom.cache.store import FeatureStore
    from polyp_difom.pipeline.files import write_bytes
    from polyp_difom.pipeline.showing import show as draw

    if output.suffix.lower() != ".png":
        raise UsageError("the picture is a PNG", where="--output", got=output, remedy=f"give -o {output.with_suffix('.png')}")
    buffer = io.BytesIO()
    draw(FeatureStore.open(store), sample, view).save(buffer, "PNG")
    write_bytes(output, buffer.getvalue())
    echo(output)


@app.command()
@guarded
def diff(
    first: Store,
    second: Annotated[str, typer.Argument(help="Store to compare it with.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Settings, samples and values in which two stores differ; exit code 0 if they are equal, 1 if not."""
    from dataclasses import asdict

    from polyp_difom.cache.compare import compare
    from polyp_difom.cache.store import FeatureStore

    stores = [FeatureStore.open(path) for path in (first, second)]
    with Terminal(quiet).task("comparing", len(stores[0].manifest.whole())) as advance:
        found = compare(stores[0], stores[1], lambda done, total: advance(1))
    if as_json:
        print_json({"equal": found.equal, **asdict(found)})
    else:
        tables.tell_difference(found)
    if not found.equal:
        raise typer.Exit(1)


@app.command()
@guarded
def prune(
    store: Store,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: options.Json = False,
) -> None:
    """Delete half-written files, shards of unfinished work, and arrays that the manifest does not name."""
    from dataclasses import asdict

    from polyp_difom.cache.prune import prune as clean
    from polyp_difom.cache.store import FeatureStore

    found = clean(FeatureStore.open(store), dry_run=dry_run)
    total = sum(item.size for item in found)
    if as_json:
        print_json({"store": store, "dry_run": dry_run, "bytes": total, "files": [asdict(item) for item in found]})
        return
    for item in found:
        echo(f"{item.key}: {item.size:,} bytes, {item.reason}")
    echo(f"{store}: {len(found)} files, {total:,} bytes {'would go' if dry_run else 'deleted'}")


@app.command()
@guarded
def export(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    to: Annotated[str, typer.Option(help="npy or safetensors.")] = "npy",
    teachers: Annotated[str | None, typer.Option(help="Some of the store's teachers, by commas. Default: all.")] = None,
    scales: Annotated[str | None, typer.Option(help="Some of the store's scales, by commas. Default: all.")] = None,
    split: Annotated[str, typer.Option(help="Samples of these splits, by commas.")] = "train,val,test",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Copy frames, masks, maps (int8 ones as float16) and spectra into plain files, with samples.csv and manifest.json."""
    from polyp_difom.cache.exporting import export as copy
    from polyp_difom.cache.exporting import exported
    from polyp_difom.cache.samples import SPLITS
    from polyp_difom.cache.store import FeatureStore
    from polyp_difom.pipeline import schema

    opened = FeatureStore.open(store)
    splits = _some(split, SPLITS, "--split")
    keys = _keys(opened, teachers, scales)
    rows = sum(name in splits for name in opened.samples.split)
    steps = schema.steps_of(opened)
    whole = opened.manifest.whole()
    specs = (exported(whole[key], steps.get(key)) for key in keys)
    total = rows * sum(spec.chunks_per_sample * spec.chunk_bytes for spec in specs)
    with Terminal(quiet).task("exporting bytes", total) as advance:
        written = copy(opened, output, to, keys, splits, advance, steps)
    if as_json:
        print_json({"folder": str(output), "samples": rows, "bytes": total, "files": written})
        return
    for name in written:
        echo(output / name)


def _some(text: str, held: tuple[str, ...], option: str) -> tuple[str, ...]:
    wanted = options.names(text, option)
    if strangers := [name for name in wanted if name not in held]:
        close = get_close_matches(strangers[0], held, n=3, cutoff=0.4)
        raise UsageError(
            f"there is no {strangers[0]!r}", where=option, wanted=f"some of: {', '.join(held)}",
            remedy=f"did you mean {' or '.join(close)}?" if close else None,
        )  # fmt: skip
    return wanted


def _keys(store: FeatureStore, teachers: str | None, scales: str | None) -> list[str]:
    """Frames, masks, and the arrays of some teachers and scales."""
    from polyp_difom.pipeline import schema

    manifest = store.manifest
    held = tuple(entry.name for entry in manifest.teachers)
    names = _some(teachers, held, "--teachers") if teachers is not None else held
    grids = _some(scales, tuple(manifest.scales), "--scales") if scales is not None else tuple(manifest.scales)
    wanted = {make(name, scale) for name in names for scale in grids for make in (schema.embedding_key, schema.spectrum_key)}
    return [key for key in manifest.arrays if key in wanted | {schema.IMAGE, schema.MASK}]


def _settle(store: str, damaged: int, done: Repair | None, as_json: bool) -> None:
    """Say what came of the check; CacheError where something is still to be done."""
    lines = [f"{store}: every checksum holds"] if not damaged else []
    if done is not None:
        lines = [
            f"{m.key}, shard {m.shard}: {m.chunks} chunks computed again; of {m.intact} sound ones the teacher gave {m.same} "
            "again bit for bit"
            for m in done.mended
        ] + done.records
    for line in [] if as_json else lines:
        echo(line)
    if damaged and done is None:
        raise CacheError(
            "the store is damaged", where=store, got=f"{damaged} damaged places", wanted="none",
            remedy=f"polyp-difom cache verify {store} --repair",
        )  # fmt: skip
    if done is not None and done.pending:
        raise CacheError(
            "frames, masks or done marks are damaged, which only the data set can give again", where=store,
            got=f"shards {', '.join(map(str, done.pending))}, now marked as pending", remedy=done.command,
        )  # fmt: skip
