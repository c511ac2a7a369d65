"""Stores in a bucket: the same commands, on a server on loopback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyp_difom.cache.compare import compare
from polyp_difom.cache.errors import CacheError, MissingDependencyError
from polyp_difom.cache.location import Location, UnreachableError
from polyp_difom.cache.shards import GAP_BYTES, batched_runs
from polyp_difom.cache.staging import staged
from polyp_difom.cache.store import FeatureStore
from polyp_difom.cli.main import app

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

MAPS = "teachers/toy/s8/embedding"
BUCKET = "s3://polyps"
PARTS = """
import os, sys
import torch
import transformers.models.dinov2.modeling_dinov2
from transformers import AutoModel  # here, so that no child pays for it
from polyp_difom.pipeline import schema, workers
from polyp_difom.pipeline.extract import extract
from polyp_difom.pipeline.plan import ExtractConfig
torch.set_num_threads(1)
schema.MOST_SAMPLES_PER_SHARD, workers.SETUP_POLL_SECONDS = 2, 0.1
config = ExtractConfig.model_validate_json(sys.argv[1])
children = []
for part in (1, 0):
    child = os.fork()
    if child == 0:
        store = extract(config.model_copy(update={"part_id": part, "num_parts": 2}))
        os._exit(len(store.ledger()) != 4)
    children.append(child)
print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `polyps`, and an environment that leads to it alone."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir("polyps")
    yield files
    files.rm("polyps", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def told(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_every_cache_command_works_on_a_bucket(store: FeatureStore, toy: Any, tmp_path: Path) -> None:
    url = f"{BUCKET}/toy.zarr"
    toy.fill(toy.create(url))
    summary = json.loads(told("cache", "info", url, "--json")[1])
    assert summary["shards"] == {"done": 3, "total": 3}
    assert told("cache", "verify", url, "-q")[0] == 0
    assert told("cache", "diff", url, str(store.location), "-q")[0] == 0
    code, out, _ = told("cache", "export", url, "-o", str(tmp_path / "plain"), "-q")
    assert (code, np.load(tmp_path / "plain/frames/image.npy").shape) == (0, (10, 3, 16, 16)), out
    assert told("cache", "prune", url)[0] == 2


def test_a_killed_filling_goes_on_at_the_first_shard_that_is_not_done(store: FeatureStore, toy: Any) -> None:
    url = f"{BUCKET}/toy.zarr"
    half = toy.create(url)
    toy.fill(half, [0])
    with half.writing():
        half._put("frames/image", slice(4, 8), toy.payload(range(4, 8))["frames/image"])  # killed within shard 1
    again = toy.create(url)
    assert again.pending() == [1, 2]
    assert compare(toy.fill(again), store).equal


def test_a_killed_creation_can_be_repeated_beside_another(toy: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{BUCKET}/toy.zarr"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "pipe", die)
        with pytest.raises(KeyboardInterrupt):
            toy.create(url)
    store = toy.fill(toy.create(url), [0])
    bucket.pipe_file("polyps/toy.zarr/zarr.json", json.dumps({
        "zarr_format": 3, "node_type": "group", "attributes": {"format": "polyp-difom feature store"},
    }).encode())  # fmt: skip
    assert toy.create(url).pending() == [1, 2]  # another creator, killed before its last file, has taken nothing away
    assert toy.fill(store).verify() == []


def test_requests_span_neighbouring_chunks_and_no_large_gap() -> None:
    near, far = 100 + GAP_BYTES, 10 * GAP_BYTES
    spans = [(0, 0, 100), (0, far, far + 9), (1, 0, 50), (0, near, near + 10), (0, 100, 100)]
    assert list(batched_runs(spans)) == [[[0, 4, 3], [1], [2]]]
    assert [len(batch) for batch in batched_runs([(shard, 0, 70 * 2**20) for shard in range(5)])] == [2, 2, 1]


@pytest.mark.parametrize(
    ("variable", "value", "got"),
    [("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect"), ("AWS_ACCESS_KEY_ID", None, "credentials")],
)
def test_a_bucket_out_of_reach_is_one_message(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, got: str
) -> None:
    monkeypatch.delenv(variable)
    if value:
        monkeypatch.setenv(variable, value)
    for arguments in (["cache", "info", f"{BUCKET}/toy.zarr"], ["cache", "verify", f"{BUCKET}/toy.zarr"]):
        code, _, err = told(*arguments)
        assert code == 4
        assert got in err
        assert "AWS_ENDPOINT_URL" in err


def test_a_bucket_that_does_not_exist_is_one_message(toy: Any) -> None:
    assert "no feature store here" in told("cache", "info", "s3://nobucket/toy.zarr")[2]
    with pytest.raises(CacheError, match="creating the store failed"):
        toy.create("s3://nobucket/toy.zarr")


def test_an_object_deleted_while_it_is_read_is_named(toy: Any, bucket: Any) -> None:
    store = toy.fill(toy.create(f"{BUCKET}/toy.zarr"))
    store.read(MAPS, np.array([0]))
    bucket.rm_file(f"polyps/toy.zarr/{MAPS}/c/0/0/0/0/0")
    with pytest.raises(CacheError, match="toy/s8/embedding"):
        store.read(MAPS)


def test_a_missing_s3fs_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(MissingDependencyError, match=r"polyp-difom\[s3\]"):
        FeatureStore.open(f"{BUCKET}/toy.zarr")


def test_an_endpoint_that_never_answers_is_given_up_soon() -> None:
    filesystem, _ = Location.parse(f"{BUCKET}/toy.zarr").filesystem()
    assert filesystem.retries * 2 * filesystem.config_kwargs["read_timeout"] <= 60
    assert filesystem.config_kwargs["retries"]["total_max_attempts"] == 2


def test_a_staged_copy_outlives_its_bucket(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.fill(toy.create(f"{BUCKET}/toy.zarr"))
    FeatureStore.open(staged(f"{BUCKET}/toy.zarr", tmp_path)).read(MAPS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = FeatureStore.open(staged(f"{BUCKET}/toy.zarr", tmp_path))
    np.testing.assert_array_equal(store.read(MAPS), toy.payload(range(10))[MAPS])
    with pytest.raises(UnreachableError):
        store.read("frames/image")


@pytest.fixture
def distilled(tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Trains a tiny student on a store for an epoch: exit code, what was said, and the weights by name."""

    def train(name: str, *words: str) -> tuple[int, str, dict[str, Any]]:
        from polyp_difom.pipeline.runs import read_checkpoint

        common = ["--student", "unet:4", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--precision", "float32"]
        code, out, err = told("distill", *words, *common, "-o", str(tmp_path / name))
        last = tmp_path / name / "checkpoints/last.safetensors"
        return code, out + err, read_checkpoint(last)[0] if last.is_file() else {}

    return train


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the objects that were asked for."""
    keys: list[str] = []
    real = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *rest: Any, **named: Any) -> Any:
        if method == "get_object":
            keys.append(named["Key"])
        return await real(self, method, *rest, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
    return keys


def test_a_training_through_a_stage_gives_the_weights_of_one_on_a_local_store_and_fetches_each_shard_once(
    frames: Path, extracting: Callable[..., Any], bucket: Any, distilled: Callable[..., Any], asked: list[str], tmp_path: Path
) -> None:
    from polyp_difom.pipeline.extract import extract

    url = f"{BUCKET}/s.zarr"
    extract(extracting(frames, Path("x")).model_copy(update={"cache": url}))
    bucket.get("polyps/s.zarr", str(tmp_path / "local.zarr"), recursive=True)
    stage = ("--cache", url, "--stage-dir", str(tmp_path / "stage"))
    keys = FeatureStore.open(tmp_path / "local.zarr").manifest.arrays

    def shards_asked_for() -> list[str]:
        return sorted(key for key in asked if key.removeprefix("s.zarr/").partition("/c/")[0] in keys and "/c/" in key)

    local = distilled("local", "--cache", str(tmp_path / "local.zarr"))[2]
    asked.clear()
    for name in ("staged", "again"):
        code, said, again = distilled(name, *stage)
        assert code == 0, said
        assert {key: value.numpy().tobytes() for key, value in local.items()} == {
            k: v.numpy().tobytes() for k, v in again.items()
        }
        if name == "staged":
            fetched = shards_asked_for()
            assert {key.split("/c/")[0] for key in fetched} >= {"s.zarr/frames/image", "s.zarr/frames/mask"}
            assert any("/embedding/" in key for key in fetched)
            assert len(fetched) == len(set(fetched))
    assert shards_asked_for() == fetched

    shard = fetched[0]
    staged_file = next((tmp_path / "stage").glob("*.zarr")) / shard.removeprefix("s.zarr/")
    staged_file.unlink()
    raw = bytearray(bucket.cat_file(f"polyps/{shard}"))
    raw[20] ^= 1
    bucket.pipe_file(f"polyps/{shard}", bytes(raw))
    code, said, weights = distilled("damaged", *stage)
    assert (code, weights, staged_file.exists()) == (4, {}, False)
    assert "arrived damaged, twice" in said
    assert shard in said.replace("\n", "")


def test_two_parts_that_start_at_once_fill_one_bucket_like_one_process(
    frames: Path, extracting: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyp_difom.pipeline import schema
    from polyp_difom.pipeline.extract import extract

    config = extracting(frames, Path("x"), limit=8).model_copy(update={"cache": f"{BUCKET}/s.zarr"})
    command = [sys.executable, "-W", "ignore", "-c", PARTS, config.model_dump_json()]
    parts = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    monkeypatch.setattr(schema, "MOST_SAMPLES_PER_SHARD", 2)
    plain = extract(config.model_copy(update={"cache": str(tmp_path / "plain.zarr")}))
    assert parts.communicate(timeout=240)[0].split() == ["0", "0"]
    filled = FeatureStore.open(f"{BUCKET}/s.zarr")
    assert filled.is_complete
    assert filled.verify() == []
    assert compare(filled, plain).equal
