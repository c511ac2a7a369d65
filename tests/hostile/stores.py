"""Feature stores with damaged or deceitful metadata."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyp_difom.cache.manifest import Manifest

from ..cache.conftest import MASK, Toy
from .corpus import Case


def store_cases(folder: Path) -> list[Case]:
    """Copies of one whole store, each with something wrong, written below `folder`."""
    whole = folder / "whole.zarr"
    Toy.fill(Toy.create(whole))
    cases = [Case("store", whole, "read")]

    def copied(name: str) -> Path:
        cases.append(Case("store", folder / f"{name}.zarr", "refused"))
        return Path(shutil.copytree(whole, folder / f"{name}.zarr"))

    def edited(name: str, change: Callable[[dict[str, Any]], object], sign: bool = False) -> None:
        path = copied(name) / "zarr.json"
        node = json.loads(path.read_text())
        change(node["attributes"])
        if sign:
            node["attributes"]["signature"] = Manifest.model_construct(**node["attributes"]["manifest"]).signature()
        path.write_text(json.dumps(node))

    for name, data in {
        "empty": b"", "text": b"hello", "deep": b"[" * 200_000, "attributes-list": b'{"node_type": "group", "attributes": [1]}', "list": b"[]", "null": b"null", "not-utf-8": b"\xff\xfe",
        "array": b'{"node_type": "array"}', "no-attributes": b'{"node_type": "group", "zarr_format": 3}',
    }.items():  # fmt: skip
        (copied(name) / "zarr.json").write_bytes(data)
    for number, key in enumerate(
        ("../../x", "/etc/x", "frames/../../x", "a//b", "frames\\..\\x", "a\nb", "\x1b[31m", "", ".", "c:/x")
    ):
        edited(f"key-{number}", lambda a, key=key: a["manifest"]["arrays"].update({key: a["manifest"]["arrays"][MASK]}))
    spec = {"shape": [16, 16], "chunk_dims": 0, "compressed": True}
    for number, dtype in enumerate(("object", "O", "U10", "S10", "float128x", "datetime64[s]", "__import__('os')")):
        edited(f"dtype-{number}", lambda a, dtype=dtype: a["manifest"]["arrays"].update(x={**spec, "dtype": dtype}))
    edited("unknown-field", lambda a: a["manifest"].update(run="rm -rf"))
    edited("newer", lambda a: a["manifest"].update(schema_version=99))
    edited("unsigned", lambda a: a.pop("signature"))
    edited("resigned", lambda a: a.update(signature="0" * 64))
    edited("no-manifest", lambda a: a.pop("manifest"))
    edited("negative-shape", lambda a: a["manifest"]["arrays"].update(x={**spec, "shape": [-1], "dtype": "uint8"}))
    edited("foreign", lambda a: a.update(format="anndata"))
    shutil.rmtree(copied("no-samples") / "samples")
    (copied("cut-samples") / "samples/id/c/0/0").write_bytes(b"")
    (copied("damaged-samples") / "samples/sha256/zarr.json").write_text("{}")
    for name, shape in {"done": [8 << 30], "samples/id": [8 << 30, 1 << 20], "samples/height": [8 << 30]}.items():
        path = copied(f"bomb-{name.replace('/', '-')}") / name / "zarr.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": shape}))
    path = copied("names") / "samples/split/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attributes": {"names": 3}}))
    shard = next(path for path in (copied("link") / "frames/image/c/0").rglob("*") if path.is_file())
    shard.rename(folder / "shard")
    shard.symlink_to(folder / "shard")
    pipe = copied("pipe") / "zarr.json"
    pipe.unlink()
    os.mkfifo(pipe)
    (folder / "file.zarr").write_text("hello")
    (folder / "empty.zarr.folder").mkdir()
    (folder / "loop.zarr").symlink_to(folder / "loop.zarr")
    names = ("file.zarr", "empty.zarr.folder", "loop.zarr", "missing.zarr")
    return [*cases, *(Case("store", folder / name, "refused") for name in names)]
