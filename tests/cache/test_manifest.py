"""Behaviour of the manifest and of the sample table."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from polyp_difom.cache.manifest import ArraySpec, BasisEntry, Continues, Manifest, SplitEntry, TeacherEntry
from polyp_difom.cache.samples import SampleTable


def manifest(**changes: object) -> Manifest:
    teacher = TeacherEntry(
        name="toy",
        weights_digest="ab",
        input_size=64,
        preprocessing="min-max",
        stride=4,
        native_channels=8,
        channels=5,
        licence="MIT",
        contamination="no",
    )
    values = {
        "dataset_digest": "00",
        "datasets": (),
        "split": SplitEntry(policy="auto", seed=0, val_fraction=0.1),
        "frame_size": 352,
        "views": ("identity",),
        "scales": {"s8": 44},
        "teachers": (teacher,),
        "basis": BasisEntry(channels=5, frames=4, seed=0),
        "spectra": "full",
        "precision": "float32",
        "samples_per_shard": 4,
        "arrays": {"frames/mask": ArraySpec(shape=(8, 8), dtype="uint8", chunk_dims=0, compressed=True)},
        "software": {"zarr": "3"},
    }
    return Manifest.model_validate(values | changes)


def table(**changes: object) -> SampleTable:
    size = np.array([288, 300], np.int32)
    values = {
        "ids": ["a", "b"],
        "sha256": ["0" * 64, "f" * 64],
        "mask_sha256": ["2" * 64, "3" * 64],
        "pixel_sha256": ["4" * 64, "5" * 64],
        "height": size,
        "width": size,
    }
    return SampleTable(**(values | {"split": ["train", "val"], "dataset": ["k", "k"]} | changes))  # type: ignore[arg-type]


def test_software_is_outside_the_signature_and_everything_else_inside() -> None:
    assert manifest(software={"zarr": "4"}).signature() == manifest().signature()
    for change in ({"precision": "bfloat16"}, {"scales": {"s8": 22}}, {"views": ()}, {"samples_per_shard": 8}):
        assert manifest(**change).signature() != manifest().signature()


def test_a_signature_survives_json() -> None:
    assert Manifest.model_validate_json(manifest().model_dump_json()).signature() == manifest().signature()


def test_a_manifest_of_an_earlier_version_has_the_signature_and_the_bytes_that_it_had() -> None:
    assert manifest().signature() == "1cc266dab5f16a6074c14d6b8ed400739bd4d27437cbaeabd685cd8adb285be5"
    assert manifest().model_dump(mode="json")["arrays"] == {
        "frames/mask": {"shape": [8, 8], "dtype": "uint8", "chunk_dims": 0, "compressed": True}
    }


MAPS = ArraySpec(shape=(2, 5, 3, 3), dtype="float16", chunk_dims=1, compressed=False)


def continued(key: str = "maps", at: int = 2, **changes: object) -> ArraySpec:
    return MAPS.model_copy(update={"continues": Continues(key=key, at=at), **changes})


def test_an_array_is_read_with_all_that_continues_it() -> None:
    held = manifest(arrays={"later": continued(at=3, shape=(4, 5, 3, 3)), "maps": MAPS, "more": continued(shape=(1, 5, 3, 3))})
    assert list(held.pieces("maps")) == ["maps", "more", "later"]
    assert held.whole() == {"maps": MAPS.model_copy(update={"shape": (7, 5, 3, 3)})}
    assert Manifest.model_validate_json(held.model_dump_json()) == held


@pytest.mark.parametrize(
    "piece",
    [continued(at=1), continued(at=3), continued("absent"), continued(dtype="int8"), continued(shape=(2, 5, 3, 4)),
     continued("more"), continued(chunk_dims=2)],
)  # fmt: skip
def test_an_array_that_does_not_go_on_where_another_ends_is_refused(piece: ArraySpec) -> None:
    with pytest.raises(ValidationError, match=r"does not go on|no array that can be continued"):
        manifest(arrays={"maps": MAPS, "more": piece})


def test_differences_name_the_dotted_keys_of_both_sides() -> None:
    wider = manifest().teachers[0].model_copy(update={"channels": 9})
    other = manifest(teachers=(wider,), scales={"s16": 22}, software={})
    assert manifest().differences(other) == [
        ("scales.s8", 44, "absent"),
        ("teachers.toy.channels", 5, 9),
        ("scales.s16", "absent", 22),
    ]
    assert manifest().differences(manifest(software={})) == []


@pytest.mark.parametrize("key", ["/absolute", "a/../b", "a//b", ""])
def test_an_array_key_must_stay_inside_the_store(key: str) -> None:
    with pytest.raises(ValidationError):
        manifest(arrays={key: manifest().arrays["frames/mask"]})


@pytest.mark.parametrize(
    "change", [{"dtype": "bfloat16"}, {"dtype": "object"}, {"chunk_dims": 3}, {"shape": (0, 8)}, {"colour": 1}]
)
def test_an_array_that_cannot_be_stored_is_refused(change: dict[str, object]) -> None:
    values = {"shape": (8, 8), "dtype": "uint8", "chunk_dims": 0, "compressed": True}
    with pytest.raises(ValidationError):
        ArraySpec.model_validate(values | change)


def test_the_dataset_digest_depends_on_order_split_and_files() -> None:
    variants = [
        table(),
        table(ids=["b", "a"]),
        table(split=["val", "train"]),
        table(sha256=["1" * 64, "f" * 64]),
        table(mask_sha256=["1" * 64, "3" * 64]),
    ]
    assert len({variant.digest() for variant in variants}) == 5


@pytest.mark.parametrize(
    "change",
    [{"ids": ["a", "a"]}, {"ids": ["a"]}, {"split": ["train", "holdout"]}, {"sha256": ["00", "11"]}, {"sha256": ["zz", "11"]}],
)
def test_a_malformed_sample_table_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        table(**change)
