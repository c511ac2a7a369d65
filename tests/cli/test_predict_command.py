"""`polyp-difom predict` as a user meets it: results, refusals, exit codes, Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyp_difom.pipeline.data.frames import read_image
from polyp_difom.pipeline.models.loading import load_model

Cli = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_a_run_predicts_a_folder_as_its_model_does(cli: Cli, finished_run: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("predict", finished_run, frames / "images", "-o", out, "--json", "--threshold", "0.3", "--save", "mask")
    assert result.exit_code == 0, result.stderr
    totals = json.loads(result.stdout)
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert totals["pictures"] == len(rows) == 24
    assert totals["with_lesion"] == sum(row["regions"] != "0" for row in rows) > 0
    assert {"whole", "decode", "network", "regions", "write"} == set(totals["pictures_per_second"])
    assert "cpu" in totals["device"]
    probability = load_model(finished_run, "cpu").probability(read_image(Path(rows[0]["source"])))
    with Image.open(out / "masks" / f"{rows[0]['name']}.png") as mask:
        np.testing.assert_array_equal(np.array(mask) > 0, probability >= 0.3)
    record = json.loads((out / "predict.json").read_text())
    assert record["settings"]["threshold"] == 0.3
    assert record["header"]["student"] == "unet:4"


def test_an_earlier_prediction_is_replaced_only_on_demand(
    cli: Cli, refused: Refused, finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli("predict", finished_run, picture, "-o", out, "--save", "probability").exit_code == 0
    assert "--overwrite" in refused(1, "predict", finished_run, picture, "-o", out)
    assert (out / "probabilities/a.png").is_file()
    assert cli("predict", finished_run, picture, "-o", out, "--overwrite").exit_code == 0
    assert {path.name for path in out.iterdir()} == {"predict.json", "predictions.csv", "masks", "overlays"}


def test_a_refusal_leaves_the_earlier_prediction_alone(
    cli: Cli, refused: Refused, finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    out, pickle = tmp_path / "out", tmp_path / "model.pth"
    pickle.write_bytes(b"\x80\x02evil")
    assert cli("predict", finished_run, picture, "-o", out).exit_code == 0
    assert "pickle" in refused(1, "predict", pickle, picture, "-o", out, "--overwrite")
    assert (out / "masks/a.png").is_file()


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ["--save", "masks"], "did you mean mask"),
        (2, ["--save", "uncertainty"], "--flips"),
        (2, ["--threshold", "1.5"], "--threshold"),
        (2, ["--batch-size", "0"], "--batch-size"),
        (2, ["--device", "tpu"], "device"),
        (3, ["nothing.png"], "nothing.png"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    refused: Refused, finished_run: Path, picture: Path, tmp_path: Path, code: int, words: list[str], message: str
) -> None:
    assert message in refused(code, "predict", finished_run, picture, "-o", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_unreadable_pictures_end_in_a_list_and_exit_code_3(cli: Cli, finished_run: Path, picture: Path, tmp_path: Path) -> None:
    (picture.parent / "b.png").write_bytes(b"no picture")
    result = cli("predict", finished_run, picture.parent, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 3
    totals = json.loads(result.stdout)
    assert totals["pictures"] == 1
    assert totals["failed"][0]["where"].endswith("b.png")
    assert "b.png" in result.stderr
    assert "1 of 2 inputs" in result.stderr


def test_a_bad_dicom_file_among_pictures_does_not_stop_them(
    cli: Cli, finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pydicom")
    bad = tmp_path / "bad.dcm"
    bad.write_text("hello")
    result = cli("predict", finished_run, bad, picture, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert "no DICOM header" in result.stderr
    assert (tmp_path / "out/masks/a.png").is_file()


def test_a_prediction_that_could_read_nothing_does_not_stand_in_the_way_of_the_next(
    cli: Cli, finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("hello")
    assert cli("predict", finished_run, bad, "-o", tmp_path / "out").exit_code == 3
    assert cli("predict", finished_run, picture, "-o", tmp_path / "out").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused(refused: Refused, finished_run: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be made" in refused(1, "predict", finished_run, picture, "-o", tmp_path / "locked/out")


def test_an_output_below_a_file_is_refused(refused: Refused, finished_run: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made" in refused(1, "predict", finished_run, picture, "-o", tmp_path / "file" / "out")


def test_ctrl_c_finishes_the_film_and_exits_with_130(finished_run: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    film, out = tmp_path / "long.mp4", tmp_path / "out"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(3000):
            image = np.full((64, 64, 3), number % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    program = "from polyp_difom.cli.main import main; main()"
    words = ["predict", str(finished_run), str(film), "-o", str(out), "--save", "overlay,mask"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 60
        while not (out / "masks/long.mp4/000010.png").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    with av.open(str(out / "overlays/long.mp4")) as container:
        assert 10 <= len(list(container.decode(video=0))) < 3000
    with (out / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= 10


def test_a_torchscript_file_is_opened_only_when_it_is_trusted(
    cli: Cli, refused: Refused, finished_run: Path, picture: Path, frames: Path, tmp_path: Path
) -> None:
    file = tmp_path / "net.torchscript"
    assert cli("export", finished_run, "--to", "torchscript", "-o", file).exit_code == 0
    assert "--trust" in refused(1, "predict", file, picture, "-o", tmp_path / "out")
    assert cli("predict", file, picture, "-o", tmp_path / "out", "--trust").exit_code == 0
    scoring = [
        "evaluate",
        file,
        "-d",
        frames,
        "--split",
        "all",
        "--overlays",
        "0",
        "--measures",
        "overlap",
        "-o",
        tmp_path / "ev",
    ]
    assert "--trust" in refused(1, *scoring)
    assert cli(*scoring, "--trust").exit_code == 0
