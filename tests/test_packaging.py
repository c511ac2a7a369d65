"""The wheel holds everything and imports from anywhere; the parts import one another in one direction only."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("cache", "cli", "pipeline")


def sources(part: str) -> list[Path]:
    """Tracked-looking files of a part: no byte code, no stores that landed in cache/."""
    found = (path.relative_to(ROOT) for path in (ROOT / part).rglob("*") if path.is_file())
    return sorted(path for path in found if not any(p == "__pycache__" or p.endswith(".zarr") for p in path.parts))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the working tree stays clean, and unpacked."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building the wheel needs setuptools in this environment")
    copy = tmp_path_factory.mktemp("source")
    for name in (
        *(path for part in PARTS for path in sources(part)),
        Path("pyproject.toml"),
        Path("README.md"),
        Path("LICENSE"),
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, check=True, capture_output=True, timeout=100)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out / "unpacked")
    return out / "unpacked"


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path) -> None:
    wanted = {Path("polyp_difom") / path for part in PARTS for path in sources(part)}
    held = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    assert {path for path in held if not path.parts[0].endswith(".dist-info")} == wanted


def test_every_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Without the editable install: its finder is taken away and the unpacked wheel put first."""
    names = [path.relative_to(wheel).with_suffix("").parts for path in wheel.rglob("*.py")]
    modules = sorted(".".join(parts).removesuffix(".__init__") for parts in names)
    program = (
        "import sys, importlib\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f'{f!r} {getattr(f, \"__module__\", \"\")}'.lower()]\n"
        "sys.path[:] = [p for p in sys.path if p and 'editable' not in p]\n"
        "home = sys.argv[1]\n"
        "sys.path.insert(0, home)\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(home), (name, module.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(wheel), *modules], capture_output=True, text=True, timeout=100, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(modules) > 40


def test_the_published_splits_are_read_from_the_wheel(wheel: Path) -> None:
    shipped = {path.name for path in (wheel / "polyp_difom/pipeline/data/splits").iterdir()}
    assert shipped
    assert shipped == {path.name for path in (ROOT / "pipeline/data/splits").iterdir() if path.is_file()}


def test_the_command_is_an_entry_point(wheel: Path) -> None:
    (entry,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "polyp-difom = polyp_difom.cli.main:main" in entry.read_text()


@pytest.mark.parametrize("part", PARTS)
def test_the_folders_do_not_import_under_their_bare_names(part: str) -> None:
    """Even from the repository's root, where Python would find them."""
    done = subprocess.run([sys.executable, "-c", f"import {part}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"polyp_difom.{part}" in done.stderr


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            assert [alias.name for alias in node.names] != ["*"], f"{path}: star import"


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("cache", ("polyp_difom.pipeline", "polyp_difom.cli", "torch", "PIL", "transformers", "typer", "rich")),
        ("pipeline", ("polyp_difom.cli", "typer", "rich")),
        ("pipeline/data", ("torch", "torchvision", "zarr", "polyp_difom.pipeline.teachers", "polyp_difom.pipeline.students")),
    ],
)
def test_imports_run_one_way(folder: str, banned: tuple[str, ...]) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files for name in imported(path) if any(f"{name}.".startswith(f"{ban}.") for ban in banned)
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    "module", ["polyp_difom.cache.store", "polyp_difom.pipeline.data.sources", "polyp_difom.pipeline.data.audit"]
)
def test_stores_and_data_are_read_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr or "torch was imported"
