"""`polyp-difom cache`: readable tables, one JSON object, exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.cache_tables import overview

Cli = Callable[..., Any]
KEY = "teachers/dinov2-small/s16/spectrum"


@pytest.fixture
def copied(store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(str(store.location), tmp_path / "s.zarr"))


def flip(folder: Path, key: str) -> None:
    (shard,) = (path for path in (folder / key / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("errors", "said"),
    [({}, "bfloat16"), ({"a": 0.02, "b": 0.01}, "bfloat16"), ({"a": 0.02, "b": 0.0}, "bfloat16; b in float32"),
     ({"a": 0.0, "b": 1e-6}, "float32")],
)  # fmt: skip
def test_info_says_which_teachers_ran_in_float32_all_the_same(store: FeatureStore, errors: dict[str, float], said: str) -> None:
    measured = {f"teachers/{name}/equivariance": {"precision_error": error} for name, error in errors.items()}
    others = {f"teachers/{name}/basis": {"stored": 4.0} for name in "ab"}
    summary = store.summary() | {"precision": "bfloat16", "teachers": [{}, {}], "measured": others | measured}
    assert ["teachers ran in", said] in overview(summary)


def test_info_reads_like_a_page_and_json_keeps_the_keys(cli: Cli, store: FeatureStore) -> None:
    table = cli("cache", "info", store.location).stdout
    assert re.search(r"state\s+complete \(1 of 1 shards\)", table)
    assert re.search(r"dinov2:small\s+16\s+Apache-2.0", table)
    assert re.search(r"variance held by 16 of 32 channels\s+dinov2-small\s+\d+\.\d%", table)
    assert re.search(r"flipped frame, hflip\s+dinov2-small\s+-?\d\.\d{3}", table)
    assert re.search(rf"{KEY}\s+2 x 16 x 4 x 3 x 2\s+float16", table)
    assert store.manifest.signature() in table
    said = json.loads(cli("cache", "info", store.location, "--json").stdout)
    assert said["teachers"][0]["channels"] == 16
    assert said["measured"]["teachers/dinov2-small/basis"]["native"] == 32
    assert sum(array["bytes"] for array in said["arrays"].values()) < said["total_bytes"]


def test_verify_repairs_one_flipped_bit_and_exits_0(
    cli: Cli, refused: Callable[..., str], copied: Path, tiny_teacher: Path
) -> None:
    flip(copied, KEY)
    assert "--repair" in refused(4, "cache", "verify", copied)
    given = ("--weights", f"dinov2:small={tiny_teacher}", "--device", "cpu")
    result = cli("cache", "verify", copied, "--repair", *given)
    assert result.exit_code == 0, result.stderr
    assert f"{KEY}, shard 0: 1 chunks computed again; of 43 sound ones the teacher gave 43 again bit for bit" in result.stdout
    assert "sample synthetic/" in result.stderr
    again = cli("cache", "verify", copied, "--recompute", 2, "--json", *given)
    said = json.loads(again.stdout)
    assert said["damaged"] == []
    assert len(said["recomputed"]) == 6
    assert min(row["worst"] for row in said["recomputed"]) > 0.999
    assert re.search(r"s32\s+spectrum\s+1\.000000", cli("cache", "verify", copied, "--recompute", 1, *given).stdout)


def test_verify_leaves_lost_frames_to_extract_and_exits_4(refused: Callable[..., str], copied: Path) -> None:
    flip(copied, "frames/image")
    said = refused(4, "cache", "verify", copied, "--repair")
    assert "polyp-difom extract --data" in said
    assert FeatureStore.open(copied).pending() == [0]


def test_show_writes_a_png(cli: Cli, refused: Callable[..., str], store: FeatureStore, tmp_path: Path) -> None:
    result = cli("cache", "show", store.location, "--sample", store.samples.ids[3], "--view", "hflip", "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 11 * 64
    assert "PNG" in refused(2, "cache", "show", store.location, "-o", tmp_path / "a.jpg")
    assert "rot180" in refused(2, "cache", "show", store.location, "--view", "rot180", "-o", tmp_path / "b.png")


def test_diff_exits_0_for_equal_stores_and_1_for_others(cli: Cli, store: FeatureStore, copied: Path) -> None:
    assert cli("cache", "diff", store.location, copied).exit_code == 0
    writable = FeatureStore.open(copied, writable=True)
    with writable.writing():
        writable.mark_pending(0)
    result = cli("cache", "diff", store.location, copied)
    assert result.exit_code == 1
    assert "22 samples not complete" in result.stdout
    assert json.loads(cli("cache", "diff", store.location, copied, "--json").stdout)["equal"] is False


def test_prune_says_what_goes_and_deletes_it(cli: Cli, copied: Path) -> None:
    stray = copied / "frames/image/c/x.partial"
    stray.write_bytes(b"1234")
    assert "1 files, 4 bytes would go" in cli("cache", "prune", copied, "--dry-run").stdout
    assert stray.exists()
    assert json.loads(cli("cache", "prune", copied, "--json").stdout)["bytes"] == 4
    assert not stray.exists()


def test_export_picks_scales_and_splits(cli: Cli, refused: Callable[..., str], store: FeatureStore, tmp_path: Path) -> None:
    result = cli("cache", "export", store.location, "-o", tmp_path / "out", "--scales", "s16", "--split", "val", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["samples"] == 2
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npy")) == [
        "frames/image.npy", "frames/mask.npy",
        "teachers/dinov2-small/s16/embedding.npy", "teachers/dinov2-small/s16/spectrum.npy",
    ]  # fmt: skip
    rows = np.flatnonzero(np.array(store.samples.split) == "val")
    np.testing.assert_array_equal(np.load(tmp_path / f"out/{KEY}.npy"), store.read(KEY, rows))
    for option, value in (("--to", "zip"), ("--scales", "s2"), ("--teachers", "sam:vit_b"), ("--split", "all")):
        assert option in refused(2, "cache", "export", store.location, "-o", tmp_path / "no", option, value)
