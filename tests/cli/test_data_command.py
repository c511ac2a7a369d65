"""`data check` from the user's side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def test_twins_in_a_folder_that_was_trained_on_are_listed(cli: Callable, frames: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(frames, tmp_path / "second"))
    for path in (second / "images").iterdir():
        if path.stem != "0004":
            path.unlink()
            (second / "masks" / f"{path.stem}.png").unlink()
    mirrored = Image.open(second / "images/0004.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(second / "images/0004.jpg", quality=95)
    result = cli("data", "check", frames, "--against", second)
    assert result.exit_code == 0, result.stderr
    assert "synthetic/0004 ~ second/0004, correlation " in result.stdout
    assert "hflip" in result.stdout
    said = json.loads(cli("data", "check", frames, "--against", f"folder={second}", "--json").stdout)
    assert [twin["frame"] for twin in said["against"][0]["twins"]] == ["synthetic/0004"]
    assert said["against"][0]["frames"] == 1


def test_a_missing_folder_to_compare_with_is_refused(refused: Callable[..., str], frames: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(3, "data", "check", frames, "--against", tmp_path / "nowhere")
