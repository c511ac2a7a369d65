"""What the tests of the whole flow share: a tiny real teacher, a small synthetic set, an extracted store."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1")

import numpy as np
import pytest
import torch
from PIL import Image

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.synthetic import write_dataset
from polyp_difom.pipeline.distill import DistillConfig
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C, and so would our children

TEACHER = "dinov2:small"
Extracting = Callable[..., ExtractConfig]
Distilling = Callable[..., DistillConfig]


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Ray, torchrun and killed children leave in the temporary folder goes when the tests end; its path is short, for sockets."""
    tmp_path_factory.getbasetemp()  # where failed tests are kept: not in there
    get_temp_dir()  # of multiprocessing, which removes it itself when the process ends
    with (
        tempfile.TemporaryDirectory(prefix="difom-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Whatever number of threads an earlier test left behind: sums are rounded by it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Dinov2Model: 32 channels on 4 x 4 cells of a 56-pixel input."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    shape = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14)
    Dinov2Model(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 synthetic frames of 64 pixels; the seeded split makes 20 train, 2 val and 2 test of them."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    write_dataset(folder, count=24, size=64)
    return folder


@pytest.fixture(scope="session")
def extracting(tiny_teacher: Path) -> Extracting:
    """Configurations of stage one that run in a second: size 64, two views, 16 channels."""

    def make(data: Path, cache: Path, **changes: object) -> ExtractConfig:
        values: dict[str, Any] = {
            "sources": (Source(data),), "teachers": (TEACHER,), "weights": {TEACHER: str(tiny_teacher)}, "cache": str(cache),
            "size": 64, "views": 2, "channels": 16, "device": "cpu", "precision": "float32",
        }  # fmt: skip
        return ExtractConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def store(frames: Path, extracting: Extracting, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The complete store of `frames`; never write to it."""
    return extract(extracting(frames, tmp_path_factory.mktemp("store") / "tiny.zarr"))


@pytest.fixture(scope="session")
def distilling(store: FeatureStore) -> Distilling:
    """Configurations of stage two that run in a second."""

    def make(**changes: object) -> DistillConfig:
        values: dict[str, Any] = {
            "cache": str(store.location), "student": "unet:4", "epochs": 3, "batch_size": 4, "device": "cpu", "precision": "float32",
        }  # fmt: skip
        return DistillConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def finished_run(distilling: Distilling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some epochs that learned to say more than nothing; never write to it, copy it."""
    from polyp_difom.pipeline.distill import distill

    return distill(distilling(epochs=25, learning_rate=1e-2), tmp_path_factory.mktemp("runs") / "finished").path


@pytest.fixture
def copied_frames(frames: Path, tmp_path: Path) -> Path:
    """Writable copy of `frames` under the same folder name, so ids and splits are the same."""
    import shutil

    return Path(shutil.copytree(frames, tmp_path / "copy" / frames.name))


@pytest.fixture(scope="session")
def repaint() -> Callable[[Path, int], None]:
    """Writes another picture of the same size over an image file."""

    def paint(path: Path, seed: int = 1) -> None:
        with Image.open(path) as image:
            width, height = image.size
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, quality=95)

    return paint
