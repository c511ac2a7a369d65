"""Films: time stamps, rotation, odd sizes, damage, interrupts, and memory that does not grow."""

from __future__ import annotations

import csv
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from polyp_difom.cache.errors import DataError, MissingDependencyError, RunError, UsageError
from polyp_difom.pipeline.predict import films, pictures
from polyp_difom.pipeline.predict.inputs import find_sources
from polyp_difom.pipeline.predict.overlay_film import FilmWriter
from polyp_difom.pipeline.predict.pictures import Found
from polyp_difom.pipeline.predict.run import PredictConfig, Totals, predict

from .conftest import RedModel, Write, scene

av = pytest.importorskip("av")

Predicted = Callable[..., Totals]


def decoded(path: Path) -> list:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def noise(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames that do not compress, so that cutting or flipping bytes hits all of them."""
    return list(np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8))


def test_the_overlay_film_keeps_variable_time_stamps_and_shows_outline_and_speed(
    predicted: Predicted, write_film: Write, tmp_path: Path
) -> None:
    times = [0.0, 0.04, 0.1, 0.5, 0.52, 1.25]
    film = write_film(tmp_path / "film.mp4", [scene(120, 200, (60, 100, 100, 160))] * 6, times)
    totals = predicted(film)
    frames = decoded(totals.out / "overlays/film.mp4")
    assert [frame.time for frame in frames] == pytest.approx(times, abs=2e-3)
    assert [float(row["time"]) for row in rows(totals.out)] == pytest.approx(times, abs=2e-3)
    last = frames[-1].to_ndarray(format="rgb24").astype(int)
    assert last.shape == (120, 200, 3)
    outline = (last[..., 2] - last[..., 0] > 40).nonzero()
    assert (outline[0].min(), outline[0].max()) == pytest.approx((60, 100), abs=4)
    assert (outline[1].min(), outline[1].max()) == pytest.approx((100, 160), abs=4)
    assert (last[:14, :60] > 150).any()  # the speed, in a corner
    np.testing.assert_allclose(last[80, 130], (230, 40, 40), atol=16)  # colours survive
    assert not (totals.out / "masks").exists()
    assert totals.rates["encode"] > 0
    assert {"decode", "network", "draw", "whole"} <= totals.rates.keys()


def test_masks_of_frames_are_written_only_when_asked(predicted: Predicted, write_film: Write, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", [scene(32, 32)] * 5)
    totals = predicted(film, save=("mask", "coco"), every=2)
    assert sorted(path.name for path in (totals.out / "masks/film.mp4").iterdir()) == ["000000.png", "000002.png", "000004.png"]
    assert not (totals.out / "overlays").exists()
    images = json.loads((totals.out / "coco.json").read_text())["images"]
    assert all((totals.out / image["file_name"]).is_file() for image in images)
    assert predicted(film, limit=2).pictures == 2


def test_odd_sizes_grow_by_one(predicted: Predicted, write_film: Write, tmp_path: Path) -> None:
    film = write_film(tmp_path / "odd.avi", [scene(31, 33)] * 3, codec="ffv1")
    frame = decoded(predicted(film).out / "overlays/odd.mp4")[0]
    assert (frame.height, frame.width) == (32, 34)
    assert rows(tmp_path / "out")[0]["height"] == "31"


def test_two_films_of_one_stem_have_two_overlays(predicted: Predicted, write_film: Write, tmp_path: Path) -> None:
    for name in ("film.mp4", "film.mkv", "other.mp4"):
        write_film(tmp_path / name, [scene(32, 32)] * 2)
    totals = predicted(f"{tmp_path}/*.m*")
    overlays = sorted(path.name for path in (totals.out / "overlays").iterdir())
    assert overlays == ["film.mkv.mp4", "film.mp4.mp4", "other.mp4"]
    assert [len(decoded(totals.out / "overlays" / name)) for name in overlays] == [2, 2, 2]


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
def test_phone_films_are_turned_upright(write_film: Write, tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    """The matrix of ISO 14496-12 (8.3.2) maps (x, y) to (ax + cy, bx + dy), y pointing down: 0 1 -1 0 turns clockwise."""
    image = scene(32, 64, (0, 16, 0, 16))
    film = write_film(tmp_path / "phone.mp4", [image] * 2)
    data = bytearray(film.read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    film.write_bytes(data)
    (source,) = find_sources([str(film)])
    upright = next(source.pictures(1)).image
    np.testing.assert_allclose(upright, np.rot90(image, turns), atol=40)
    assert upright.shape == np.rot90(image, turns).shape


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_truncated_film_is_finished_with_what_could_be_read(
    predicted: Predicted, write_film: Write, tmp_path: Path, suffix: str
) -> None:
    film = write_film(tmp_path / f"cut.{suffix}", noise(50))
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    totals = predicted(film)
    assert 15 < totals.pictures < 30
    assert len(decoded(totals.out / "overlays/cut.mp4")) == totals.pictures == len(rows(totals.out))
    assert f"{totals.pictures} frames" in str(totals.failures[0])


def test_a_damaged_film_is_read_past_the_damage_and_reported(predicted: Predicted, write_film: Write, tmp_path: Path) -> None:
    film = write_film(tmp_path / "noise.mkv", noise(50))
    data = bytearray(film.read_bytes())
    for place in np.random.default_rng(0).integers(len(data) // 3, len(data) * 3 // 4, 60):
        data[place] ^= 0xFF
    film.write_bytes(data)
    totals = predicted(film)
    assert totals.pictures > 30
    assert "damaged places" in str(totals.failures[0])


def test_an_intact_film_is_no_failure_even_when_cut_short_by_limit(
    predicted: Predicted, write_film: Write, tmp_path: Path
) -> None:
    film = write_film(tmp_path / "film.mkv", noise(40))
    assert predicted(film).failures == []
    assert predicted(film, limit=3).failures == []


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 4000])
def test_a_film_that_is_none_is_reported(predicted: Predicted, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    totals = predicted(tmp_path / "a.mp4")
    assert totals.pictures == 0
    assert "a.mp4" in str(totals.failures[0])


def test_sound_alone_is_no_film(predicted: Predicted, tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    assert "no video stream" in str(predicted(path).failures[0])


def test_ctrl_c_leaves_a_playable_film_and_whole_tables(write_film: Write, tmp_path: Path) -> None:
    class Interrupted(RedModel):
        def logits(self, frames):
            if len(self.batches) == 8:
                raise KeyboardInterrupt
            return super().logits(frames)

    film = write_film(tmp_path / "film.mp4", [scene(32, 32, (8, 24, 8, 24))] * 20)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(Interrupted(), find_sources([str(film)]), out, PredictConfig(save=("overlay", "coco", "label-studio")))
    assert len(decoded(out / "overlays/film.mp4")) == len(rows(out)) == 7
    assert len(json.loads((out / "coco.json").read_text())["annotations"]) == 7
    assert len(json.loads((out / "label-studio.json").read_text())) == 7
    assert not list(out.rglob("*.partial"))


def test_a_camera_is_a_film_without_end_and_says_when_it_goes(model: RedModel, write_film: Write, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", [scene(32, 32)] * 12)
    found = Found(Path("/dev/video0"), "/dev/video0", "camera0")
    source = films.FilmSource(found, lambda: av.open(str(film)), live=True)
    totals = predict(model, [source], tmp_path / "out", PredictConfig(limit=5))
    assert (totals.pictures, totals.failures) == (5, [])
    assert len(decoded(totals.out / "overlays/camera0.mp4")) == 5
    assert "went away" in str(predict(model, [source], tmp_path / "out", PredictConfig()).failures[0])


def test_cameras_are_named_by_number_or_device() -> None:
    (camera,) = find_sources(["camera:99", "/dev/video99"])
    assert camera.source == "/dev/video99"
    with pytest.raises(DataError, match="camera"):
        next(camera.pictures(1))
    with pytest.raises(UsageError, match="one camera"):
        find_sources(["camera:98", "camera:99"])


def test_memory_does_not_grow_with_the_film(model: RedModel, write_film: Write, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        film = write_film(tmp_path / f"{count}.mp4", [scene(128, 128, (20, 90, 20, 90))] * count)
        tracemalloc.start()
        predict(model, find_sources([str(film)]), tmp_path / f"out{count}", PredictConfig(save=("overlay", "coco")))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4)
    frame = 128 * 128 * 3
    assert peak(200) < peak(20) + 3 * frame


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MissingDependencyError, match=r"polyp-difom\[video\]"):
        find_sources([str(tmp_path / "a.mp4")])


def test_a_changing_size_ends_the_film(
    tmp_path: Path, write_film: Write, model: RedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (decoded(write_film(tmp_path / f"{side}.mp4", [scene(side, side)] * 2)) for side in (32, 64))

    def spliced(*_: object) -> Iterator:
        yield from [*small, *large]

    monkeypatch.setattr(films, "_frames", spliced)
    totals = predict(model, find_sources([str(tmp_path / "32.mp4")]), tmp_path / "out", PredictConfig())
    assert totals.pictures == 2
    assert "size changes to 64 x 64 after 2 frames" in str(totals.failures[0])


def test_a_full_disk_ends_the_film_with_a_message_and_without_a_partial_file(tmp_path: Path) -> None:
    import resource

    def write_all() -> None:
        writer = FilmWriter(tmp_path / "film.mp4")
        try:
            for number, image in enumerate(noise(80)):
                writer.add(image, number / 25)
        finally:
            writer.close()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(RunError, match=r"film\.mp4"):
            write_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_film_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"film\.mp4"):
        FilmWriter(tmp_path / "file" / "film.mp4").add(scene(16, 16), 0.0)


def test_the_expected_number_of_frames_counts_those_that_are_wanted(write_film: Write, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", noise(10))
    (source,) = find_sources([str(film)])
    assert [source.count(every) for every in (1, 3, 20)] == [10, 4, 1]
    assert [len(list(source.pictures(every))) for every in (1, 3, 20)] == [10, 4, 1]
