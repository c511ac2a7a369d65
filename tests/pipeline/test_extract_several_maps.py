"""Stage one with teachers of several maps: which map feeds which scale, a basis for each, and stage two reading it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.manifest import Manifest
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.data.frames import read_frame
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.feed import target_specs
from polyp_difom.pipeline.plan import ExtractConfig
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.teachers.protocol import TeacherSpec

from .tiny_teachers import TINY, load, saved

PIXEL, DEPTHS = "mask2former:swin-tiny-ade-semantic", "dinov2:small@1:3"
Extracting = Callable[..., ExtractConfig]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    teachers = (PIXEL, DEPTHS)
    return {
        "teachers": teachers, "weights": {name: saved(name) for name in teachers}, "input_sizes": {PIXEL: 64}, "limit": 12,
        "channels": 16,
    }  # fmt: skip


@pytest.fixture(scope="module")
def several(
    extracting: Extracting, frames: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    return extract(extracting(frames, tmp_path_factory.mktemp("several") / "s.zarr", **settings))


def spec(strides: tuple[int, ...], input_size: int) -> TeacherSpec:
    return TeacherSpec("t", input_size, "half", strides, (8,) * len(strides), "none", "none")


@pytest.mark.parametrize(
    ("strides", "input_size", "size", "chosen"),
    [
        ((16,), 1024, 352, {0: ("s8", "s16", "s32")}),
        ((4, 8, 16, 32), 352, 352, {1: ("s8",), 2: ("s16",), 3: ("s32",)}),
        ((4, 8, 16, 32), 224, 352, {0: ("s8",), 1: ("s16",), 2: ("s32",)}),  # cells of 6, 13, 25, 50 frame pixels
        ((4, 8, 16, 32), 704, 352, {2: ("s8",), 3: ("s16", "s32")}),
        ((14, 14, 14), 518, 352, {0: ("s8",), 1: ("s16",), 2: ("s32",)}),
        ((14, 14), 518, 352, {0: ("s8", "s16"), 1: ("s32",)}),
        ((14,) * 4, 518, 352, {1: ("s8",), 2: ("s16",), 3: ("s32",)}),
        ((4, 16), 352, 352, {0: ("s8",), 1: ("s16", "s32")}),  # s8 is as near to 4 as to 16
    ],
)
def test_a_scale_takes_the_map_whose_cell_is_nearest(
    strides: tuple[int, ...], input_size: int, size: int, chosen: dict[int, tuple[str, ...]]
) -> None:
    assert schema.maps_of_scales(spec(strides, input_size), size, ("s32", "s8", "s16")) == chosen


def test_the_manifest_lists_several_maps_with_their_scales(several: FeatureStore) -> None:
    pixel, depths = several.manifest.teachers
    assert [(m.scales, m.stride, m.native_channels) for m in pixel.maps] == [
        (("s8",), 8, 32),
        (("s16",), 16, 32),
        (("s32",), 32, 32),
    ]
    assert [(m.scales, m.stride) for m in depths.maps] == [(("s8", "s16"), 14), (("s32",), 14)]
    assert several.verify() == []


def test_each_map_has_its_own_basis_and_its_finest_scale_unit_variance(several: FeatureStore) -> None:
    groups = ["mask2former-swin-tiny-ade-semantic/basis-" + scale for scale in ("s8", "s16", "s32")]
    groups += ["dinov2-small-1-3/basis-s8", "dinov2-small-1-3/basis-s32"]
    records = [several.read_constants(f"teachers/{group}") for group in groups]
    variances = [record[1]["variances"] for record in records if record]
    assert [sorted(held, key=schema.scale_stride) for held in variances] == [["s8"], ["s16"], ["s32"], ["s8", "s16"], ["s32"]]
    assert [held[group[-3:].lstrip("-")] for held, group in zip(variances, groups, strict=True)] == pytest.approx([1] * 5)
    assert several.read_constants("teachers/dinov2-small-1-3/basis") is None


@pytest.mark.parametrize(("name", "numbers"), [(PIXEL, {"s8": 1, "s16": 2, "s32": 3}), (DEPTHS, {"s8": 0, "s16": 0, "s32": 1})])
def test_stored_maps_are_those_of_their_own_map_in_its_basis(
    name: str, numbers: dict[str, int], several: FeatureStore, frames: Path
) -> None:
    pairs = {pair.id: pair for pair in find_pairs(frames)}
    image = torch.from_numpy(read_frame(pairs[several.samples.ids[3]], 64).image).float()[None] / 255
    teacher = load(name)
    entry = next(entry for entry in several.manifest.teachers if entry.name == name)
    for scale, number in numbers.items():
        record = several.read_constants(schema.basis_of(entry, scale))
        assert record is not None
        basis = schema.basis_from(*record)
        for view, picture in enumerate((image, image.flip(-1))):
            wanted = area_resample(basis.apply(teacher(picture)[number]), several.manifest.scales[scale])[0].numpy()
            stored = several.read(schema.embedding_key(name, scale))[3, view]
            np.testing.assert_allclose(stored, wanted, rtol=5e-3, atol=5e-3)


def test_the_equivariance_of_several_maps_is_their_mean(several: FeatureStore) -> None:
    record = several.read_constants(schema.equivariance_group(PIXEL))
    assert record is not None
    assert record[0]["cosine"].shape == (2,)
    assert record[0]["cosine"][0] == pytest.approx(1, abs=1e-4)


def test_maps_of_fewer_channels_keep_all_of_their_own(extracting: Extracting, frames: Path, tmp_path: Path) -> None:
    name = "hf:resnet"
    made = extract(extracting(frames, tmp_path / "s.zarr", teachers=(name,), weights={name: saved(name)}, limit=8, channels=14))
    keys = [(name, scale) for scale in ("s8", "s16", "s32")]
    assert [made.read(schema.embedding_key(*key)).shape[2] for key in keys] == [12, 14, 14]
    specs = target_specs(made, (name,))
    assert [(specs[key].channels, specs[key].std) for key in keys] == [
        (12, pytest.approx(1)),
        (14, pytest.approx(1)),
        (14, pytest.approx(1)),
    ]


def test_distill_learns_from_both_teachers_at_once(several: FeatureStore, tmp_path: Path) -> None:
    config = DistillConfig(
        cache=str(several.location), student="unet:4", epochs=2, batch_size=4, device="cpu", precision="float32"
    )
    run = distill(config, tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    heads = {"/".join(key.split("/")[:3]) for key in rows[-1] if "cosine" in key}
    assert any("mask2former" in head for head in heads)
    assert any("dinov2" in head for head in heads)


def test_a_kill_between_the_bases_of_a_teacher_loses_nothing(
    extracting: Extracting, frames: Path, settings: dict[str, Any], several: FeatureStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = extracting(frames, tmp_path / "s.zarr", **settings)
    written, counts = FeatureStore.write_constants, {"left": 0}

    def killed(self: FeatureStore, *args: Any) -> None:
        if counts["left"] == 0:
            raise KeyboardInterrupt
        counts["left"] -= 1
        written(self, *args)

    for calls in (2, 3, 6):  # within the first teacher's bases, before its last, within the second's
        counts["left"] = calls
        with monkeypatch.context() as patch:
            patch.setattr(FeatureStore, "write_constants", killed)
            with pytest.raises(KeyboardInterrupt):
                extract(config)
    extract(config)
    kept = (files(Path(str(store))) for store in (several.location, tmp_path / "s.zarr"))
    assert next(kept) == next(kept)


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".lock" and not name.startswith("ledger/values/c")}


def test_a_store_of_single_maps_is_written_as_before(store: FeatureStore) -> None:
    """Its manifest has no word of several maps, so stores that are older than them still open and resume."""
    (teacher,) = store.manifest.model_dump(mode="json")["teachers"]
    assert list(teacher) == [
        "name", "weights_digest", "input_size", "preprocessing", "stride", "native_channels", "channels", "licence",
        "contamination",
    ]  # fmt: skip
    assert Manifest.model_validate_json(store.manifest.model_dump_json()).signature() == store.manifest.signature()
    assert store.manifest.teachers[0].model_dump(include={"name", "licence"}).keys() == {"name", "licence"}


def test_another_input_size_or_depth_never_enters_an_existing_store(
    several: FeatureStore, extracting: Extracting, frames: Path, settings: dict[str, Any]
) -> None:
    place = Path(str(several.location))
    with pytest.raises(CacheError, match="other settings") as caught:
        extract(extracting(frames, place, **settings | {"input_sizes": {PIXEL: 96}}))
    assert f"{PIXEL}.input_size = 64" in str(caught.value.details["got"])
    other = {"teachers": (PIXEL, "dinov2:small@3"), "weights": {PIXEL: saved(PIXEL), "dinov2:small@3": saved(DEPTHS)}}
    with pytest.raises(CacheError, match="other settings"):
        extract(extracting(frames, place, **settings | other))


def test_options_for_a_teacher_that_is_not_asked_for_are_refused(extracting: Extracting, frames: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="input size for a teacher") as caught:
        extract(extracting(frames, tmp_path / "s.zarr", input_sizes={"dinov2:base": 56}))
    assert caught.value.details["where"] == "--input-size"


def test_two_teachers_that_would_share_a_group_are_refused(extracting: Extracting, frames: Path, tmp_path: Path) -> None:
    names = ("dinov2:small@1+3", "dinov2:small@1:3")
    with pytest.raises(UsageError, match="twice"):
        extract(
            extracting(
                frames, tmp_path / "s.zarr", teachers=names, weights={name: saved(name) for name in names if name in TINY}
            )
        )
