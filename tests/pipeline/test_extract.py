"""Stage one: what lands in a store, from which frames, and that a killed run ends at the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.frames import read_frame
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.sources import Source
from polyp_difom.pipeline.data.synthetic import write_dataset
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.teachers.protocol import load_teacher

TEACHER = "dinov2:small"
GROUP = "teachers/dinov2-small"
CELLS = {"s8": 8, "s16": 4, "s32": 2}
Extracting = Callable[..., ExtractConfig]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store but those that may differ: the ledger holds seconds, the lock a process id."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def constants(store: FeatureStore, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = store.read_constants(f"{GROUP}/{kind}")
    assert found is not None
    return found


def rows_of(store: FeatureStore, split: str) -> list[int]:
    return [row for row, name in enumerate(store.samples.split) if name == split]


def image_of(folder: Path, sample: str) -> Path:
    return folder / "images" / f"{sample.partition('/')[2]}.jpg"


def test_a_store_holds_frames_masks_maps_and_spectra_of_the_promised_shapes_and_types(store: FeatureStore) -> None:
    n = len(store)
    wanted = {"frames/image": ((n, 3, 64, 64), "uint8"), "frames/mask": ((n, 64, 64), "uint8")}
    for scale, cells in CELLS.items():
        wanted[f"{GROUP}/{scale}/embedding"] = ((n, 2, 16, cells, cells), "float16")
        wanted[f"{GROUP}/{scale}/spectrum"] = ((n, 2, 16, cells, cells // 2 + 1, 2), "float16")
    assert {key: ((values := store.read(key)).shape, values.dtype.name) for key in store.manifest.arrays} == wanted
    assert store.verify() == []


def test_frames_and_masks_in_the_store_are_the_squared_files(store: FeatureStore, frames: Path) -> None:
    pairs = {pair.id: pair for pair in find_pairs(frames)}
    images, masks = store.read("frames/image"), store.read("frames/mask")
    for row, name in enumerate(store.samples.ids):
        frame = read_frame(pairs[name], 64)
        np.testing.assert_array_equal(images[row], frame.image)
        np.testing.assert_array_equal(masks[row], frame.mask)
        assert store.samples.sha256[row] == frame.sha256
    assert set(np.unique(masks)) == {0, 1}


def test_the_manifest_says_what_shaped_the_store(store: FeatureStore) -> None:
    manifest = store.manifest
    (teacher,) = manifest.teachers
    assert (teacher.name, teacher.input_size, teacher.native_channels, teacher.channels) == (TEACHER, 56, 32, 16)
    assert (manifest.frame_size, manifest.views, manifest.precision) == (64, ("identity", "hflip"), "float32")
    assert manifest.scales == CELLS


def test_no_test_frame_enters_a_store(store: FeatureStore, frames: Path) -> None:
    assert set(store.samples.split) == {"train", "val"}
    assert (len(rows_of(store, "train")), len(rows_of(store, "val")), len(find_pairs(frames))) == (20, 2, 24)


def test_a_test_frame_leaves_every_byte_of_the_store_as_it_was(
    store: FeatureStore, copied_frames: Path, extracting: Extracting, repaint: Callable[[Path], None], tmp_path: Path
) -> None:
    (unused, *_) = {pair.id for pair in find_pairs(copied_frames)} - set(store.samples.ids)
    repaint(image_of(copied_frames, unused))
    extract(extracting(copied_frames, tmp_path / "s.zarr"))
    assert files(tmp_path / "s.zarr") == files(Path(str(store.location)))


@pytest.mark.parametrize(("split", "moves"), [("val", False), ("train", True)])
def test_the_basis_is_fitted_on_train_frames_alone(
    split: str, moves: bool, store: FeatureStore, copied_frames: Path, extracting: Extracting,
    repaint: Callable[[Path], None], tmp_path: Path,
) -> None:  # fmt: skip
    repaint(image_of(copied_frames, store.samples.ids[rows_of(store, split)[0]]))
    other = extract(extracting(copied_frames, tmp_path / "s.zarr"))
    (before, _), (after, _) = constants(store, "basis"), constants(other, "basis")
    assert any(not np.array_equal(before[name], after[name]) for name in before) is moves


@pytest.mark.parametrize("scale", CELLS)
def test_stored_maps_are_the_teachers_output_in_the_basis_averaged_over_areas(
    scale: str, store: FeatureStore, frames: Path, tiny_teacher: Path
) -> None:
    """By hand, in float64: teacher on the flipped frame, (x - mean) rotated and scaled, every cell the mean of its area."""
    teacher = load_teacher(TEACHER, str(tiny_teacher))
    basis, attrs = constants(store, "basis")
    stored = store.read(f"{GROUP}/{scale}/embedding")
    pairs = {pair.id: pair for pair in find_pairs(frames)}
    for row in (0, 7, len(store) - 1):
        image = torch.from_numpy(read_frame(pairs[store.samples.ids[row]], 64).image).float()[None] / 255
        for view, picture in enumerate((image, image.flip(-1))):
            maps = teacher(picture)[0][0].double().numpy()
            native = np.einsum("ci,ihw->chw", basis["rotation"], maps - basis["mean"][:, None, None]) / attrs["scale"]
            cells = CELLS[scale]
            if cells >= 4:  # every stored cell lies within one teacher cell
                wanted = native.repeat(cells // 4, 1).repeat(cells // 4, 2)
            else:
                wanted = native.reshape(16, cells, 4 // cells, cells, 4 // cells).mean((2, 4))
            np.testing.assert_allclose(stored[row, view], wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scale", CELLS)
def test_stored_spectra_are_those_of_the_stored_maps(scale: str, store: FeatureStore) -> None:
    maps = store.read(f"{GROUP}/{scale}/embedding").astype(np.float64)
    pairs = store.read(f"{GROUP}/{scale}/spectrum").astype(np.float64)
    wanted = np.fft.rfft2(maps, norm="ortho")
    np.testing.assert_allclose(pairs[..., 0] + 1j * pairs[..., 1], wanted, rtol=2e-3, atol=5e-3)


def test_low_spectra_are_the_low_block_of_the_full_ones(
    store: FeatureStore, frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    low = extract(extracting(frames, tmp_path / "low.zarr", spectra="low"))
    for scale, cells in CELLS.items():
        r = cells // 6
        full, block = (s.read(f"{GROUP}/{scale}/spectrum") for s in (store, low))
        assert block.shape[-3:] == (2 * r + 1, r + 1, 2)
        kept = {tuple(value) for value in block[0, 0, 0].reshape(-1, 2).tolist()}
        turned = np.roll(full, r, axis=-3)[..., : 2 * r + 1, : r + 1, :]  # wave numbers -r .. r
        assert {tuple(value) for value in turned[0, 0, 0].reshape(-1, 2).tolist()} == kept


def test_stored_channels_have_unit_variance_on_train_frames_and_the_stored_figures_say_so(store: FeatureStore) -> None:
    _, attrs = constants(store, "basis")
    train = store.read(f"{GROUP}/s8/embedding")[rows_of(store, "train"), 0].astype(np.float64)  # identity view
    channels = train.transpose(1, 0, 2, 3).reshape(16, -1)
    np.testing.assert_allclose(channels.var(axis=1), attrs["variances"]["s8"], rtol=0.01)
    assert attrs["variances"]["s8"] == pytest.approx(1, rel=1e-6)
    coarse = store.read(f"{GROUP}/s32/embedding")[rows_of(store, "train"), 0].astype(np.float64)
    assert coarse.transpose(1, 0, 2, 3).reshape(16, -1).var(axis=1).mean() == pytest.approx(attrs["variances"]["s32"], rel=0.01)


def test_the_stored_equivariance_is_one_for_the_frame_itself_and_less_for_its_flip(store: FeatureStore) -> None:
    arrays, attrs = constants(store, "equivariance")
    identity, hflip = arrays["cosine"]
    assert attrs["views"] == ["identity", "hflip"]
    assert identity == pytest.approx(1, abs=1e-5)
    assert 0 < hflip < 0.9999


def test_two_folders_make_one_store(frames: Path, extracting: Extracting, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", count=6, size=64, seed=5)
    both = extract(extracting(frames, tmp_path / "s.zarr", sources=(Source(frames), Source(tmp_path / "other", "folder"))))
    assert {name: both.samples.dataset.count(name) for name in ("synthetic", "other")} == {"synthetic": 22, "other": 5}
    assert both.is_complete
    assert [entry.name for entry in both.manifest.datasets] == ["other", "synthetic"]


def test_a_limit_keeps_both_splits(frames: Path, extracting: Extracting, tmp_path: Path) -> None:
    small = extract(extracting(frames, tmp_path / "s.zarr", limit=7))
    assert (len(rows_of(small, "train")), len(rows_of(small, "val"))) == (6, 1)


def test_extracting_again_into_a_complete_store_changes_no_file(frames: Path, extracting: Extracting, tmp_path: Path) -> None:
    config = extracting(frames, tmp_path / "s.zarr", limit=6)
    extract(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*") if path.name != ".lock"}
    extract(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"views": 1}, "views"),
        ({"size": 96}, "frame_size"),
        ({"channels": 8}, "basis.channels"),
        ({"limit": 9}, "dataset_digest"),
        ({"precision": "bfloat16"}, "precision"),
        ({"seed": 1}, "basis.seed"),
        ({"spectra": "low"}, "spectra"),
        ({"scales": ("s8", "s16")}, "scales.s32"),
    ],
)
def test_other_settings_never_enter_an_existing_store(
    change: dict[str, object], key: str, store: FeatureStore, frames: Path, extracting: Extracting
) -> None:
    before = files(Path(str(store.location)))
    with pytest.raises(CacheError, match="made with other settings") as caught:
        extract(extracting(frames, Path(str(store.location)), **change))
    assert f"{key} = " in str(caught.value.details["got"])
    assert caught.value.exit_code == 4
    assert files(Path(str(store.location))) == before


def test_other_weights_never_enter_an_existing_store(
    store: FeatureStore, frames: Path, extracting: Extracting, tiny_teacher: Path, tmp_path: Path
) -> None:
    from transformers import Dinov2Model

    changed = Dinov2Model.from_pretrained(tiny_teacher)
    with torch.no_grad():
        changed.layernorm.bias[0] += 0.5
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(CacheError, match="other settings") as caught:
        extract(extracting(frames, Path(str(store.location)), weights={TEACHER: str(tmp_path / "changed")}))
    assert "weights_digest" in str(caught.value.details["got"])


def test_a_changed_frame_never_enters_an_existing_store(
    store: FeatureStore, copied_frames: Path, extracting: Extracting, repaint: Callable[[Path], None]
) -> None:
    repaint(image_of(copied_frames, store.samples.ids[0]))
    with pytest.raises(CacheError, match="other settings") as caught:
        extract(extracting(copied_frames, Path(str(store.location))))
    assert "dataset_digest" in str(caught.value.details["got"])


def test_a_store_without_any_scale_is_refused_before_anything_is_written(
    frames: Path, extracting: Extracting, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, ValueError)):
        extract(extracting(frames, tmp_path / "s.zarr", scales=()))
    assert not list(tmp_path.iterdir())


def test_more_channels_than_the_teacher_has_keep_all_of_its_own(frames: Path, extracting: Extracting, tmp_path: Path) -> None:
    wide = extract(extracting(frames, tmp_path / "s.zarr", channels=64, limit=6, scales=("s16",)))
    assert wide.read(f"{GROUP}/s16/embedding").shape == (6, 2, 32, 4, 4)


KILLS = """
import json, os, signal, sys
config, points, target = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
import transformers.models.dinov2.modeling_dinov2
from transformers import AutoModel  # here, so that no child pays for it
from polyp_difom.cache import store as stores
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
import torch
torch.set_num_threads(1)
schema.MOST_SAMPLES_PER_SHARD = 4
for kind, count in points:
    child = os.fork()
    if child == 0:
        calls = 0
        owner, name = (stores.constants, "write_whole") if kind == "constants" else (stores.FeatureStore, "_put")
        real = getattr(owner, name)
        def dying(*args):
            global calls
            calls += 1
            if calls > count:
                if kind == "torn":  # half of a shard file, as if the disk had got no further
                    store, key, rows, values = args
                    path = store.location.path / store.sharded(key).file(int(rows.start // 4))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"torn")
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)
        setattr(owner, name, dying)
        extract(ExtractConfig(**{**config, "cache": f"{target}/{kind}-{count}.zarr"}))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (kind, count, status)
"""


def test_a_killed_extraction_ends_at_the_bytes_of_an_uninterrupted_one(
    frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL within the basis, before the first shard, before its done mark, on a torn shard file, later, before the last mark."""
    points = [("constants", 1), ("put", 0), ("put", 10), ("torn", 13), ("put", 40), ("put", 65)]
    config = extracting(frames, tmp_path / "whole.zarr")
    subprocess.run(
        [sys.executable, "-c", KILLS, config.model_dump_json(), json.dumps(points), str(tmp_path)],
        check=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 4)
    whole = extract(config)
    assert len(whole.shards) == 6
    wanted = files(tmp_path / "whole.zarr")
    for kind, count in points:
        place = tmp_path / f"{kind}-{count}.zarr"
        killed = FeatureStore.open(place)
        assert not killed.is_complete
        resumed = extract(extracting(frames, place))
        assert files(place) == wanted, f"killed at {kind} {count}"
        assert resumed.verify() == []


def test_a_resumed_extraction_runs_no_finished_shard_again(
    frames: Path, extracting: Extracting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 4)
    config = extracting(frames, tmp_path / "s.zarr")
    store = extract(config)
    with store.writing():
        store.mark_pending(3)
    written: list[int] = []
    real = FeatureStore.write_shard

    def noted(self: FeatureStore, number: int, *rest: Any) -> None:
        written.append(number)
        real(self, number, *rest)

    monkeypatch.setattr(FeatureStore, "write_shard", noted)
    extract(config)
    assert written == [3]


def test_a_kill_right_after_the_basis_loses_nothing(
    frames: Path, extracting: Extracting, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = FeatureStore.write_constants

    def killed(self: FeatureStore, prefix: str, *rest: Any) -> None:
        written(self, prefix, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "write_constants", killed)
    for _ in range(2):  # after either of the two groups
        with pytest.raises(KeyboardInterrupt):
            extract(extracting(frames, tmp_path / "s.zarr"))
    monkeypatch.undo()
    made = extract(extracting(frames, tmp_path / "s.zarr"))
    assert files(tmp_path / "s.zarr") == files(Path(str(store.location)))
    (cosines, attributes) = constants(made, "equivariance")
    assert cosines["cosine"][0] == pytest.approx(1, abs=1e-3)
    assert -1 <= cosines["affine_cosine"][0] < 1
    assert attributes["frames"] == 16


def test_a_family_and_its_default_variant_are_one_teacher(
    frames: Path, extracting: Extracting, tiny_teacher: Path, tmp_path: Path
) -> None:
    weights = {"dinov2:base": str(tiny_teacher)}
    with pytest.raises(UsageError, match="named twice"):
        extract(extracting(frames, tmp_path / "s.zarr", teachers=("dinov2", "dinov2:base"), weights=weights))
    made = extract(extracting(frames, tmp_path / "s.zarr", teachers=("dinov2",), weights=weights, limit=6))
    assert made.manifest.teachers[0].name == "dinov2:base"
    assert made.manifest.teachers[0].contamination.startswith("unknown")


def test_a_lower_precision_is_measured_against_float32(
    frames: Path, extracting: Extracting, store: FeatureStore, tmp_path: Path
) -> None:
    made = extract(extracting(frames, tmp_path / "s.zarr", precision="bfloat16", limit=8))
    assert 0 < constants(made, "equivariance")[1]["precision_error"] < 0.2
    assert "precision_error" not in constants(store, "equivariance")[1]
