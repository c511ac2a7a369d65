"""A trained network to export, and pictures that are not square."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from polyp_difom.pipeline.data.synthetic import draw


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "taught"))


@pytest.fixture(scope="session")
def odd_pictures() -> list[NDArray[np.uint8]]:
    """Three frames of 131 x 97, 200 x 90 and 66 x 65 pixels (width x height)."""
    sizes = [(131, 97), (200, 90), (66, 65)]
    return [np.array(Image.fromarray(draw(seed, 256)[0]).resize(size)) for seed, size in enumerate(sizes)]
