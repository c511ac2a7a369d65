"""`polyp-difom cache`: look into a store and check it."""

from __future__ import annotations

from typing import Annotated

import typer

from polyp_difom.cli import options
from polyp_difom.cli.console import Terminal, guarded, print_json, print_table

app = typer.Typer(help="Look into a feature store and check it.", no_args_is_help=True)
Store = Annotated[str, typer.Argument(help="Store that `polyp-difom extract` made.")]


@app.command()
@guarded
def info(store: Store, as_json: options.Json = False) -> None:
    """What is in a store: frames, teachers, grids, bytes, and how far extraction got."""
    from polyp_difom.cache.store import FeatureStore

    summary = FeatureStore.open(store).summary()
    if as_json:
        print_json(summary)
        return
    print_table(["key", "value"], [[key, text] for key, text in _lines(summary)])


@app.command()
@guarded
def verify(store: Store, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Read every byte and compare every checksum; exit code 4 if anything is damaged."""
    from dataclasses import asdict

    from polyp_difom.cache.errors import CacheError
    from polyp_difom.cache.store import FeatureStore

    opened = FeatureStore.open(store)
    with Terminal(quiet).task("verifying", len(opened.manifest.arrays) * len(opened.shards)) as advance:
        damages = opened.verify(lambda done, total: advance(1))
    if as_json:
        print_json({"store": store, "damaged": [asdict(damage) for damage in damages]})
    for damage in damages:
        typer.echo(f"{damage.key}, shard {damage.shard}, sample {damage.sample}: {damage.reason}", err=True)
    if damages:
        raise CacheError("the store is damaged", where=store, got=f"{len(damages)} damaged places", wanted="none")
    if not as_json:
        typer.echo(f"{store}: every checksum holds")


def _lines(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists of mappings as (dotted key, text) rows."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(item.get("name", number)): item for number, item in enumerate(value)}
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _lines(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [(prefix, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
