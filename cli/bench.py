"""`polyp-difom bench`: speed and size, measured on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from polyp_difom.cache.errors import UsageError
from polyp_difom.cli import bench_sweep, bench_teacher, bench_train, options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table

app = typer.Typer(help="Measure speed and size on this machine.", no_args_is_help=True)
app.command()(bench_teacher.teacher)
app.command()(bench_sweep.sweep)
app.command()(bench_train.train)


@app.command()
@guarded
def student(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run folders, model files, or students by name (random weights).")
    ],
    size: Annotated[int | None, typer.Option(help="Frame side; default: the model's own, 352 for a name.")] = None,
    batch: Annotated[str, typer.Option(help="Frames at once; several by commas.")] = "1,16",
    runtimes: Annotated[
        str | None, typer.Option(help="Of eager, compiled, onnx, openvino; default: all that are installed.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of every runtime.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed calls; default: 30, or what fits into 10 s.")] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Latency and frames a second of networks, side by side in every runtime; parameters and multiply-accumulates.

    Timed from squared 8-bit frames in memory to logits in memory. A run folder keeps its figures as bench.json.
    """
    from polyp_difom.pipeline.bench.student import bench_students

    found = bench_students(
        models, size=size, batches=_counts(batch), threads=threads, device=device, repeats=repeats,
        runtimes=options.names(runtimes, "--runtimes") if runtimes is not None else None, progress=Terminal(quiet),
    )  # fmt: skip
    if as_json:
        print_json(found.as_json())
        return
    sizes = [
        [s.name, str(s.size), _scaled(s.parameters, 1e6), _scaled(s.macs, 1e9), _scaled(s.flops, 1e9)] for s in found.subjects
    ]
    print_table(["model", "side", "M parameters", "GMACs a frame", "GFLOPs a frame"], sizes)
    rows = [
        [r.model, r.runtime, str(r.batch), f"{r.median_ms:.2f}", f"{r.p95_ms:.2f}", f"{r.best_ms:.2f}", f"{r.fps:.1f}",
         f"{r.speedup:.2f}" if r.speedup else "", str(r.repeats), r.device]
        if r.median_ms is not None else [r.model, r.runtime, str(r.batch), *[""] * 6, r.note]
        for r in found.rows
    ]  # fmt: skip
    print_table(["model", "runtime", "batch", "median ms", "p95 ms", "best ms", "frames/s", "x eager", "calls", "on"], rows)
    typer.echo(found.machine.title)
    for path in found.written:
        typer.echo(path)


@app.command()
@guarded
def reader(
    store: Annotated[str | None, typer.Argument(help="Store to read; default: drawn samples of 248 KB and 1 MB.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Shuffled batches of 16 from a store, against zarr-python, tensorstore and a memory-mapped .npy file, warm, in turn.

    Each chunk's checksum is compared when it is first read: the first pass is timed apart, the bars are for later ones.
    """
    from dataclasses import asdict

    from polyp_difom.pipeline.bench.machine import processor
    from polyp_difom.pipeline.bench.reader import JUDGED_BYTES, bench_reader

    rows = bench_reader(store, progress=Terminal(quiet))
    if as_json:
        print_json({"device": processor(), "rows": [{**asdict(row), "met": row.met} for row in rows]})
        return
    words = {None: "", True: "yes", False: "NO"}
    cells = [
        [r.array, f"{r.sample_bytes / 1000:,.0f}", r.way, f"{r.samples_per_second:,.0f}", f"{r.median_ms:,.2f}",
         f"{r.first_ratio:.2f}", f"{r.ratio:.2f}", f"{r.bar:.2f}" if r.bar else "", words[r.met]]
        for r in rows
    ]  # fmt: skip
    heads = ["array", "KB", "way", "samples/s", "ms a batch", "ours is x as fast: first pass", "later", "at least", "met"]
    print_table(heads, cells)
    if small := {r.array for r in rows if r.sample_bytes < JUDGED_BYTES}:
        typer.echo(f"not judged: {', '.join(sorted(small))}: the bars are for samples of {JUDGED_BYTES // 1000} KB and more")
    typer.echo(processor())


@app.command()
@guarded
def metrics(as_json: options.Json = False) -> None:
    """How many maps of 352 x 352 pixels each measure scores a second, on one core."""
    from dataclasses import asdict

    from polyp_difom.pipeline.bench.machine import processor
    from polyp_difom.pipeline.bench.metrics import bench_metrics

    rows = bench_metrics()
    if as_json:
        print_json({"device": processor(), "rows": [asdict(row) for row in rows]})
    else:
        print_table(["measure", "protocol", "maps/s"], [[r.name, r.protocol, f"{r.maps_per_second:.1f}"] for r in rows])
        typer.echo(processor())


def _counts(text: str) -> list[int]:
    """Batch sizes: "1,16" -> [1, 16]."""
    words = options.names(text, "--batch")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError("not a batch size", where="--batch", got=text, wanted="frames at once, for instance 1,16")
    return [int(word) for word in words]


def _scaled(value: int | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.2f}"
