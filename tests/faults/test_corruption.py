"""A store that was hurt says so, names the place, and is as it was after the remedy that it gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyp_difom.cache import mending, spare
from polyp_difom.cache.errors import CacheError
from polyp_difom.cache.inspection import untold
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.repair import repair, restore_metadata

from .byte_faults import files_of, flipped
from .corruptions import Bench, chosen, follow, same_bytes

MAPS = "teachers/dinov2-small/s16/embedding"
ADDED = "teachers/dinov2-base/s16/embedding"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def hurt(bench: Bench, tmp_path: Path) -> Path:
    """Copy of the sound store, to be hurt."""
    return Path(shutil.copytree(bench.sound, tmp_path / "hurt.zarr"))


def shard(folder: Path, key: str, number: int) -> Path:
    return folder / FeatureStore.open(folder).sharded(key).file(number)


def flip(path: Path, bit: int = 4000) -> None:
    path.write_bytes(flipped(path.read_bytes(), bit))


def mend(bench: Bench, folder: Path) -> None:
    repair(str(folder), FeatureStore.open(folder).verify(), weights=bench.weights, device="cpu")


def test_faults_are_found_and_put_right_by_computing_only_what_is_hurt(bench: Bench, tmp_path: Path) -> None:
    found = [follow(bench, fault, tmp_path / f"{number}.zarr") for number, fault in enumerate(chosen(bench, 3, 7))]
    assert [outcome for outcome in found if not outcome.is_good] == []


def test_two_samples_that_changed_places_with_their_checksums_are_named_and_alone_computed_anew(
    bench: Bench, hurt: Path
) -> None:
    place = shard(hurt, MAPS, 1)
    raw = place.read_bytes()
    size = len(FeatureStore.open(hurt).read(MAPS, np.array([0, 0])[None])[0].tobytes()) + 4
    place.write_bytes(raw[size : 2 * size] + raw[:size] + raw[2 * size :])
    damages = FeatureStore.open(hurt).verify()
    assert {(damage.key, damage.shard) for damage in damages} == {(MAPS, 1)}
    assert len(damages) == 2
    done = repair(str(hurt), damages, weights=bench.weights, device="cpu")
    assert [(item.key, item.chunks) for item in done.mended] == [(MAPS, 2)]
    assert same_bytes(hurt, bench.sound)


def test_shards_that_changed_places_are_found(bench: Bench, hurt: Path) -> None:
    first, second = shard(hurt, MAPS, 0), shard(hurt, MAPS, 1)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    damages = FeatureStore.open(hurt).verify()
    assert {damage.shard for damage in damages} == {0, 1}
    repair(str(hurt), damages, weights=bench.weights, device="cpu")
    assert same_bytes(hurt, bench.sound)


def test_the_shard_of_an_extension_is_mended_by_its_own_teacher_alone(bench: Bench, hurt: Path) -> None:
    flip(shard(hurt, ADDED, 2))
    weights = {"dinov2:base": bench.weights["dinov2:base"]}
    done = repair(str(hurt), FeatureStore.open(hurt).verify(), weights=weights, device="cpu")
    assert [(item.key, item.shard, item.chunks) for item in done.mended] == [(ADDED, 2, 1)]
    assert same_bytes(hurt, bench.sound)


def test_a_store_without_its_manifest_is_not_opened_and_gets_it_back_from_its_own_copy(bench: Bench, hurt: Path) -> None:
    (hurt / "zarr.json").unlink()
    (hurt / "samples/height/c/0").write_bytes((hurt / "samples/width/c/0").read_bytes())
    with pytest.raises(CacheError, match=r"cache verify .* --repair"):
        FeatureStore.open(hurt)
    result = CliRunner().invoke(app, ["cache", "verify", str(hurt), "--repair", "-q"])
    assert result.exit_code == 0, result.output
    assert same_bytes(hurt, bench.sound)


def test_the_copy_of_another_store_is_never_put_back(bench: Bench, hurt: Path) -> None:
    (hurt / spare.COPY).write_bytes((bench.older / spare.COPY).read_bytes())
    assert restore_metadata(str(hurt)) == []
    assert [damage.key for damage in FeatureStore.open(hurt).verify()] == [spare.COPY]
    mend(bench, hurt)
    assert same_bytes(hurt, bench.sound)


def test_the_manifest_of_another_store_gives_way_to_the_one_of_the_sample_table(bench: Bench, hurt: Path) -> None:
    shutil.copy(bench.older / "zarr.json", hurt / "zarr.json")
    with pytest.raises(CacheError, match="not the manifest's") as caught:
        FeatureStore.open(hurt)
    assert "--repair" in str(caught.value)
    assert restore_metadata(str(hurt)) == ["zarr.json"]
    assert same_bytes(hurt, bench.sound)


def test_columns_that_no_checksum_tells_apart_are_told_by_the_copy(hurt: Path) -> None:
    store = FeatureStore.open(hurt)
    (hurt / "samples/pixel_sha256/c/0/0").write_bytes((hurt / "samples/sha256/c/0/0").read_bytes())
    document = hurt / MAPS / "zarr.json"
    document.write_text(document.read_text().replace('"NaN"', "0.0"))
    assert [damage.key for damage in FeatureStore.open(hurt).verify()] == ["samples/pixel_sha256", MAPS]
    assert restore_metadata(str(hurt)) == ["samples/pixel_sha256/c/0/0", f"{MAPS}/zarr.json"]
    assert store.verify() == []


def test_a_mark_without_files_is_found_and_taken_back(bench: Bench, hurt: Path) -> None:
    for key in FeatureStore.open(hurt).manifest.arrays:
        shard(hurt, key, 1).unlink()
    damages = FeatureStore.open(hurt).verify()
    assert {(damage.key, damage.shard) for damage in damages} == {(key, 1) for key in FeatureStore.open(hurt).manifest.arrays}
    assert repair(str(hurt), damages, weights=bench.weights, device="cpu").pending == [1]
    bench.extract_again(hurt)
    assert same_bytes(hurt, bench.sound)


def test_a_damaged_mark_is_written_anew_only_where_the_shard_is_whole(bench: Bench, hurt: Path) -> None:
    for number in (0, 2):
        (hurt / f"done/c/{number}").write_bytes(b"")
    shard(hurt, schema.MASK, 2).write_bytes(b"")
    with pytest.raises(CacheError, match=r"cache verify .* --repair"):
        FeatureStore.open(hurt).require_complete()
    damages = FeatureStore.open(hurt).verify()
    assert [(damage.key, damage.shard) for damage in damages] == [("done", 0), ("done", 2)]
    done = repair(str(hurt), damages, weights=bench.weights, device="cpu")
    assert done.pending == [2]
    assert FeatureStore.open(hurt).pending() == [2]


def test_files_that_are_not_the_stores_are_left_alone(hurt: Path) -> None:
    for name in ("notes.txt", "done/c/7", "teachers/x.npy", f"{MAPS}/c/99/0/0/0/0"):
        (hurt / name).parent.mkdir(parents=True, exist_ok=True)
        (hurt / name).write_bytes(b"mine")
    before = files_of(hurt)
    assert FeatureStore.open(hurt).verify() == []
    assert files_of(hurt) == before


def test_a_repair_killed_between_a_shard_and_its_record_is_made_good_by_the_next(
    bench: Bench, hurt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    flip(shard(hurt, MAPS, 0))
    with monkeypatch.context() as patched:
        patched.setattr(mending.sums, "write", killed)
        with pytest.raises(Killed):
            mend(bench, hurt)
    mend(bench, hurt)
    assert same_bytes(hurt, bench.sound)


def test_a_store_of_an_earlier_version_says_what_it_cannot_tell(hurt: Path) -> None:
    assert untold(FeatureStore.open(hurt)) == []
    (hurt / spare.COPY).unlink()
    for record in (
        "ledger/crc32c",
        *(f"extensions/{path.name}/ledger/crc32c" for path in (hurt / "extensions").glob("?*[!n]")),
    ):
        shutil.rmtree(hurt / record, ignore_errors=True)
    store = FeatureStore.open(hurt)
    assert store.verify() == []
    assert len(untold(store)) == 2
    result = CliRunner().invoke(app, ["cache", "verify", str(hurt)])
    assert result.exit_code == 0
    assert "no record of what each chunk held" in result.stderr
