"""Reads the corpus in a process of its own, so that its memory can be measured and its end survived.

`python -c "from tests.hostile.driver import main; main(folder)"` prints one JSON object a case.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyp_difom.cache.errors import PolypDifomError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.data.frames import read_image
from polyp_difom.pipeline.data.maps import read_map
from polyp_difom.pipeline.models.loading import load_model
from polyp_difom.pipeline.predict.inputs import find_sources

from .corpus import Case
from .films import dicom_cases, film_cases
from .limits import Hang, patience
from .networks import network_cases
from .pictures import picture_cases
from .stores import store_cases

ADDRESSES = 12 << 30
"""Bytes of address space: a fuse that keeps a hole from taking the machine along."""


def corpus(folder: Path) -> list[Case]:
    """All cases, written below `folder`."""
    return [
        *picture_cases(folder / "pictures"), *dicom_cases(folder / "dicom"), *film_cases(folder / "films"),
        *network_cases(folder / "networks", folder / "executed"), *store_cases(folder / "stores"),
    ]  # fmt: skip


def readers(kind: str) -> list[Callable[[Path], Any]]:
    """Everything that opens files of a kind."""
    if kind.startswith("picture"):
        return [read_image, read_map]
    if kind in ("DICOM", "film"):
        return [lambda path: [picture.image for source in find_sources([str(path)]) for picture in source.pictures(1)]]
    if kind == "store":
        return [lambda path: FeatureStore.open(path).done()]
    return [lambda path: load_model(path, "cpu")]


def outcome(case: Case, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What one reader made of one case."""
    began = time.process_time()
    found: dict[str, Any] = {"kind": case.kind, "path": str(case.path), "expected": case.expected, "got": "read"}
    try:
        with patience():
            value = read(case.path)
        if case.pixels is not None and read is not read_map:
            image = value[0] if isinstance(value, list) else value
            same_size = image.shape == case.pixels.shape
            if not same_size or np.abs(image.astype(float) - case.pixels).mean() > case.tolerance:
                found["got"] = "read wrongly"
    except PolypDifomError as error:
        found |= {"got": "refused", "error": type(error).__name__, "message": str(error), "code": error.exit_code}
    except Hang:
        found["got"] = "hangs"
    except Exception:
        found |= {"got": "crashes", "message": traceback.format_exc(limit=-3)}
    return found | {"seconds": time.process_time() - began, "peak": _memory("VmHWM"), "reader": read.__name__}


def _memory(name: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def main(folder: str) -> None:
    """Make the corpus, read it, print what came of it; the first line holds the memory before."""
    cases = corpus(Path(folder))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    before = sorted(str(path) for path in Path(folder).rglob("*"))
    whole = next(case for case in cases if case.kind == "checkpoint" and case.expected == "read")
    load_model(whole.path, "cpu")  # imports what loading needs
    for case in cases:
        if case.expected == "read" and case.kind in ("DICOM", "film", "store"):
            outcome(case, readers(case.kind)[0])
    print(json.dumps({"memory": _memory("VmRSS")}))
    for case in cases:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for read in readers(case.kind):
            print(json.dumps(outcome(case, read)), flush=True)
    after = sorted(str(path) for path in Path(folder).rglob("*"))
    print(json.dumps({"written": sorted(set(after) ^ set(before))}))
    sys.stdout.flush()
