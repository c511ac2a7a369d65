"""The shard reader gives what zarr-python gives, whatever the shapes, dtypes, shards and codecs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from zarr.codecs import BloscCodec, Crc32cCodec

from polyp_difom.cache.location import Location
from polyp_difom.cache.manifest import ArraySpec
from polyp_difom.cache.shards import ShardedArray, chunk_numbers

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int32", "uint64", "bool")
FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def stored(draw: st.DrawFn) -> tuple[ArraySpec, int, np.ndarray]:
    """An array's layout, samples per shard, and values [n, *shape]; the last shard is often a partial one."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(DTYPES))
    spec = ArraySpec(shape=shape, dtype=dtype, chunk_dims=draw(st.integers(0, len(shape))), compressed=draw(st.booleans()))
    n, per_shard = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    return spec, per_shard, draw(arrays_of.arrays(np.dtype(dtype), (n, *shape)))


def write(folder: Path, spec: ArraySpec, per_shard: int, values: np.ndarray) -> zarr.Array:
    blosc = (
        [BloscCodec(typesize=values.dtype.itemsize, cname="zstd", clevel=3, shuffle="bitshuffle")] if spec.compressed else []
    )
    array = zarr.open_group(folder, mode="w", zarr_format=3).create_array(
        "a", shape=values.shape, shards=(per_shard, *spec.shape), chunks=(1,) * (1 + spec.chunk_dims) + spec.chunk_shape,
        dtype=spec.dtype, compressors=[*blosc, Crc32cCodec()], config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = values
    return array


@FEW
@given(case=stored(), data=st.data())
def test_the_reader_gives_what_zarr_gives(case: tuple[ArraySpec, int, np.ndarray], data: st.DataObject) -> None:
    spec, per_shard, values = case
    folder = Path(tempfile.mkdtemp())
    try:
        array = write(folder, spec, per_shard, values)
        reader = ShardedArray(Location(str(folder)), "a", spec, per_shard)
        rows = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=12)), np.int64)
        grid = (len(values), *spec.shape[: spec.chunk_dims])
        coordinates = np.array(
            data.draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in grid)), max_size=12)), np.int64
        )
        coordinates = coordinates.reshape(-1, len(grid))
        whole = np.asarray(array[...])
        for indices, wanted in ((None, whole), (rows, whole[rows]), (coordinates, whole[tuple(coordinates.T)])):
            numbers, shape = chunk_numbers("a", spec, len(values), indices)
            found, faults = reader.read(numbers, verify=True)
            assert list(faults) == []
            assert found.reshape(shape).tobytes() == wanted.tobytes()
    finally:
        shutil.rmtree(folder)


@FEW
@given(case=stored(), data=st.data())
def test_a_flipped_bit_anywhere_in_a_shard_is_a_fault_and_never_another_value(
    case: tuple[ArraySpec, int, np.ndarray], data: st.DataObject
) -> None:
    spec, per_shard, values = case
    folder = Path(tempfile.mkdtemp())
    try:
        write(folder, spec, per_shard, values)
        reader = ShardedArray(Location(str(folder)), "a", spec, per_shard)
        file = folder / reader.file(data.draw(st.integers(0, (len(values) - 1) // per_shard)))
        raw = bytearray(file.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[bit // 8] ^= 1 << bit % 8
        file.write_bytes(raw)
        found, faults = reader.read(chunk_numbers("a", spec, len(values), None)[0], verify=True)
        hurt = list(faults)
        assert hurt
        wrong = {fault.chunk for fault in hurt}
        if not any(fault.whole_shard for fault in hurt):
            chunks = values.reshape(-1, *spec.chunk_shape)
            assert all(found[i].tobytes() == chunks[i].tobytes() for i in range(len(chunks)) if i not in wrong)
    finally:
        shutil.rmtree(folder)
