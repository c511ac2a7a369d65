"""Adds arrays to a complete store. Until the extension is sealed the store is the old one, byte for byte; then the new one.

`extensions/<id>/` holds the done marks and the ledger of the added arrays; it is written after their metadata, so that where
it is, a killed extension can go on. One atomic write of the root's attributes seals: manifest, signature, and the list of
sealed extensions change together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import zarr

from polyp_difom.cache import spare
from polyp_difom.cache.location import explained
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.skeleton import SEALED, write_arrays
from polyp_difom.cache.store import FeatureStore


def pending_part(store: FeatureStore, manifest: Manifest) -> FeatureStore:
    """The added arrays as a store of their own: same samples and shards, own done marks and ledger; the added views, if any.

    Args:
        store: complete.
        manifest: of the store once extended; its samples, shards and present arrays are the store's.
    """
    added = {key: spec for key, spec in manifest.arrays.items() if key not in store.manifest.arrays}
    fresh = manifest.views[len(store.manifest.views) :]
    part = manifest.model_copy(update={"arrays": added, "views": fresh or manifest.views})
    return FeatureStore(store.location, part, store.samples, writable=True, marks=f"{SEALED}/{manifest.signature()[:16]}/")


def is_begun(part: FeatureStore) -> bool:
    """A killed extension laid out the same arrays, and can be gone on with."""
    return f"{part.marks}done" in part.root and all(key in part.root for key in part.manifest.arrays)


def begin(part: FeatureStore, groups: Iterable[str]) -> None:
    """Lays out the added arrays, unless that is done; within `part.writing()`.

    What other extensions left unsealed is dropped, and what lies in `groups`, which are to be the extension's alone.
    """
    if is_begun(part):
        return
    root = part.root
    with explained("laying out the extension", part.location):
        sealed = sealed_ids(root)
        records = {key.split("/")[1] for key in part.location.sizes() if key.startswith(f"{SEALED}/") and key.count("/") > 1}
        for group in (*(f"{SEALED}/{name}" for name in sorted(records.difference(sealed))), *groups):
            root.create_group(group, overwrite=True)  # a kill may have come before it was one
            del root[group]
        write_arrays(root, part.manifest, len(part), part.marks)


def seal(part: FeatureStore, manifest: Manifest) -> FeatureStore:
    """Makes the added arrays the store's own; within `part.writing()`. The extended store, opened anew.

    Raises:
        CacheError: a shard of the extension is missing.
    """
    part.require_complete()
    with explained("sealing the extension", part.location):
        sealed = [*sealed_ids(part.root), part.marks.split("/")[1]]
        spare.forget(part.location, "zarr.json")
        part.root.update_attributes({
            "manifest": manifest.model_dump(mode="json"), "signature": manifest.signature(), SEALED: sealed,
        })  # fmt: skip
        part.location.flush("zarr.json")
        spare.add(part.location, manifest, sealed)
    return FeatureStore.open(part.location.text)


def finish(store: FeatureStore) -> None:
    """Copies the small files of a sealed extension that a kill kept from being copied."""
    with store.writing():
        spare.add(store.location, store.manifest, sealed_ids(store.root))


def sealed_ids(root: zarr.Group) -> list[str]:
    """Extensions that are part of the store."""
    attributes: dict[str, Any] = root.attrs.asdict()
    return attributes.get(SEALED, [])
