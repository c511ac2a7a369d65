"""The commands on hostile folders: exit codes and messages, names that are more than names, nothing outside the output folder."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from polyp_difom.cache.errors import DataError
from polyp_difom.cli.console import echo, print_table
from polyp_difom.cli.main import app
from polyp_difom.pipeline.data.frames import read_frame
from polyp_difom.pipeline.data.layouts import find_pairs
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.predict.inputs import find_sources

from .corpus import Case, gradient
from .networks import checkpoint
from .pictures import encoded, picture_cases

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)  # pytest undoes ours

NAMES = (
    "a\nb", "\x1b]0;title\x07", "\x1b[31mred", "tab\there", "-rf", "=cmd()", "+1", "@SUM(A1)", "<script>alert(1)<", '"quoted"', "'; drop",
    "$(echo)", "`echo`", "%s%n", "{0}", "a b", "息肉 é", "e\u0301", "\u202egnp", "a\u200bb", "..", "~", "*", "[a]", "?", "#", "&amp;",
    "CON", "a" * 240, "é" * 120, "a:b", "C:\\x", "..\\..\\x", "%2e%2e%2f", "null\u2400", os.fsdecode(b"\xff\xfe"),
)  # fmt: skip
"""Stems of file names."""


@pytest.fixture
def cli() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return picture_cases(tmp_path_factory.mktemp("pictures") / "all")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    path.write_bytes(checkpoint())
    return path


def listing(folder: Path) -> set[str]:
    """All that lies below, links not followed."""
    return {
        os.path.relpath(os.path.join(place, name), folder)
        for place, *kinds in os.walk(folder)
        for names in kinds
        for name in names
    }


def linked(cases: list[Case], *folders: Path) -> None:
    """The files of the cases in one folder, numbered, in each of `folders`."""
    for folder in folders:
        folder.mkdir(parents=True)
        for number, case in enumerate(cases):
            (folder / f"{number}{case.path.suffix}").symlink_to(case.path)


def has_only_plain_text(result: Result) -> bool:
    return all(character.isprintable() or character == "\n" for character in result.stdout + result.stderr)


def test_data_check_names_every_bad_file_and_ends_with_code_3(
    cli: Callable[..., Result], pictures: list[Case], tmp_path: Path
) -> None:
    cases = [
        case
        for case in pictures
        if case.expected != "either" and case.path.suffix in (".png", ".jpg", ".tif") and not case.path.is_dir()
    ]
    linked(cases, tmp_path / "set/images", tmp_path / "set/masks")
    before = listing(tmp_path)
    result = cli("data", "check", tmp_path / "set", "--json", "--quiet")
    assert (result.exit_code, type(result.exception)) == (3, SystemExit), result.exception
    blamed = {Path(error["path"]).name for error in json.loads(result.stdout)["errors"] if "/images/" in error["path"]}
    assert blamed == {f"{number}{case.path.suffix}" for number, case in enumerate(cases) if case.expected == "refused"}
    assert listing(tmp_path) == before
    assert (
        cli("extract", "--data", tmp_path / "set", "--cache", tmp_path / "no.zarr", "--quiet", "--split-by", "seeded").exit_code
        == 3
    )


def test_predict_keeps_what_can_be_read_and_names_the_rest(
    cli: Callable[..., Result], network: Path, pictures: list[Case], tmp_path: Path
) -> None:
    cases = [case for case in pictures if case.expected != "either" and case.path.is_file() and case.path.suffix != ".gif"]
    linked(cases, tmp_path / "in")
    before = listing(tmp_path)
    result = cli("predict", network, tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu", "--json", "--quiet")
    assert (result.exit_code, type(result.exception)) == (3, SystemExit), result.exception
    failed = {Path(failure["where"]).name for failure in json.loads(result.stdout)["failed"]}
    wanted = {f"{n}{c.path.suffix}" for n, c in enumerate(cases) if c.expected == "refused"}
    several_pages = {f"{n}.tif" for n, c in enumerate(cases) if c.path.name == "two.tif"}
    assert failed == wanted - several_pages
    assert {path for path in listing(tmp_path) if not path.startswith("out")} == before


def test_predict_takes_any_name_and_writes_below_its_output_folder_only(
    cli: Callable[..., Result], network: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    data = encoded(Image.fromarray(gradient(8, 8)), "PNG")
    for name in NAMES:
        (tmp_path / f"in/{name}.png").write_bytes(data)
    before = listing(tmp_path)
    save = "mask,coco,label-studio"
    result = cli("predict", network, tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu", "--save", save)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert has_only_plain_text(result)
    assert {path for path in listing(tmp_path) if not path.startswith("out")} == before
    visible = [name for name in NAMES if not name.startswith(".")]
    with (tmp_path / "out/predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(list((tmp_path / "out/masks").iterdir())) == len(rows) == len(visible)
    assert all((tmp_path / f"out/masks/{row['name']}.png").is_file() for row in rows)
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert all(cell.isprintable() for cell in cells)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u202egnp", os.fsdecode(b"\xff\xfe")])
def test_a_data_set_with_unprintable_names_is_refused_and_they_are_shown_escaped(name: str, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="names with control characters") as caught:
        find_pairs(tmp_path / "set")
    assert all(character.isprintable() or character == "\n" for character in str(caught.value))
    assert ascii(f"{name}.png") in str(caught.value)


def test_names_in_a_title_a_table_or_a_line_do_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a\x1b[31m"], [["b\u202e"]], title="c\x1b]0;x\x07")
    echo("d\x1b[2J")
    echo("e\x07", err=True)
    said = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in said.out + said.err)
    assert [name in said.out for name in ("a\\x1b[31m", "b\\u202e", "c\\x1b]0;x\\x07", "d\\x1b[2J")] == [True] * 4


def test_an_id_is_no_formula(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "=cmd()" / folder).mkdir(parents=True)
        (tmp_path / "=cmd()" / folder / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="like a formula"):
        find_pairs(tmp_path / "=cmd()")


def test_links_that_lead_in_circles_end(cli: Callable[..., Result], network: Path, tmp_path: Path) -> None:
    home = tmp_path / "in"
    (home / "images").mkdir(parents=True)
    (home / "masks").mkdir()
    for folder in ("images", "masks"):
        (home / folder / "a.png").write_bytes(encoded(Image.fromarray(gradient()), "PNG"))
        for number in range(4):
            (home / folder / f"loop{number}").symlink_to(home)
    assert [source.path.name for source in find_sources([str(home)])] == ["a.png"]  # masks are left out
    assert len(find_sources([f"{home}/**/*.png"])) == 2
    assert [pair.id for pair in find_pairs(home)] == ["in/a"]


@pytest.mark.parametrize("pattern", ["*/../*/*.png", "../in/*/../*/*.png", "**", "a**/*.png"])
def test_a_glob_cannot_lead_the_outputs_out_of_their_folder(
    pattern: str, cli: Callable[..., Result], network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / f"{folder}.png").write_bytes(encoded(Image.fromarray(gradient()), "PNG"))
    monkeypatch.chdir(tmp_path / "in")
    before = listing(tmp_path)
    result = cli("predict", network, pattern, "-o", tmp_path / "x/y/out", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert {path for path in listing(tmp_path) if not path.startswith("x/y/out/")} - before == {"x", "x/y", "x/y/out"}


def test_exif_orientation_turns_image_and_mask_alike(tmp_path: Path) -> None:
    values = gradient(12, 18)
    mask = (values > 127).any(axis=-1).astype(np.uint8) * 255
    Image.fromarray(values).save(tmp_path / "plain.png")
    Image.fromarray(mask).save(tmp_path / "plain-mask.png")
    for number in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(values).save(tmp_path / "i.png", exif=exif)
        Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
        turned = read_frame(Pair("d/a", tmp_path / "i.png", tmp_path / "m.png", "d"), 36)
        lesion = (turned.image > 127).any(axis=0)
        assert (lesion == turned.mask.astype(bool)).mean() > 0.93, number


def test_evaluate_refuses_a_hostile_map_by_name(cli: Callable[..., Result], pictures: list[Case], tmp_path: Path) -> None:
    for folder in ("TestDataset/set/images", "TestDataset/set/masks", "maps"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(gradient()).save(tmp_path / "TestDataset/set/images/a.png")
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "TestDataset/set/masks/a.png")
    for case in [case for case in pictures if case.path.name in ("pipe.png", "white-9500.png", "eps.png", "empty.png")]:
        (tmp_path / "maps/a.png").unlink(missing_ok=True)
        (tmp_path / "maps/a.png").symlink_to(case.path)
        result = cli(
            "evaluate", tmp_path / "maps", "--data", tmp_path / "TestDataset/set", "-o", tmp_path / "figures", "--quiet"
        )
        assert (result.exit_code, type(result.exception)) == (3, SystemExit), (case.path, result.exception)
        assert "maps/a.png" in result.stderr
        shutil.rmtree(tmp_path / "figures", ignore_errors=True)


def test_a_file_may_be_called_like_a_formula_and_its_id_is_none(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in ("=1+1", "+1", "-1", "@a"):
            (tmp_path / "set" / folder / f"{name}.png").write_bytes(b"")
    assert {pair.id for pair in find_pairs(tmp_path / "set")} == {"set/=1+1", "set/+1", "set/-1", "set/@a"}
