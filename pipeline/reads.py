"""What of a store a training reads, by digest. `cache extend` adds parts to a store and changes none that it holds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.manifest import Manifest, canonical
from polyp_difom.pipeline import schema

FRAMES = "frames"
"""The part that every training reads: frames, masks, their table and splits, in the store's views: where some were added, the
fewest that the store has held and that the training's are among."""
SIGNATURE = "signature"
"""Of the whole store: all that older runs and sweeps kept."""
Reads = dict[str, str]
"""Digest of each part, by name: `FRAMES`, and "<teacher>/<scale>" of the maps, in the order in which they are read."""


def parts(manifest: Manifest, views: int | None = None) -> Reads:
    """All parts of a store."""
    return parts_read(manifest, [entry.name for entry in manifest.teachers], list(manifest.scales), views)


def parts_read(manifest: Manifest, teachers: Collection[str], scales: Collection[str], views: int | None = None) -> Reads:
    """What a training with these teachers of the store, in its first so many views, reads; without teachers `FRAMES` alone."""
    manifest = _before(manifest, next(count for count in _stages(manifest) if count >= (views or len(manifest.views))))
    apart = {"software", "samples_per_shard", "teachers", "scales", "arrays"}
    shared = manifest.model_dump(mode="json", exclude=apart)
    arrays = {key: spec.model_dump(mode="json") for key, spec in manifest.arrays.items()}
    frames = {name: value for name, value in shared.items() if name not in ("basis", "precision", "spectra")}
    found = {FRAMES: _digest([frames, *(arrays.get(key) for key in (schema.IMAGE, schema.MASK))])}
    entries = {entry.name: entry for entry in manifest.teachers}
    for name in teachers:
        teacher = entries[name].model_dump(mode="json", exclude={"maps", "stride", "native_channels", "channels"})
        for scale in scales:
            keys = schema.embedding_key(name, scale), schema.spectrum_key(name, scale)
            held = [manifest.scales[scale], entries[name].map_at(scale), *(arrays.get(key) for key in keys)]
            found[f"{name}/{scale}"] = _digest([shared, teacher, *held])
    return found


def parts_named(reads: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The teachers and scales of the parts, under the names of the settings that choose them."""
    pairs = [name.rpartition("/") for name in reads if name != FRAMES]
    return {"teachers": tuple(dict.fromkeys(p[0] for p in pairs)), "scales": tuple(dict.fromkeys(p[2] for p in pairs))}


def kept(said: Mapping[str, Any]) -> dict[str, str | None]:
    """What settings or a checkpoint's header say was read; where they are older, by the whole store's signature."""
    return said.get("reads") or {SIGNATURE: said.get(SIGNATURE)}


def of_store(manifest: Manifest) -> dict[str, list[str]]:
    """What `kept` is compared with: all parts of a store, before and after views were added, and its signature."""
    held = defaultdict(list, {SIGNATURE: [manifest.signature()]})
    for count in _stages(manifest):
        for name, digest in parts(manifest, count).items():
            held[name].append(digest)
    return dict(held)


def views_read(said: Reads | None, manifest: Manifest) -> int | None:
    """How many views the store held when something was begun that kept these digests of it; None where nothing tells."""
    return next((count for count in _stages(manifest) if said and parts(manifest, count)[FRAMES] == said.get(FRAMES)), None)


def _stages(manifest: Manifest) -> list[int]:
    """Numbers of views that the store has held, the last of them now."""
    return sorted({len(manifest.views), *(spec.first for spec in manifest.arrays.values() if spec.continues)})


def _before(manifest: Manifest, views: int) -> Manifest:
    """As it was when the store held so many views; what was added later in more of them, in as many."""
    fewer = len(manifest.views) - views
    arrays = {
        key: spec.model_copy(update={"shape": (spec.shape[0] - fewer, *spec.shape[1:])}) if spec.chunk_dims else spec
        for key, spec in manifest.whole().items()
    }
    return manifest.model_copy(update={"schema_version": 1, "views": manifest.views[:views], "arrays": arrays})


def lost(wanted: Mapping[str, str | None], held: Mapping[str, Collection[str | None]]) -> list[str]:
    """Names of what is wanted and not held, or held with another digest."""
    return [name for name, digest in wanted.items() if digest not in held.get(name, ())]


def require_kept(
    what: str, where: object, said: Mapping[str, Any], held: Mapping[str, Collection[str | None]], remedy: str
) -> None:
    """CacheError `what` where something that was read, by settings or a header, is not held as it was."""
    wanted = kept(said)
    if changed := lost(wanted, held):
        name = changed[0]
        got = " or ".join(f"{name} {digest}" for digest in held.get(name, ["absent"]))
        raise CacheError(what, where=where, got=got, wanted=f"{name} {wanted[name]}", remedy=remedy)


def conflicting(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names under which two trainings, by their settings or headers, read different things."""
    known = a.get("reads") and b.get("reads")
    one, other = (kept(said) if known else {SIGNATURE: said.get(SIGNATURE)} for said in (a, b))
    return [name for name in one if name in other and one[name] != other[name]]


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
